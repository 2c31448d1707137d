import contextlib
import csv
import io
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, tree, write_rows

import interactions
import recommend
import train_caser
from interactions import Interactions
from train_caser import Recommender
from utils import UserError

SMALL = ["--d", "6", "--n_iter", "1", "--batch_size", "16", "--L", "3"]


@pytest.fixture
def trained(command, toy, tmp_path):
    """The path of a checkpoint trained on toy."""
    status, _, err = command(train_caser.main, *toy.flags, *SMALL, "--output_dir", tmp_path / "out")
    assert (status, err) == (0, [])
    return tmp_path / "out" / "toy-caser-dim=6.pth.tar"


def slow_best(path, window, user, seen, top):
    """The obvious version: score every item by itself, sort, leave out what was seen."""
    model = recommend.TrainedModel(path)
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


def histories_of(path):
    rows = Interactions(path)
    users, items = list(rows.user_map), [None, *rows.item_map]
    found = {user: [] for user in users}
    for user, item in zip(rows.user_ids, rows.item_ids, strict=True):
        found[users[user]].append(items[item])
    return found


def read_tsv(path):
    return list(csv.DictReader(path.open(), delimiter="\t"))


@pytest.mark.parametrize("seen", [[], ["--include_seen"]], ids=["without seen", "with seen"])
def test_every_user_gets_what_the_slow_version_gives(command, toy, tmp_path, trained, seen):
    out = tmp_path / "recs.tsv"
    flags = ["--checkpoint", trained, "--top", 5, "--output", out, *seen]
    status, text, err = command(recommend.main, *flags)
    assert (status, err) == (0, [])
    assert str(out) in text
    rows = read_tsv(out)
    assert list(rows[0]) == ["user", "item", "rank", "score"]
    histories = histories_of(toy.train)
    assert list(dict.fromkeys(row["user"] for row in rows)) == list(histories)
    for user, items in histories.items():
        mine = [row for row in rows if row["user"] == user]
        wanted = slow_best(trained, items, user, () if seen else items, 5)
        assert [row["item"] for row in mine] == [item for item, _ in wanted]
        assert [row["rank"] for row in mine] == [str(n) for n in range(1, len(mine) + 1)]
        assert np.allclose([float(row["score"]) for row in mine], [s for _, s in wanted], atol=1e-5)


def test_blocks_do_not_matter(command, tmp_path, trained, monkeypatch):
    texts = []
    for block in (1, 1 << 22):
        monkeypatch.setattr(recommend, "BLOCK", block)
        monkeypatch.setattr(recommend, "ROWS_AT_ONCE", block)
        command(recommend.main, "--checkpoint", trained, "--output", tmp_path / "recs.tsv")
        texts.append(read_tsv(tmp_path / "recs.tsv"))
    for one, many in zip(*texts, strict=True):
        assert [one[k] for k in ("user", "item", "rank")] == [
            many[k] for k in ("user", "item", "rank")
        ]


def test_formats_hold_the_same(command, tmp_path, trained):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    for ending in ("tsv", "csv", "jsonl", "parquet"):
        command(recommend.main, "--checkpoint", trained, "--output", tmp_path / f"r.{ending}")
    by_tsv = [
        (row["user"], row["item"], int(row["rank"]), float(row["score"]))
        for row in read_tsv(tmp_path / "r.tsv")
    ]
    by_csv = [
        (row["user"], row["item"], int(row["rank"]), float(row["score"]))
        for row in csv.DictReader((tmp_path / "r.csv").open())
    ]
    lines = (tmp_path / "r.jsonl").read_text().splitlines()
    assert [tuple(json.loads(line).values()) for line in lines] == by_tsv == by_csv
    by_parquet = [
        tuple(row.values()) for row in pyarrow.read_table(tmp_path / "r.parquet").to_pylist()
    ]
    assert [row[:3] for row in by_parquet] == [row[:3] for row in by_tsv]


def test_chosen_users_in_their_order(command, tmp_path, trained):
    status, out, _ = command(
        recommend.main, "--checkpoint", trained, "--users", "u3,u1", "--top", 1
    )
    assert status == 0
    assert [line.split("\t")[0] for line in out.splitlines()] == ["user", "u3", "u1"]
    (tmp_path / "ids").write_text("u5\n\nu2\n")
    _, out, _ = command(
        recommend.main, "--checkpoint", trained, "--users", tmp_path / "ids", "--top", 1
    )
    assert [line.split("\t")[0] for line in out.splitlines()] == ["user", "u5", "u2"]


def test_a_history_of_ones_own(command, tmp_path, trained):
    history = write_rows(
        tmp_path / "history.txt",
        [("new", "i1"), ("u3", "i2"), ("new", "strange"), ("new", "i4"), ("u3", "i5")],
    )
    status, out, err = command(
        recommend.main, "--checkpoint", trained, "--history", history, "--top", 4
    )
    assert status == 0
    assert any("strange" in line and "dropped" in line for line in err)
    assert any("mean" in line and "new" in line for line in err)
    rows = list(csv.DictReader(out.splitlines(), delimiter="\t"))
    assert {(row["user"], row["embedding"]) for row in rows} == {("new", "mean"), ("u3", "own")}
    for user, items in {"new": ["i1", "i4"], "u3": ["i2", "i5"]}.items():
        mine = [row["item"] for row in rows if row["user"] == user]
        assert mine == [item for item, _ in slow_best(trained, items, user, items, 4)]
    flags = ["--checkpoint", trained, "--sequence", "i2,i5", "--users", "u3", "--top", 4]
    status, out, err = command(recommend.main, *flags)
    assert (status, err) == (0, [])
    assert [line.split("\t")[:3] for line in out.splitlines()[1:]] == [
        [row["user"], row["item"], row["rank"]] for row in rows if row["user"] == "u3"
    ]


def test_the_call_gives_what_the_command_gives(trained):
    model = Recommender.load(trained)
    best = model.recommend([["i1", "i4"], ["i2", "i5"]], users=[None, "u3"], top=4)
    for found, (user, items) in zip(
        best, ((None, ["i1", "i4"]), ("u3", ["i2", "i5"])), strict=True
    ):
        wanted = slow_best(trained, items, user, items, 4)
        assert [item for item, _ in found] == [item for item, _ in wanted]
        assert np.allclose([s for _, s in found], [s for _, s in wanted], atol=1e-5)
    everything = len(model.item_map)
    assert len(model.recommend([["i1"]], top=10**6)[0]) == everything - 1
    assert len(model.recommend([["i1"]], top=10**6, include_seen=True)[0]) == everything


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ([], "--checkpoint"),
        (["--checkpoint", "nowhere"], "nowhere"),
        (["--top", "0"], "--top"),
        (["--top", "100000"], "--top"),
        (["--output", "recs.xls"], ".parquet"),
        (["--users", "nobody"], "nobody"),
        (["--users", ","], "--users"),
        (["--sequence", "strange"], "--sequence: no item"),
        (["--sequence", ","], "names no item"),
        (["--sequence", "i1", "--users", "u1,u2"], "--users"),
        (["--sequence", "i1", "--dataset", "toy"], "--dataset"),
        (["--train_root", "x", "--dataset", "toy"], "--dataset"),
        (["--checkpoint", "nowhere", "--output", "new/recs.tsv"], "nowhere"),
        (["--history", "nowhere"], "nowhere"),
        (["--history", "x", "--sequence", "i1"], "--history"),
        (["--dataset", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_bad_input_is_one_line(command, tmp_path, trained, monkeypatch, flags, word):
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    own = ["--checkpoint", trained] if flags and "--checkpoint" not in flags else []
    status, out, err = command(recommend.main, *own, *flags)
    assert (status, len(err)) == (2, 1)
    assert word in err[0]
    assert (out, tree(tmp_path)) == ("", before)
    assert not (tmp_path / "new").exists()


def test_what_is_read_is_never_replaced(command, toy, tmp_path, trained):
    history = write_rows(tmp_path / "history.tsv", [("u1", "i1")])
    ids = tmp_path / "ids.csv"
    ids.write_text("u1\n")
    train = toy.train.rename(toy.train.with_suffix(".tsv"))
    before = tree(tmp_path)
    records = trained.with_name("toy-caser-dim=6.jsonl")
    for flag, path in (("--history", history), ("--users", ids), ("--train_root", train),
                       ("--sequence", records)):  # fmt: skip
        flags = ["--checkpoint", trained, flag, path, "--output", path]
        status, _, err = command(recommend.main, *flags)
        assert (status, len(err)) == (2, 1)
        assert str(path) in err[0]
    assert tree(tmp_path) == before
    assert command(recommend.main, "--checkpoint", trained, "--train_root", train)[0] == 0


def test_ids_that_look_like_something_else(command, tmp_path):
    """A user called None is not somebody new; quotes and commas come out as they went in."""
    users = ["None", "sequence", 'a"b', "c,d", "3"]
    rows = [(user, f"i{n}") for user in users for n in range(len(user), len(user) + 12)]
    train = write_rows(tmp_path / "toy" / "test" / "train.txt", rows)
    flags = ["--train_root", train, "--test_root", train, "--output_dir", tmp_path]
    assert command(train_caser.main, *flags, *SMALL)[0] == 0
    path = tmp_path / "toy-caser-dim=6.pth.tar"
    model = Recommender.load(path)
    new, named, unknown = model.recommend([["i5"]] * 3, [None, "None", "x"], 3)
    assert new == unknown != named
    out = command(recommend.main, "--checkpoint", path, "--sequence", "i5", "--top", 3)[1]
    rows = [line.split("\t") for line in out.splitlines()[1:]]
    assert [(row[0], row[1], row[4]) for row in rows] == [("sequence", i, "mean") for i, _ in new]
    for chosen in (users, ["c,d"]):
        flags = ["--users", chosen[0]] if len(chosen) == 1 else []
        out = command(recommend.main, "--checkpoint", path, "--top", 1, *flags)[1]
        assert [line.split("\t")[0] for line in out.splitlines()[1:]] == chosen


def test_odd_arguments_of_the_call(trained):
    model = Recommender.load(trained)
    assert model.recommend([]) == []
    for arguments, word in (
        ((["i1", "i2"],), "lists"),
        (([["i1"], ["i2"]], "u1"), "users"),
        (([["i1"]], ["u1", "u2"]), "2 users"),
        (([["i1"]], None, 0), "top=0"),
        (([["i1"]], None, 2.5), "top=2.5"),
        (([["i1"]], None, True), "top=True"),
        (([["i1"], ["strange"]],), "sequence 1"),
    ):
        with pytest.raises(UserError, match=word):
            model.recommend(*arguments)


@pytest.mark.parametrize("ids", [["u1"] * 12, None], ids=["repeated", "missing"])
def test_a_checkpoint_that_does_not_tell_its_ids_is_refused(command, trained, ids):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["data"]["user_ids"] = "\n".join(ids) if ids else None
    torch.save(checkpoint, trained)
    status, _, err = command(recommend.main, "--checkpoint", trained, "--sequence", "i1")
    assert (status, len(err)) == (2, 1)
    assert "does not tell the ids" in err[0]


@pytest.mark.parametrize("name", ["dataset", "split", "train_root"])
def test_a_checkpoint_with_odd_flags_is_refused(command, trained, name):
    checkpoint = torch.load(trained, weights_only=True)
    checkpoint["config"][name] = 5
    torch.save(checkpoint, trained)
    status, _, err = command(recommend.main, "--checkpoint", trained)
    assert (status, len(err)) == (2, 1)
    assert f"its {name} is no text" in err[0]


def test_ids_are_written_as_they_were_in_any_locale(tmp_path, command):
    """Standard output had escapes once; a space that divides no columns was stripped."""
    pairs = [(user, item) for user in range(6) for item in range(user, user + 9)]
    rows = [(f"用户{user}\u00a0", f"é{item}\u3000") for user, item in pairs]
    train = write_rows(tmp_path / "toy" / "test" / "train.txt", rows)
    flags = ["--train_root", train, "--test_root", train, "--output_dir", tmp_path]
    assert command(train_caser.main, *flags, *SMALL)[0] == 0
    (tmp_path / "who").write_text("用户1\u00a0\n")
    path = tmp_path / "toy-caser-dim=6.pth.tar"
    words = ["--checkpoint", path, "--top", 1, "--users", tmp_path / "who"]
    done = subprocess.run(
        [sys.executable, ROOT / "recommend.py", *map(str, words)], capture_output=True,
        env=os.environ | {"PYTHONIOENCODING": "latin-1"}, check=True,
    )  # fmt: skip
    user, item, *_ = done.stdout.decode().splitlines()[1].split("\t")
    assert user == "用户1\u00a0"
    assert item in {name for _, name in rows}
    assert command(recommend.main, *words[:4], "--sequence", "é1\u3000,é2\u3000")[0] == 0


def test_nothing_but_rows_is_on_standard_output(tmp_path, command, monkeypatch):
    """A data set that is prepared on the way says so elsewhere."""
    rows = [(user, item) for user in (0, 1) for item in range(user, user + 9)]
    train = write_rows(tmp_path / "ml-100k" / "test" / "train.txt", rows)
    flags = ["--train_root", train, "--test_root", train, "--output_dir", tmp_path]
    assert command(train_caser.main, *flags, *SMALL)[0] == 0
    monkeypatch.chdir(tmp_path)

    def prepare(words, stdout):
        assert stdout == 2
        (tmp_path / "ml-100k").rename(tmp_path / "datasets" / "ml-100k")
        return SimpleNamespace(returncode=0)

    (tmp_path / "datasets").mkdir()
    monkeypatch.setattr(interactions.subprocess, "run", prepare)
    words = ["--checkpoint", tmp_path / "ml-100k-caser-dim=6.pth.tar", "--dataset", "ml-100k"]
    status, out, err = command(recommend.main, *words, "--top", 1)
    assert (status, err) == (0, [])
    assert len(out.splitlines()) == 3


def test_standard_output_that_is_closed(trained, tmp_path):
    words = [sys.executable, ROOT / "recommend.py", "--checkpoint", trained, "--sequence", "i1"]
    line = f"{shlex.join(map(str, words))} >&-"
    done = subprocess.run(["sh", "-c", line], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")


def test_other_rows_than_the_trained_are_refused(command, toy, trained):
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    status, _, err = command(recommend.main, "--checkpoint", trained)
    assert (status, len(err)) == (2, 1)
    assert "--history" in err[0]


def test_without_pyarrow_one_line_says_what_to_do(command, tmp_path, trained, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    status, _, err = command(
        recommend.main, "--checkpoint", trained, "--output", tmp_path / "r.parquet"
    )
    assert (status, len(err)) == (2, 1)
    assert "pip install pyarrow" in err[0]


def test_tensorboard_gets_the_numbers_of_the_records(command, toy, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [*toy.flags, *SMALL, "--output_dir", tmp_path / "o", "--tensorboard", tmp_path / "tb"]
    status, _, err = command(train_caser.main, *flags, "--n_iter", 2)
    assert (status, err) == (0, [])
    lines = (tmp_path / "o" / "toy-caser-dim=6.jsonl").read_text().splitlines()[1:]
    seen = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert np.allclose(
        [e.value for e in seen.Scalars("loss")], [json.loads(x)["loss"] for x in lines]
    )
    assert np.allclose(seen.Scalars("map")[-1].value, json.loads(lines[-1])["map"])


def test_without_tensorboard_one_line_says_what_to_do(command, toy, tmp_path, monkeypatch):
    monkeypatch.setattr("utils.importlib.util.find_spec", lambda name: None)
    status, _, err = command(
        train_caser.main, *toy.flags, "--output_dir", tmp_path / "o", "--tensorboard", tmp_path
    )
    assert (status, len(err)) == (2, 1)
    assert "pip install tensorboard" in err[0]
    assert not (tmp_path / "o").exists()


def own_data_section():
    text = (ROOT / "README.md").read_text("utf-8")
    return text[text.index("## Use it on your own data") :].split("\n## ")[0]


def test_the_readme_s_way_from_a_csv_to_recommendations(tmp_path, monkeypatch, command):
    rng = np.random.default_rng(0)
    with open(tmp_path / "ratings.csv", "w") as file:
        file.write("userId,movieId,rating,timestamp\n")
        for user in range(40):
            for time, item in enumerate(rng.permutation(30)[:20]):
                file.write(f"{user},{item},5,{time}\n")
    monkeypatch.chdir(tmp_path)
    section = own_data_section()
    commands = re.findall(r"(?m)^    python (.+)$", section)
    assert len(commands) >= 5
    for text in commands:
        script, *words = shlex.split(text)
        if script.endswith("prepare.py"):
            words += ["--output_dir", "datasets"]
        if script.endswith("_caser.py"):
            words += ["--n_iter", "2"]
        status, _, err = command(runpy.run_path(str(ROOT / script))["main"], *words)
        assert (status, [line for line in err if "error" in line]) == (0, []), text
    assert len(read_tsv(tmp_path / "recs.tsv")) == 40 * 10
    example = re.search(r"```python\n(.+?)```", section, re.DOTALL)[1]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(example, {})
    assert out.getvalue().count("\n") == 10
