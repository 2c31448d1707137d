import contextlib
import json
import os
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tree, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train import assert_same_weights, records, train, weights

import distill_caser
import train_caser
from caser import Caser
from distill_caser import DistilledRecommender, teacher_lists
from interactions import DataSet
from utils import UserError

STUDENT = ["--d", 4, "--L", 3, "--batch_size", 16, "--eval_every", 2, "--teacher_model_dim", 6,
           "--K", 5, "--dynamic_start_epoch", 1]  # fmt: skip


@pytest.fixture
def taught(command, toy, tmp_path):
    """A trained teacher in tmp_path/out; distils with flags: (status, stdout, stderr lines)."""
    train(command, toy, tmp_path, "--n_iter", 2)

    def distill(*flags, out="out"):
        paths = ["--output_dir", tmp_path / out]
        if out != "out":
            paths += ["--teacher_model_path", tmp_path / "out" / "toy-caser-dim=6.pth.tar"]
        return command(distill_caser.main, *toy.flags, *STUDENT, *paths, *flags)

    distill.teacher = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    distill.cache = tmp_path / "out" / "toy-teacher-dim=6-top=5.npy"
    distill.student = tmp_path / "out" / "toy-caser-dim=4-rd.pth.tar"
    return distill


def loaded(toy, L=3, T=1):
    return DataSet.load("toy", toy.train, toy.test, L, T)


# ------------------------------------------------------------------------ the lists


@pytest.mark.parametrize("exclude", ["target", "observed"])
@pytest.mark.parametrize(("T", "block"), [(1, 1 << 22), (2, 100)])
def test_lists_equal_the_slow_version(toy, monkeypatch, exclude, T, block):
    monkeypatch.setattr(distill_caser, "BLOCK", block)
    data = loaded(toy, 3, T)
    torch.manual_seed(0)
    net = Caser(data.train.num_users, data.train.num_items, L=3, d=6)
    net.b2.weight.data[0] = 1000  # padding scores best and still is in no list
    lists = teacher_lists(net, data.train, 5, exclude)
    assert lists.dtype == np.int32
    windows, seen = data.train.sequences, data.train.tocsr()
    for row, user in enumerate(windows.user_ids):
        with torch.no_grad():
            scores = net.score_all(
                torch.from_numpy(windows.sequences[row : row + 1]), torch.tensor([user])
            )[0].tolist()
        out = set(seen[user].indices) if exclude == "observed" else set(windows.targets[row])
        best = sorted(set(range(1, len(scores))) - out, key=lambda item: -scores[item])[:5]
        assert lists[row].tolist() == best


def test_K_is_bounded_by_what_can_fill_a_list(taught, toy, tmp_path):
    items = loaded(toy).train.num_items - 1
    before = tree(tmp_path)
    status, _, err = taught("--K", items)
    assert (status, len(err)) == (2, 1)
    assert f"[1, {items - 1}]" in err[0]
    status, _, err = taught("--K", 20, "--teacher_exclude", "observed")
    assert (status, len(err)) == (2, 1)
    assert "longest history" in err[0]
    assert tree(tmp_path) == before
    assert taught("--K", items - 1, "--n_iter", 1)[0] == 0


# ------------------------------------------------------------------------- whole runs


def test_log_cache_records_and_student(taught, command, tmp_path):
    status, out, err = taught("--n_iter", 3)
    assert (status, err) == (0, [])
    lines = out.splitlines()
    assert re.match(r"Teacher \(d=6\)\tmap=0\.\d{4}, precisions=", lines[1])
    number = r"\d+\.\d{4}"
    line = (
        rf"Epoch 2 \[\d+\.\d s\]\tloss={number}, regular_loss={number}, map={number}, precisions="
    )
    assert any(re.match(line, text) for text in lines)
    rows = records(taught.student.with_name("toy-caser-dim=4-rd.jsonl"))[1:]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] > row["regular_loss"] > 0 for row in rows)
    lists = np.load(taught.cache)
    assert lists.dtype == np.int32
    made_from = json.loads(Path(f"{taught.cache}.json").read_text())
    assert (made_from["K"], made_from["L"], made_from["exclude"]) == (5, 3, "target")
    for main in (train_caser.main, distill_caser.main):
        status, again, _ = command(main, "--evaluate", "--checkpoint", taught.student)
        assert status == 0
        assert re.findall(r"map=\S+", out)[-1] == re.findall(r"map=\S+", again)[-1]


def test_resumed_distillation_equals_the_uninterrupted_one(taught, command, tmp_path):
    assert taught("--n_iter", 4, out="whole")[0] == 0
    assert taught("--n_iter", 2)[0] == 0
    status, _, err = command(train_caser.main, "--checkpoint", taught.student, "--n_iter", 4)
    assert (status, len(err)) == (2, 1)
    assert "distill_caser.py" in err[0]
    assert command(distill_caser.main, "--checkpoint", taught.student, "--n_iter", 4)[0] == 0
    assert_same_weights(tmp_path / "whole" / taught.student.name, taught.student)


def test_resuming_with_another_teacher_is_refused_before_anything_changes(
    taught, command, toy, tmp_path
):
    assert taught("--n_iter", 2)[0] == 0
    train(command, toy, tmp_path, "--n_iter", 1, "--seed", 9)  # replaces the teacher
    before = tree(tmp_path)
    status, _, err = command(distill_caser.main, "--checkpoint", taught.student, "--n_iter", 4)
    assert (status, len(err)) == (2, 1)
    assert "another teacher" in err[0]
    assert "--teacher_model_path" in err[0]
    assert tree(tmp_path) == before


def test_a_student_never_replaces_its_teacher(taught, tmp_path):
    assert taught("--n_iter", 1)[0] == 0
    before = tree(tmp_path)
    status, _, err = taught("--teacher_model_path", taught.student)
    assert (status, len(err)) == (2, 1)
    assert "--output_dir" in err[0]
    assert tree(tmp_path) == before


CHANGES = {
    "teach_alpha": 3, "lamda": 9, "mu": 0.01, "dynamic_samples": 7, "num_dynamic_samples": 7,
    "dynamic_start_epoch": 2, "K": 4, "teacher_exclude": "observed", "weights": "uniform",
    "hybrid_weight": "normalized",
}  # fmt: skip


@pytest.mark.parametrize("flag", CHANGES)
def test_every_flag_reaches_the_model(taught, tmp_path, flag):
    assert taught("--n_iter", 3, out="a")[0] == 0
    assert taught("--n_iter", 3, f"--{flag}", CHANGES[flag], out="b")[0] == 0
    first, second = (weights(tmp_path / x / taught.student.name) for x in "ab")
    assert not torch.equal(first["W2.weight"], second["W2.weight"])


# ---------------------------------------------------------------------------- weights


def weight_of(toy, epoch=5, lists=None, **options):
    """w (B, K) of the first windows for made-up scores, and the model that gave it."""
    data = loaded(toy)
    if lists is None:
        lists = np.tile(np.arange(1, 5, dtype=np.int32), (len(data.train.sequences.user_ids), 1))
    model = DistilledRecommender(partial(Caser, L=3, d=4), lists, mu=0.5, **options)
    torch.manual_seed(0)
    model.prepare(data.train)
    model.epoch_num = epoch - 1
    rows = torch.arange(6)
    users, items = model.users[rows], model.more_items(rows)
    x = model.net.represent(model.sequences[rows], users)
    scores = model.net.score(x, items)
    return model._weight(rows, users, x, items, scores), model


def test_weights_of_table_4(toy):
    options = {"dynamic_start_epoch": 2, "lamda": 1.0}
    position, _ = weight_of(toy, weights="position", **options)
    uniform, _ = weight_of(toy, weights="uniform", **options)
    hybrid, _ = weight_of(toy, weights="hybrid", **options)
    discrepancy, _ = weight_of(toy, weights="discrepancy", **options)
    normal, _ = weight_of(toy, weights="hybrid", hybrid_weight="normalized", **options)
    raw = np.exp(-np.arange(1, 5))
    assert position.tolist() == [pytest.approx(raw / raw.sum())] * 6
    assert uniform.tolist() == [[0.25] * 4] * 6
    w_b = discrepancy * 4
    assert ((w_b >= 0) & (w_b <= 1)).all()
    assert w_b.unique().numel() > 3
    assert torch.allclose(hybrid, position * w_b)
    assert torch.allclose(normal.sum(1), (hybrid.sum(1) > 0).float())
    for name, early in (("hybrid", position), ("discrepancy", uniform)):
        assert torch.equal(weight_of(toy, epoch=2, weights=name, **options)[0], early)
        assert not torch.equal(weight_of(toy, epoch=3, weights=name, **options)[0], early)


def test_padding_in_a_list_weighs_nothing(toy):
    rows = len(loaded(toy).train.sequences.user_ids)
    lists = np.tile(np.array([3, 0, 5, 0], dtype=np.int32), (rows, 1))
    for weights_name in ("hybrid", "position", "uniform", "discrepancy"):
        for epoch in (1, 20):
            weight, _ = weight_of(toy, epoch, lists, weights=weights_name)
            assert (weight[:, [1, 3]] == 0).all()
            assert (weight[:, [0, 2]] >= 0).all()


# ------------------------------------------------------------------------------ cache


def test_cache_is_used_again_and_a_stale_one_is_rebuilt(taught, command, toy, tmp_path):
    assert "saved the teacher's top-5 lists" in taught("--n_iter", 1)[1]
    assert "saved the teacher's" not in taught("--n_iter", 1)[1]
    for change, word in (
        (["--teacher_exclude", "observed"], "exclude target"),
        (["--T", 2], "its shape"),
    ):
        status, out, _ = taught("--n_iter", 1, *change)
        assert status == 0
        assert word in out
        assert out.count("rebuilding it") == 1
        assert taught("--n_iter", 1)[0] == 0  # and back again
    train(command, toy, tmp_path, "--n_iter", 2, "--seed", 8)
    status, out, _ = taught("--n_iter", 1)
    assert status == 0
    assert "another teacher" in out


def damage(path):
    data = path.read_bytes()
    yield data[: len(data) // 2]
    yield b""
    yield b"PK\3\4 a zip"
    yield data[:-4] + b"\1\0\0\0"  # right shape and range, other lists


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_caches_never_break(tmp_path_factory, data):
    """load_or_build_lists gives the right lists or a UserError, whatever bytes are damaged."""
    path = tmp_path_factory.mktemp("cache") / "lists.npy"
    lists = np.arange(1, 13, dtype=np.int32).reshape(4, 3)
    made_from = {"K": 3, "teacher": "t"}
    load = partial(distill_caser.load_or_build_lists, path, True, made_from, (4, 3), 20)
    load(lambda: lists)
    target = data.draw(st.sampled_from([path, Path(f"{path}.json")]))
    bad = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    target.write_bytes(bytes(bad))
    with contextlib.suppress(UserError):
        assert np.array_equal(load(lambda: 1 / 0)[0], lists)
    assert target.read_bytes() == bytes(bad)


@pytest.mark.parametrize("case", range(4))
def test_a_damaged_cache_is_rebuilt_or_refused(taught, case):
    assert taught("--n_iter", 1)[0] == 0
    whole = taught.cache.read_bytes()
    bad = list(damage(taught.cache))[case]
    taught.cache.write_bytes(bad)
    status, _, err = taught("--n_iter", 1, "--teacher_topk_path", taught.cache)
    assert (status, len(err)) == (2, 1)
    assert taught.cache.name in err[0]
    assert taught.cache.read_bytes() == bad
    status, out, _ = taught("--n_iter", 1)
    assert status == 0
    assert "rebuilding it" in out
    assert taught.cache.read_bytes() == whole


def test_a_named_cache_is_built_where_it_is_missing_and_refused_when_stale(taught, tmp_path):
    path = tmp_path / "elsewhere" / "lists.npy"
    assert taught("--n_iter", 1, "--teacher_topk_path", path)[0] == 0
    assert path.exists()
    assert Path(f"{path}.json").exists()
    before = tree(tmp_path)
    status, _, err = taught("--teacher_topk_path", path, "--teacher_exclude", "observed")
    assert (status, len(err)) == (2, 1)
    assert "exclude target, this run has observed" in err[0]
    assert tree(tmp_path) == before


def test_somebody_elses_description_is_not_overwritten(taught, tmp_path):
    (tmp_path / "mine.npy.json").write_text('{"precious": 1}')
    before = tree(tmp_path)
    status, _, err = taught("--n_iter", 1, "--teacher_topk_path", tmp_path / "mine.npy")
    assert (status, len(err)) == (2, 1)
    assert tree(tmp_path) == before


@pytest.mark.parametrize("named", [True, False])
def test_killed_between_the_cache_and_its_description(taught, monkeypatch, tmp_path, named):
    """Lists without a description would pass for the authors'; they are never left alone."""
    flags = ["--teacher_topk_path", tmp_path / "out" / "named.npy"] if named else []

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(distill_caser.np, "save", killed)
    assert taught("--n_iter", 1, *flags)[0] == 130
    assert not list((tmp_path / "out").glob("*.npy"))
    monkeypatch.undo()
    assert taught("--n_iter", 1, *flags)[0] == 0


def test_the_authors_bare_cache_is_accepted_with_what_it_could_not_say(taught, tmp_path):
    assert taught("--n_iter", 1)[0] == 0
    lists = np.load(taught.cache).astype(np.int64)
    lists[0, 2] = lists[3, 0] = 0
    path = tmp_path / "bare.npy"
    np.save(path, lists)
    status, out, _ = taught("--n_iter", 1, "--teacher_topk_path", path)
    assert status == 0
    assert "2 of its lists hold padding" in out
    for wrong in (lists[:-1], lists[:, :4], lists + 1000, lists * 1.0, -lists):
        np.save(path, wrong)
        status, _, err = taught("--n_iter", 1, "--teacher_topk_path", path)
        assert (status, len(err)) == (2, 1)


def test_a_hostile_cache_runs_nothing(taught, tmp_path):
    target = tmp_path / "made-by-attack"

    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(target),)

    path = tmp_path / "bad.npy"
    np.save(path, np.array([Hostile()], dtype=object), allow_pickle=True)
    status, _, err = taught("--n_iter", 1, "--teacher_topk_path", path)
    assert (status, len(err)) == (2, 1)
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (1000000000000, 5), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    status, _, err = taught("--n_iter", 1, "--teacher_topk_path", path)
    assert (status, len(err)) == (2, 1)
    assert not target.exists()


# ---------------------------------------------------------------------------- teacher


def test_a_missing_teacher_is_refused(command, toy, tmp_path):
    flags = [*toy.flags, *STUDENT, "--output_dir", tmp_path / "out"]
    for more in ([], ["--teacher_model_path", tmp_path / "nowhere.pth.tar"]):
        status, _, err = command(distill_caser.main, *flags, *more)
        assert (status, len(err)) == (2, 1)
        assert "no such teacher" in err[0]
    assert not (tmp_path / "out").exists()


def test_a_teacher_of_another_L_or_other_data_is_refused(taught, toy, tmp_path):
    before = tree(tmp_path)
    status, _, err = taught("--L", 4)
    assert (status, len(err)) == (2, 1)
    assert "use --L 3" in err[0]
    assert tree(tmp_path) == before
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    status, _, err = taught()
    assert (status, len(err)) == (2, 1)
    assert "--allow_other_data" in err[0]
    status, out, _ = taught("--allow_other_data", "--n_iter", 1)
    assert status == 0
    assert "Teacher" in out


def test_the_authors_bare_checkpoint_is_a_teacher(taught, tmp_path):
    checkpoint = torch.load(taught.teacher, weights_only=True)
    bare = {name: checkpoint[name] for name in ("epoch_num", "state_dict", "optimizer")}
    path = tmp_path / "bare.pth.tar"
    torch.save(bare, path, _use_new_zipfile_serialization=False)
    status, out, err = taught("--n_iter", 1, "--teacher_model_path", path)
    assert (status, err) == (0, [])
    assert "tells nothing of its data" in out
    whole = taught("--n_iter", 1)[1]
    assert re.findall(r"Teacher.*map=\S+", out) == re.findall(r"Teacher.*map=\S+", whole)


def test_the_student_learns_its_teachers_list(tmp_path):
    """With no signal in the data but the lists, the student ranks the listed items first."""
    rng = np.random.default_rng(0)
    rows = [(user, item) for user in range(40) for item in rng.permutation(30)[:8]]
    data = DataSet.load(
        "noise", write_rows(tmp_path / "a", rows), write_rows(tmp_path / "b", rows[:1]), 3, 1
    )
    favourites = [5, 9, 17]
    lists = np.tile(np.array(favourites, dtype=np.int32), (len(data.train.sequences.user_ids), 1))
    torch.manual_seed(0)
    options = {"n_iter": 15, "batch_size": 32, "learning_rate": 1e-2, "teach_alpha": 20.0}
    network = partial(Caser, L=3, d=8, drop=0)
    model = DistilledRecommender(network, lists, weights="uniform", **options)
    model.prepare(data.train)
    model.fit(data.train)
    with torch.no_grad():
        scores = model.net.eval().score_all(model.sequences, model.users)
    scores[:, 0] = -torch.inf
    assert (
        scores.topk(3).indices.sort(1).values == torch.tensor(favourites)
    ).double().mean() > 0.95


def test_restoring_needs_the_same_lists(taught, toy):
    data = loaded(toy)
    lists = np.ones((len(data.train.sequences.user_ids), 5), dtype=np.int32)
    make = partial(DistilledRecommender, partial(Caser, L=3, d=4), lists, n_iter=1)
    first = make(made_from={"teacher": "a"})
    first.prepare(data.train)
    first.fit(data.train)
    for made_from, difference in (({"teacher": "b"}, "another teacher"), ({}, "another origin")):
        other = make(made_from=made_from)
        other.prepare(data.train)
        with pytest.raises(UserError, match=difference):
            other.restore(first.state() | {"path": "file"})


def test_accepting_other_data_is_said(taught, toy):
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    status, out, _ = taught("--allow_other_data", "--n_iter", 1)
    assert status == 0
    assert "whose rows are not those of" in out


def test_an_owner_of_everything_does_not_forbid_distilling(taught, command, toy, tmp_path):
    items = sorted({line.split()[1] for line in toy.train.read_text().splitlines()})
    toy.train.write_text(toy.train.read_text() + "".join(f"all {item}\n" for item in items))
    text = toy.train.read_text().replace(" 1\n", "\n")
    toy.train.write_text(text)
    train(command, toy, tmp_path, "--n_iter", 1)
    status, out, _ = taught("--n_iter", 1, "--teacher_exclude", "observed")
    assert status == 0
    assert "'all'" in out


def test_a_bare_teachers_activations_are_part_of_what_lists_are_made_from(taught, tmp_path):
    whole = torch.load(taught.teacher, weights_only=True)
    bare = {name: whole[name] for name in ("epoch_num", "state_dict", "optimizer")}
    torch.save(bare, taught.teacher)
    assert taught("--n_iter", 1)[0] == 0
    assert (
        "activations iden, sigm, this run has relu, sigm"
        in taught("--n_iter", 1, "--ac_conv", "relu")[1]
    )
