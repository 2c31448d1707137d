"""The teacher's lists on disk, and what a distillation leaves behind."""

import contextlib
import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import records, train
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import distill_caser
import support.list_cache
import train_caser
from support.list_cache import load_or_build_lists
from utils import UserError


@pytest.fixture
def distil(taught):
    """One epoch with flags, which must go well; what it printed."""

    def run(*flags):
        status, out, err = taught("--n_iter", 1, *flags)
        assert (status, err) == (0, [])
        return out

    return run


def test_log_lists_records_and_student(taught, command):
    status, out, err = taught("--n_iter", 3)
    assert (status, err) == (0, [])
    lines = out.splitlines()
    assert re.match(r"Teacher \(d=6\)\tmap=0\.\d{4}, precisions=", lines[1])
    number = r"\d+\.\d{4}"
    pattern = rf"Epoch 2 \[\d+\.\d s\]\tloss={number}, regular_loss={number}, map={number}, "
    assert any(re.match(pattern, line) for line in lines)
    rows = records(taught.student.with_name("toy-caser-dim=4-rd.jsonl"))[1:]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    assert all(row["loss"] > row["regular_loss"] > 0 for row in rows)
    assert np.load(taught.cache).dtype == np.int32
    made_from = json.loads(Path(f"{taught.cache}.json").read_text())
    assert (made_from["K"], made_from["L"], made_from["exclude"]) == (5, 3, "target")
    for script in (train_caser, distill_caser):
        status, again, _ = command(script.main, "--evaluate", "--checkpoint", taught.student)
        assert status == 0
        assert re.findall(r"map=\S+", out)[-1] == re.findall(r"map=\S+", again)[-1]


def test_lists_are_used_again_and_stale_ones_rebuilt(distil, command, toy, tmp_path):
    assert "saved the teacher's top-5 lists" in distil()
    assert "saved the teacher's" not in distil()
    for change, word in ((["--teacher_exclude", "observed"], "exclude target"),
                         (["--T", 2], "its shape")):  # fmt: skip
        out = distil(*change)
        assert word in out
        assert out.count("rebuilding it") == 1
        distil()  # and back again
    train(command, toy, tmp_path, "--n_iter", 2, "--seed", 8)
    assert "another teacher" in distil()


def test_damaged_lists_are_rebuilt(distil, taught):
    distil()
    whole = taught.cache.read_bytes()
    for data in (whole[: len(whole) // 2], b"", b"PK\3\4 a zip", whole[:-4] + b"\1\0\0\0"):
        taught.cache.write_bytes(data)
        assert "rebuilding it" in distil()
        assert taught.cache.read_bytes() == whole


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_bytes_give_the_right_lists_or_an_error(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("cache") / "lists.npy"
    lists = np.arange(1, 13, dtype=np.int32).reshape(4, 3)
    load = partial(load_or_build_lists, path, True, {"K": 3, "teacher": "t"}, (4, 3), 20)
    load(lambda: lists)
    description = Path(f"{path}.json")
    told = json.loads(description.read_text()) | {"seconds": 0.5}  # as many bytes each time
    description.write_text(json.dumps(told))
    target = data.draw(st.sampled_from([path, description]))
    bad = bytearray(target.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    target.write_bytes(bytes(bad))
    with contextlib.suppress(UserError):
        assert np.array_equal(load(lambda: 1 / 0)[0], lists)
    assert target.read_bytes() == bytes(bad)


@pytest.mark.parametrize("named", [True, False])
def test_killed_between_lists_and_their_description(taught, distil, monkeypatch, tmp_path, named):
    """Lists without a description would pass for the authors'; they are never left alone."""
    flags = ["--teacher_topk_path", tmp_path / "out" / "new" / "named.npy"] if named else []

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(support.list_cache.np, "save", killed)
        assert taught("--n_iter", 1, *flags)[0] == 130
    assert not list((tmp_path / "out").rglob("*.npy"))
    distil(*flags)
    assert len(list((tmp_path / "out").rglob("*.npy*"))) == 2


def test_the_authors_bare_lists_are_accepted_with_what_they_could_not_say(taught, distil, tmp_path):
    distil()
    lists = np.load(taught.cache).astype(np.int64)
    lists[0, 2] = lists[3, 0] = 0
    np.save(tmp_path / "bare.npy", lists)
    out = distil("--teacher_topk_path", tmp_path / "bare.npy")
    assert "2 of its lists hold padding" in out


def test_the_authors_bare_checkpoint_is_a_teacher(taught, distil):
    whole = distil()
    teacher = torch.load(taught.teacher, weights_only=True)
    for name in teacher.keys() - {"epoch_num", "state_dict", "optimizer"}:
        del teacher[name]
    torch.save(teacher, taught.teacher, _use_new_zipfile_serialization=False)
    bare = distil()
    assert "tells nothing of its data" in bare
    assert re.findall(r"Teacher.*map=\S+", bare) == re.findall(r"Teacher.*map=\S+", whole)
    # What it does not tell, and the flags give, is part of what the lists are made from.
    told = "activations iden, sigm, this run has relu, sigm"
    assert told in distil("--ac_conv", "relu")


def test_other_data_and_owners_of_everything_are_said(distil, command, toy, tmp_path):
    distil("--K", toy.load().train.num_items - 2)  # all that can fill a list
    items = sorted({line.split()[1] for line in toy.train.read_text().splitlines()})
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    assert "whose rows are not those of" in distil("--allow_other_data")
    toy.train.write_text(toy.train.read_text() + "".join(f"all {item} 1\n" for item in items))
    train(command, toy, tmp_path, "--n_iter", 1)
    assert "'all'" in distil("--teacher_exclude", "observed")


def test_a_teacher_that_was_stopped_is_said(taught):
    saved = torch.load(taught.teacher, weights_only=True)
    saved["config"]["n_iter"] = 5000
    torch.save(saved, taught.teacher)
    status, out, _ = taught("--n_iter", 1)
    assert status == 0
    assert f"{taught.teacher}: the teacher stopped at epoch 2 of 5000" in out
