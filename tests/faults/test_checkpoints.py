"""What a training run leaves behind, and what becomes of it when it is resumed, damaged or old."""

import os
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import STUDENT, records, train, tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill_caser
import recommend
import train_caser
from caser import Caser
from recommender import Recommender
from support.checkpoint import records_path
from utils import UserError, pick_device

AUTHORS_KEYS = ("epoch_num", "state_dict", "optimizer")


@pytest.fixture
def path(tmp_path):
    """Where ``train`` leaves its checkpoint."""
    return tmp_path / "out" / "toy-caser-dim=6.pth.tar"


@pytest.fixture
def resume(command, path):
    """Go on with that checkpoint: (exit status, stdout, lines of stderr)."""
    return partial(command, train_caser.main, "--checkpoint", path)


# ------------------------------------------------------------------ what a run leaves behind


def test_log_records_checkpoint_and_evaluation(command, toy, tmp_path, path, resume):
    first, *epochs, last = train(command, toy, tmp_path, "--n_iter", 3).splitlines()
    device = f"seed 1234, {pick_device('auto')}"
    for word in ("toy: 12 users", "windows (L=3, T=1)", "all items ranked", device):
        assert word in first
    assert str(path) in last
    number = r"\d\.\d{4}"
    three = f"{number},{number},{number}"
    metrics = rf", map={number}, precisions={three}, recalls={three}, ndcgs={three}\[\d+\.\d s\]"
    for epoch, line in enumerate(epochs, 1):  # --eval_every 2, and the last
        wanted = rf"Epoch {epoch} \[\d+\.\d s\]\tloss={number}{metrics * (epoch > 1)}"
        assert re.fullmatch(wanted, line)

    header, *rows = records(path.with_name("toy-caser-dim=6.jsonl"))
    assert "epoch" not in header
    assert (header["script"], header["network"]) == ("train_caser.py", "caser")
    assert (header["flags"]["d"], header["flags"]["seed"], header["lists"]) == (6, 1234, None)
    assert (header["data_set"]["users"], header["device"]) == (12, device.split(", ")[1])
    assert header["commit"] is None or len(header["commit"].rstrip("+")) == 40
    assert header["versions"]["torch"] == torch.__version__
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    names = {f"{n}@{k}" for n in ("precision", "recall", "ndcg", "ndcg_paper") for k in (3, 5, 10)}
    assert rows[0].keys() == {"epoch", "loss", "train_seconds"}
    assert rows[1].keys() == rows[0].keys() | names | {"map", "eval_seconds"}

    checkpoint = torch.load(path, weights_only=True)
    assert (checkpoint["epoch_num"], checkpoint["architecture"]["L"]) == (3, 3)
    assert {*AUTHORS_KEYS, "config", "data", "metrics"} <= checkpoint.keys()
    assert checkpoint["run"] == header
    assert checkpoint["data"]["user_ids"].split("\n")[0] == "u0"
    assert set(path.parent.iterdir()) == {path, records_path(path)}

    before = tree(tmp_path)
    status, again, _ = resume("--evaluate")
    digits = re.search(r"map=[^\[]*", epochs[-1])[0]
    assert f"Evaluation\t{digits}, standard ndcgs=" in again
    assert (status, tree(tmp_path)) == (0, before)


def test_what_a_new_run_replaces_is_kept_where_it_was_another(command, toy, tmp_path, path):
    """A finished model was once lost to a run of other flags that was stopped in epoch 1."""
    for _ in range(2):
        train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path / "out")
    assert len(before) == 2  # the same again keeps nothing
    out = train(command, toy, tmp_path, "--n_iter", 1, "--seed", 5)
    kept = path.with_name("toy-caser-dim=6.old1.pth.tar")
    assert f"kept as {kept}" in out
    assert set(before.values()) < set(tree(tmp_path / "out").values())
    runs = [records(records_path(p))[0]["flags"] for p in (kept, path)]
    assert [flags["seed"] for flags in runs] == [1234, 5]
    assert torch.load(kept, weights_only=True)["epoch_num"] == 2
    assert [row["epoch"] for row in records(records_path(path))[1:]] == [1]
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    train(command, toy, tmp_path, "--n_iter", 1, "--seed", 5)
    assert len(tree(tmp_path / "out")) == 3 * len(before)


def test_neither_a_run_resumed_elsewhere_nor_a_kept_file_destroys_another(
    command, toy, tmp_path, path
):
    train(command, toy, tmp_path / "else", "--n_iter", 2, "--seed", 7)
    train(command, toy, tmp_path, "--n_iter", 1)
    other = tmp_path / "else" / "out"
    before = tree(other)
    (other / "toy-caser-dim=6.old1.jsonl").write_text("kept by hand\n")
    words = ["--checkpoint", path, "--n_iter", 2, "--output_dir", other]
    status, out, _ = command(train_caser.main, *words)
    assert status == 0
    assert f"kept as {other / 'toy-caser-dim=6.old2.pth.tar'}" in out
    assert {*before.values(), b"kept by hand\n"} <= set(tree(other).values())


def test_tensorboard_gets_the_numbers_of_the_records(command, toy, tmp_path, path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(command, toy, tmp_path, "--n_iter", 2, "--tensorboard", tmp_path / "tb")
    rows = records(records_path(path))[1:]
    seen = EventAccumulator(str(tmp_path / "tb")).Reload()
    assert np.allclose([e.value for e in seen.Scalars("loss")], [row["loss"] for row in rows])
    assert np.allclose(seen.Scalars("map")[-1].value, rows[-1]["map"])


# ---------------------------------------------------------------------------- going on


def test_nothing_to_do(command, toy, tmp_path, resume):
    train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path)
    for flags in ([], ["--n_iter", 1], ["--n_iter", 2]):
        status, out, err = resume(*flags)
        assert (status, err) == (0, [])
        assert "nothing to do" in out
    assert tree(tmp_path) == before


def test_other_data_may_be_allowed_and_is_said(command, toy, tmp_path, resume):
    train(command, toy, tmp_path, "--n_iter", 1)
    toy.test.write_text(toy.test.read_text() + "u1 i1 1\n")
    status, out, _ = resume("--n_iter", 2)
    assert status == 0
    assert "not the rows that earlier epochs were evaluated on" in out
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    status, out, _ = resume("--evaluate", "--allow_other_data")
    assert status == 0
    assert "whose rows are not those of" in out
    assert "map=" in out
    before = tree(tmp_path)
    status, _, err = resume("--n_iter", 3, "--allow_other_data")
    assert (status, len(err)) == (2, 1)
    assert "goes on with the rows that it began with" in err[0]
    assert tree(tmp_path) == before


def reverse_users(path):
    """The same rows, another user first: users and items are numbered otherwise."""
    of_user = {}
    for line in path.read_text().splitlines(keepends=True):
        of_user.setdefault(line.split()[0], []).append(line)
    path.write_text("".join(line for lines in reversed(of_user.values()) for line in lines))


def test_users_and_items_are_found_by_their_ids(command, toy, tmp_path, resume, taught):
    """By their numbers once: MAP .6562 for .5833, and lists built the same way."""
    before = resume("--evaluate")[1]
    assert taught("--n_iter", 1)[0] == 0
    lists = lists_by_id(toy, taught.cache)
    reverse_users(toy.train)
    status, after, _ = resume("--evaluate")
    assert status == 0
    assert re.findall(r"map=[^\[]*", before) == re.findall(r"map=[^\[]*", after)
    status, out, _ = taught("--n_iter", 1)
    assert (status, out.count("rebuilding it")) == (0, 1)
    assert lists_by_id(toy, taught.cache) == lists
    status, _, err = resume("--n_iter", 3)  # its rows, but not in its order
    assert (status, len(err)) == (2, 1)
    assert "order" in err[0]
    toy.train.write_text("".join(toy.train.read_text().splitlines(keepends=True)[9:]))
    toy.train.write_text(toy.train.read_text() + "new strange 1\nnew i1 1\nnew i2 1\n")
    status, _, err = resume("--evaluate")
    assert (status, len(err)) == (2, 1)
    assert "'strange'; --allow_other_data" in err[0]
    status, out, _ = resume("--evaluate", "--allow_other_data")
    assert status == 0
    for words in (
        "whose rows are not those of",
        "1 user(s), e.g. 'new'",
        "1 item(s), e.g. 'strange'",
    ):
        assert words in out
    status, out, _ = taught("--n_iter", 1, "--allow_other_data")
    assert status == 0
    assert not any("strange" in items for items in lists_by_id(toy, taught.cache).values())


def lists_by_id(toy, cache):
    """The teacher's lists in original ids, by the user and the place of the window."""
    train = toy.load().train
    users, items = list(train.user_map), ["", *train.item_map]
    found = {}
    for user, row in zip(train.sequences.user_ids, np.load(cache), strict=True):
        key = users[user], sum(name == users[user] for name, _ in found)
        found[key] = tuple(items[item] for item in row)
    return found


OLD = Path(__file__).parent.parent / "old" / "toy-caser-dim=3.pth.tar"


def test_a_checkpoint_of_an_older_version_still_serves(command, toy, tmp_path):
    """Made of the toy data by the commit 7e4920b, after two epochs."""
    path = tmp_path / "out" / OLD.name
    path.parent.mkdir()
    shutil.copy(OLD, path)
    status, out, err = command(train_caser.main, "--evaluate", "--checkpoint", path, *toy.flags)
    assert (status, err) == (0, [])
    assert "map=0.1339," in out
    flags = ["--checkpoint", path, "--train_root", toy.train, "--top", 1]
    assert len(command(recommend.main, *flags)[1].splitlines()) == 1 + 12
    flags = [*toy.flags, *STUDENT, "--output_dir", tmp_path, "--teacher_model_path", path]
    assert command(distill_caser.main, *flags, "--n_iter", 1)[0] == 0
    torch.save(torch.load(path, weights_only=True) | {"step": 2}, tmp_path / "inside")
    words = [*toy.flags, "--n_iter", 3, "--checkpoint"]
    status, _, err = command(train_caser.main, *words, tmp_path / "inside")
    assert (status, len(err)) == (2, 1)
    assert "inside an epoch" in err[0]
    assert command(train_caser.main, *words, path)[0] == 0
    assert [row["epoch"] for row in records(records_path(path))[1:]] == [1, 2, 3]


def test_a_loss_that_is_not_finite_stops_the_run(command, toy, tmp_path, resume, monkeypatch):
    train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path)
    step, steps = Recommender._batch_loss, []

    def broken(self, rows):
        steps.append(rows)
        loss, regular_loss = step(self, rows)
        return (loss * torch.nan if len(steps) == 5 else loss), regular_loss

    monkeypatch.setattr(Recommender, "_batch_loss", broken)
    status, _, err = resume("--n_iter", 4)
    assert (status, len(err)) == (2, 1)
    assert "epoch 3, batch 5" in err[0]
    assert tree(tmp_path) == before


def prepared(rows, **options):
    model = Recommender(partial(Caser, L=3, d=6), **options)
    model.prepare(rows)
    return model


def test_divergence_is_caught_before_anything_is_saved(toy):
    rows = toy.load().train
    with pytest.raises(UserError, match="epoch 1, batch 1: the weights"):
        prepared(rows, learning_rate=1e38).fit(rows, save=lambda: pytest.fail("saved"))


def test_a_saved_optimizer_cannot_change_adam(toy):
    rows = toy.load().train
    model = prepared(rows, n_iter=1)
    model.fit(rows)
    state = model.state() | {"path": "file"}
    groups, moments = (state["optimizer"][key] for key in ("param_groups", "state"))
    names = [100 + name for name in groups[0]["params"]]
    groups[:] = [{"params": names, "amsgrad": True, "betas": "ab"}]
    state["optimizer"]["state"] = {100 + name: moment for name, moment in moments.items()}
    model.restore(state)
    model.n_iter = 2
    model.fit(rows)
    assert model.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def test_a_save_that_fails_keeps_the_old_checkpoint_and_no_gap_in_the_records(
    command, toy, tmp_path, path, resume, monkeypatch
):
    train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        status, _, err = resume("--n_iter", 4)
        assert (status, len(err)) == (2, 1)
        assert "toy-caser-dim=6.pth.tar: No space left" in err[0]
        assert tree(tmp_path) == before
    with monkeypatch.context() as patch:
        patch.setattr("support.checkpoint.write_records", killed)  # when the checkpoint is there
        assert resume("--n_iter", 4)[0] == 130
        assert records_path(path).read_bytes() == before[records_path(path)]
    assert "nothing to do" in resume("--n_iter", 3)[1]
    assert [row["epoch"] for row in records(records_path(path))[1:]] == [1, 2, 3]


# ------------------------------------------------------------------- old and damaged ones


def test_the_authors_checkpoint_goes_on_with_its_own_settings(command, toy, tmp_path, path, resume):
    train(command, toy, tmp_path, "--n_iter", 1, "--learning_rate", 0.004, "--l2", 0.002)
    whole = torch.load(path, weights_only=True)
    bare = {name: whole[name] for name in AUTHORS_KEYS}
    for name, value in bare["state_dict"].items():  # as one may save them
        bare["state_dict"][name] = torch.nn.Parameter(value)
    torch.save(bare, path, _use_new_zipfile_serialization=False)
    status, out, err = resume(*toy.flags, "--n_iter", 2)
    assert (status, err) == (0, [])
    for word in ("data", "drop", "ac_conv"):
        assert word in out
    config = torch.load(path, weights_only=True)["config"]
    assert (config["learning_rate"], config["l2"]) == (0.004, 0.002)


@pytest.mark.parametrize("junk", [None, -1, ["x", 1], {"a": torch.zeros(3)}], ids=str)
def test_junk_in_any_place_never_breaks(command, toy, tmp_path, path, resume, junk):
    train(command, toy, tmp_path, "--n_iter", 1)
    whole = torch.load(path, weights_only=True)
    flags = [*toy.flags, "--n_iter", 2]
    assert resume(*flags)[0] == 0
    dicts = ("config", "architecture", "data", "run")
    inner = [(key, name) for key in dicts for name in whole[key]]
    for place in [(key,) for key in whole] + inner:
        changed = {k: dict(v) if isinstance(v, dict) else v for k, v in whole.items()}
        holder = changed if len(place) == 1 else changed[place[0]]
        holder[place[-1]] = junk
        torch.save(changed, path)
        before = tree(tmp_path)
        status, _, err = resume(*flags)
        assert status in (0, 2), place
        assert len(err) == (status == 2), place
        assert status == 0 or tree(tmp_path) == before


FUZZ = settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))


@FUZZ
@given(st.data())
def test_damaged_bytes_never_break(command, toy, tmp_path, path, resume, data):
    whole = path.with_name("whole")
    if not whole.exists():
        train(command, toy, tmp_path, "--n_iter", 1)
        path.rename(whole)
    bad = bytearray(whole.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bad[: data.draw(st.sampled_from([len(bad), len(bad) - 1, len(bad) // 2, 3]))]
    path.write_bytes(bytes(bad))
    before = tree(tmp_path)
    status, _, err = resume("--evaluate")
    assert (status, len(err)) in ((0, 0), (2, 1))
    assert tree(tmp_path) == before


GOOD = [b"a x 1\na y 2\na z 3\nb x 1\nb y 2\n", b"a\tx\t1\r\na\ty\t1\r\nb\ty\t1\r\n"]
PIECES = [b"", b"a x 1\n", b"b y 2", b"a y\n", b"c z 1 5\n", b"user item\n", b"user item rating\n",
          b"a\tx\t1\n", b"a,x,1\n", b"\n", b"\r", b" ", b"\t", b",", b'"', b"1", b"nan", b"\x0b",
          b"\xef\xbb\xbf", b"\xff", b"\0", b"\xc3\xa9"]  # fmt: skip
odd = st.lists(st.sampled_from(PIECES), max_size=3).map(b"".join)
files = st.tuples(st.sampled_from(GOOD), odd, st.sampled_from(GOOD)).map(b"".join)
names = st.sampled_from(["--d", "--L", "--T", "--batch_size", "--drop", "--l2", "--nv", "--seed"])
values = st.sampled_from(["0", "1", "2", "7", "-1", "0.5", "nan", "x", ""])


@FUZZ
@given(files, files, st.lists(st.tuples(names, values), max_size=2))
def test_odd_files_and_flags_never_break(command, tmp_path_factory, one, two, flags):
    folder = tmp_path_factory.mktemp("odd")
    paths = folder / "train.txt", folder / "test.txt"
    for path, data in zip(paths, (one, two), strict=True):
        path.write_bytes(data)
    before = tree(folder)
    words = ["--train_root", paths[0], "--test_root", paths[1], "--output_dir", folder / "out"]
    words += ["--d", 4, "--n_iter", 1, *(word for flag in flags for word in flag)]
    status, _, err = command(train_caser.main, *words)
    assert (status, len(err)) in ((0, 0), (2, 1))
    after = tree(folder)
    assert {path: after[path] for path in before} == before
    assert len(after) - len(before) == (2 if status == 0 else 0)
