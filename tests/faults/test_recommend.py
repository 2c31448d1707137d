"""Recommending: against a slow version, in every format, and in the way README goes."""

import ast
import contextlib
import csv
import io
import json
import re
import runpy
import shlex
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import ROOT, SMALL, train, write_rows

import evaluation
import recommend
import support.data_set
import train_caser
from recommend import TrainedModel
from utils import UserError


@pytest.fixture
def path(command, toy, tmp_path):
    """A checkpoint trained on toy."""
    train(command, toy, tmp_path, "--n_iter", 1)
    return tmp_path / "out" / "toy-caser-dim=6.pth.tar"


@pytest.fixture
def recommended(command, path):
    """What the command writes to standard output, as rows of dicts; and its lines of stderr."""

    def call(*flags):
        status, out, err = command(recommend.main, "--checkpoint", path, *flags)
        assert status == 0
        return list(csv.DictReader(out.splitlines(), delimiter="\t")), err

    return call


def slow_best(path, window, user, seen, top):
    """The obvious version: score every item by itself, sort, leave out what was seen."""
    model = TrainedModel(path)
    L = model.net.architecture["L"]
    numbers = [model.item_map[item] for item in window if item in model.item_map][-L:]
    window = torch.tensor([[0] * (L - len(numbers)) + numbers])
    user = torch.tensor([model.user_map.get(user, len(model.user_map))])
    scored = []
    for item, number in model.item_map.items():
        if item not in seen:
            with torch.no_grad():
                scored.append((model.net(window, user, torch.tensor([[number]])).item(), item))
    return [(item, score) for score, item in sorted(scored, reverse=True)[:top]]


@pytest.mark.parametrize("seen", [[], ["--include_seen"]], ids=["without seen", "with seen"])
def test_every_user_gets_what_the_slow_version_gives(recommended, toy, path, seen):
    rows, err = recommended("--top", 5, *seen)
    assert err == []
    assert list(rows[0]) == ["user", "item", "rank", "score"]
    histories = {}
    for line in toy.train.read_text().splitlines():
        histories.setdefault(line.split()[0], []).append(line.split()[1])
    assert list(dict.fromkeys(row["user"] for row in rows)) == list(histories)
    for user, items in histories.items():
        mine = [row for row in rows if row["user"] == user]
        wanted = slow_best(path, items, user, () if seen else items, 5)
        assert [row["item"] for row in mine] == [item for item, _ in wanted]
        assert [row["rank"] for row in mine] == [str(n) for n in range(1, len(mine) + 1)]
        assert np.allclose([float(row["score"]) for row in mine], [s for _, s in wanted], atol=1e-5)


def test_blocks_do_not_matter(recommended, monkeypatch):
    found = []
    for block in (1, 1 << 22):
        monkeypatch.setattr(evaluation, "BLOCK", block)
        monkeypatch.setattr(recommend, "ROWS_AT_ONCE", block)
        found.append([(row["user"], row["item"], row["rank"]) for row in recommended()[0]])
    assert found[0] == found[1]


def test_formats_hold_the_same(command, tmp_path, path):
    pytest.importorskip("pyarrow")
    for ending in ("tsv", "csv", "jsonl", "parquet"):
        flags = ["--checkpoint", path, "--output", tmp_path / f"r.{ending}"]
        status, out, err = command(recommend.main, *flags)
        assert (status, err) == (0, [])
        assert f"r.{ending}" in out
    tables = [
        pd.read_csv(tmp_path / "r.tsv", sep="\t"), pd.read_csv(tmp_path / "r.csv"),
        pd.DataFrame(map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())),
        pd.read_parquet(tmp_path / "r.parquet"),
    ]  # fmt: skip
    assert len(tables[0]) > 100
    for table in tables[1:]:
        pd.testing.assert_frame_equal(table, tables[0], check_dtype=False)


def test_chosen_users_in_their_order(recommended, tmp_path):
    (tmp_path / "ids").write_text("\ufeffu5\n\nu2\n")
    for names, users in (("u3,u1,u3", ["u3", "u1"]), (tmp_path / "ids", ["u5", "u2"])):
        assert [row["user"] for row in recommended("--users", names, "--top", 1)[0]] == users


def test_a_history_of_ones_own(recommended, tmp_path, path):
    pairs = [("new", "i1"), ("u3", "i2"), ("new", "strange"), ("new", "i4"), ("u3", "i5")]
    rows, err = recommended("--history", write_rows(tmp_path / "own", pairs), "--top", 4)
    assert any("strange" in line and "dropped" in line for line in err)
    assert any("mean" in line and "new" in line for line in err)
    assert {(row["user"], row["embedding"]) for row in rows} == {("new", "mean"), ("u3", "own")}
    for user, items in {"new": ["i1", "i4"], "u3": ["i2", "i5"]}.items():
        mine = [row["item"] for row in rows if row["user"] == user]
        assert mine == [item for item, _ in slow_best(path, items, user, items, 4)]
    again, err = recommended("--sequence", "i2,i5", "--users", "u3", "--top", 4)
    mine = [row for row in rows if row["user"] == "u3"]
    assert [row["item"] for row in again] == [row["item"] for row in mine]
    assert err == []


def test_the_call_gives_what_the_command_gives(path):
    model = TrainedModel(path)
    best = model.recommend([["i1", "i4"], ["i2", "i5"]], users=[None, "u3"], top=4)
    for found, (user, *items) in zip(best, ((None, "i1", "i4"), ("u3", "i2", "i5")), strict=True):
        wanted = slow_best(path, items, user, items, 4)
        assert [item for item, _ in found] == [item for item, _ in wanted]
        assert np.allclose([s for _, s in found], [s for _, s in wanted], atol=1e-5)
    everything = len(model.item_map)
    assert len(model.recommend([["i1"]], top=10**6)[0]) == everything - 1
    assert len(model.recommend([["i1"]], top=10**6, include_seen=True)[0]) == everything
    assert model.recommend([]) == []


def test_odd_arguments_of_the_call_are_refused(path):
    model = TrainedModel(path)
    for arguments, word in (
        ((["i1", "i2"],), "lists"), (([["i1"], ["i2"]], "u1"), "users"),
        (([["i1"]], ["u1", "u2"]), "2 users"), (([["i1"]], None, 0), "top=0"),
        (([["i1"]], None, 2.5), r"top=2\.5"), (([["i1"]], None, True), "top=True"),
        (([["i1"], ["strange"]],), "sequence 1"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=word):
            model.recommend(*arguments)


def test_ids_that_look_like_something_else(command, recommended, toy, path):
    """A user called None is not somebody new; quotes and commas come out as they went in."""
    users = ["None", "NA", "sequence", 'a"b', "c,d", "3", "007"]
    write_rows(toy.train, [(u, f"i{n}") for u in users for n in range(len(u), len(u) + 12)])
    toy.test.write_text("None i1 1\n")
    assert command(train_caser.main, *toy.flags, *SMALL, "--output_dir", path.parent)[0] == 0
    model = TrainedModel(path)
    new, named, unknown = model.recommend([["i5"]] * 3, [None, "None", "x"], 3)
    assert new == unknown != named
    rows, _ = recommended("--sequence", "i5", "--top", 3)
    wanted = [("sequence", item, "mean") for item, _ in new]
    assert [(row["user"], row["item"], row["embedding"]) for row in rows] == wanted
    for flags, chosen in (([], users), (["--users", "c,d"], ["c,d"])):
        out = command(recommend.main, "--checkpoint", path, "--top", 1, *flags)[1]
        assert [line.split("\t")[0] for line in out.splitlines()[1:]] == chosen


def test_nothing_but_rows_is_on_standard_output(recommended, toy, tmp_path, path, monkeypatch):
    """A data set that is prepared on the way says so elsewhere."""
    monkeypatch.chdir(tmp_path)

    def prepare(words, stdout):
        assert stdout == 2
        toy.folder.parent.rename(tmp_path / "datasets" / "ml-100k")
        return SimpleNamespace(returncode=0)

    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr(support.data_set.subprocess, "run", prepare)
    rows, err = recommended("--dataset", "ml-100k", "--top", 1)
    assert (len(rows), err) == (12, [])


def test_the_readme_s_way_from_a_csv_to_recommendations(tmp_path, monkeypatch, command):
    rng = np.random.default_rng(0)
    rows = [(u, i, 5, t) for u in range(40) for t, i in enumerate(rng.permutation(30)[:20])]
    table = pd.DataFrame(rows, columns=["userId", "movieId", "rating", "timestamp"])
    table.to_csv(tmp_path / "ratings.csv", index=False)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text("utf-8")
    section = text[text.index("## Use it on your own data") :].split("\n## ")[0]
    commands = re.findall(r"(?m)^    python (.+)$", section)
    assert len(commands) == 4
    for line in commands:
        script, *words = shlex.split(line)
        if script.endswith("prepare.py"):
            words += ["--output_dir", "datasets"]
        if script.endswith("_caser.py"):
            words += ["--n_iter", "2"]
        status, _, err = command(runpy.run_path(str(ROOT / script))["main"], *words)
        assert (status, [text for text in err if "error" in text]) == (0, []), line
    assert len(pd.read_csv("recs.tsv", sep="\t")) == 40 * 10
    example = re.search(r"```python\n(.+?)```", section, re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})
    assert [len(ast.literal_eval(line)) for line in out.getvalue().splitlines()] == [5, 5]


def test_what_can_not_be_filled_is_said_and_one_cold_user_keeps_nobody_waiting(
    recommended, tmp_path, path
):
    model = TrainedModel(path)
    every = list(model.item_map)
    pairs = [("full", item) for item in every] + [("most", item) for item in every[2:]]
    pairs += [("cold", "strange"), ("fresh", every[0])]
    rows, err = recommended("--history", write_rows(tmp_path / "own", pairs), "--top", 3)
    counts = {user: sum(row["user"] == user for row in rows) for user in ("most", "fresh")}
    assert counts == {"most": 2, "fresh": 3}
    assert {row["user"] for row in rows} == counts.keys()
    assert any("user 'cold': no item that the model knows" in line for line in err)
    assert any("1 user(s) got fewer than 3 items and 1 none" in line for line in err)
