"""The scripts as a person meets them: bad flags, bad files, kills. Never a traceback, never a
changed file, and nothing trained first."""

import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT, tree, write_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_train import SMALL, assert_same_weights, records

import distill_caser
import train_caser
from train_caser import Recommender

BAD_FLAGS = [
    ["--d", "0"], ["--d", "-5"], ["--d", "1.5"], ["--d", "nan"], ["--d", ""],
    ["--L", "0"], ["--L", "x"], ["--T", "0"], ["--nv", "-1"], ["--nh", "-1"],
    ["--nv", "0", "--nh", "0"],
    ["--drop", "1"], ["--drop", "-0.1"], ["--drop", "nan"],
    ["--ac_conv", "sigmoid"], ["--ac_fc", "softplus"],
    ["--n_iter", "0"], ["--batch_size", "0"], ["--neg_samples", "0"],
    ["--learning_rate", "0"], ["--learning_rate", "inf"], ["--learning_rate", "nan"],
    ["--l2", "-1"], ["--seed", "-1"], ["--seed", "4294967296"],
    ["--eval_every", "0"], ["--save_every", "0"],
    ["--device", "tpu"], ["--use_cuda", "maybe"], ["--evaluate"],
    ["--bogus", "1"], ["--learning", "1"], ["stray"], ["--train_root", "x"], ["--split", "dev"],
    ["--checkpoint", "nowhere.pth.tar"], ["--checkpoint", ""], ["--output_dir", ""],
    ["--learning_rate", "1e39"], ["--l2", "1e39"], ["--dataset", ""],
]  # fmt: skip
BAD_DISTILL_FLAGS = [
    ["--K", "0"], ["--K", "x"], ["--K", "100000"], ["--lamda", "0"], ["--lamda", "nan"],
    ["--mu", "0"], ["--mu", "-1"], ["--mu", "inf"], ["--teach_alpha", "-1"],
    ["--dynamic_samples", "0"], ["--num_dynamic_samples", "-1"], ["--dynamic_start_epoch", "-1"],
    ["--hybrid_weight", "sum"], ["--teacher_exclude", "all"], ["--weights", "both"],
    ["--teacher_model_dim", "0"], ["--teacher_model_path", ""], ["--teacher_topk_path", ""],
    ["--mu", "1e39"], ["--teach_alpha", "1e39"], ["--lamda", "1e39"],
]  # fmt: skip


@pytest.mark.parametrize("flags", BAD_FLAGS, ids=" ".join)
@pytest.mark.parametrize("script", [train_caser, distill_caser], ids=lambda script: script.__name__)
def test_a_bad_flag_is_one_line(command, toy, tmp_path, monkeypatch, script, flags):
    refuse(command, toy, tmp_path, monkeypatch, script, flags)


@pytest.mark.parametrize("flags", BAD_DISTILL_FLAGS, ids=" ".join)
def test_a_bad_flag_of_distillation_is_one_line(command, toy, tmp_path, monkeypatch, flags):
    refuse(command, toy, tmp_path, monkeypatch, distill_caser, flags)


def refuse(command, toy, tmp_path, monkeypatch, script, flags):
    monkeypatch.setattr(Recommender, "fit", None)  # nothing may be trained
    monkeypatch.chdir(tmp_path)
    before = tree(tmp_path)
    own = [] if flags[0] in ("--train_root", "--dataset") else toy.flags
    status, _, err = command(script.main, *own, *flags)
    assert (status, len(err)) == (2, 1)
    named = "nowhere.pth.tar" if "nowhere.pth.tar" in flags else flags[0]
    assert re.search(rf"(?<![^\s/]){named}(?![\w-])", err[0])
    assert tree(tmp_path) == before


def test_a_refused_number_names_its_range(command):
    _, _, err = command(train_caser.main, "--drop", "1.5")
    assert "--drop" in err[0]
    assert "[0, 1)" in err[0]
    _, _, err = command(train_caser.main, "--ac_fc", "sigmoid")
    assert "'sigm'" in err[0]


@pytest.mark.parametrize("word", ["no", "0", "False", "off"])
def test_use_cuda_is_understood(command, toy, tmp_path, word):
    status, out, _ = command(train_caser.main, *toy.flags, *SMALL, "--n_iter", 1, "--use_cuda",
                             word, "--output_dir", tmp_path)  # fmt: skip
    assert status == 0
    assert out.splitlines()[0].endswith("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
@pytest.mark.parametrize("flags", [["--use_cuda", "yes"], ["--device", "cuda"]])
def test_a_missing_device_is_one_line(command, toy, flags):
    status, _, err = command(train_caser.main, *toy.flags, *flags)
    assert (status, len(err)) == (2, 1)


@pytest.mark.parametrize("script", [train_caser, distill_caser], ids=lambda script: script.__name__)
def test_help_explains_every_flag(command, script):
    status, out, _ = command(script.main, "--help")
    assert status == 0
    for action in script.get_args_parser()._actions:
        assert action.help
        assert all(option in out for option in action.option_strings)


def test_contradicting_ways_to_name_data(command, toy, tmp_path):
    for flags in (["--dataset", "x"], ["--split", "validation"]):
        status, _, err = command(train_caser.main, *toy.flags, *flags)
        assert (status, len(err)) == (2, 1)


@pytest.mark.parametrize("place", ["file", "file/below", "taken"])
def test_an_output_folder_that_cannot_be_is_refused_first(
    command, toy, tmp_path, place, monkeypatch
):
    monkeypatch.setattr(Recommender, "fit", None)
    (tmp_path / "file").touch()
    (tmp_path / "taken" / "toy-caser-dim=100.pth.tar").mkdir(parents=True)
    status, _, err = command(train_caser.main, *toy.flags, "--output_dir", tmp_path / place)
    assert (status, len(err)) == (2, 1)


def test_a_full_disk_keeps_the_old_checkpoint(command, toy, tmp_path, monkeypatch):
    flags = [*toy.flags, *SMALL, "--output_dir", tmp_path / "out", "--n_iter"]
    assert command(train_caser.main, *flags, 2)[0] == 0
    before = tree(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    status, _, err = command(train_caser.main, "--checkpoint", path, "--n_iter", 4)
    assert (status, len(err)) == (2, 1)
    assert "No space left" in err[0]
    assert "toy-caser-dim=6" in err[0]
    assert tree(tmp_path) == before


def test_one_root_alone_does_not_mix_with_a_checkpoints_other(command, toy, tmp_path):
    flags = [*toy.flags, *SMALL, "--n_iter", 1, "--output_dir", tmp_path]
    assert command(train_caser.main, *flags)[0] == 0
    path = tmp_path / "toy-caser-dim=6.pth.tar"
    status, _, err = command(train_caser.main, "--evaluate", "--checkpoint", path, *toy.flags[:2])
    assert (status, len(err)) == (2, 1)
    assert "give both" in err[0]


def test_a_split_of_files_that_were_named_is_refused(command, toy, tmp_path):
    """It once took the default data set for them."""
    flags = [*toy.flags, *SMALL, "--n_iter", 1, "--output_dir", tmp_path]
    assert command(train_caser.main, *flags)[0] == 0
    path = tmp_path / "toy-caser-dim=6.pth.tar"
    status, _, err = command(train_caser.main, "--checkpoint", path, "--split", "validation")
    assert (status, len(err)) == (2, 1)
    assert "--split validation" in err[0]


def test_an_odd_terminal_still_gets_its_note(toy, tmp_path):
    toy.test.write_text(toy.test.read_text() + "é i1 1\n")
    environment = os.environ | {"PYTHONIOENCODING": "ascii"}
    flags = [*toy.flags, *SMALL, "--n_iter", 1]
    process = start("train_caser.py", *flags, cwd=tmp_path, env=environment)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "\\xe9" in out


# ------------------------------------------------------------------- damaged files and flags

ids = st.text(
    st.characters(blacklist_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=4
)
good_rows = st.lists(
    st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz")), min_size=5, max_size=20
)
separators = st.sampled_from([" ", "\t", "  ", ",", ";", "\x0b"])
endings = st.sampled_from(["\n", "\r\n", "\n\n", "\r"])
lines = st.lists(
    st.one_of(st.lists(ids, max_size=5), st.just(["user", "item", "rating"])), max_size=6
)


def damaged(rows, extra, separator, ending, cut, junk):
    every = [list(row) for row in rows] + extra
    data = ending.join(separator.join(fields) for fields in every).encode()
    return data[: len(data) - cut] + junk


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.builds(
        damaged, good_rows, lines, separators, endings, st.integers(0, 5), st.binary(max_size=4)
    ),
    st.builds(
        damaged, good_rows, lines, separators, endings, st.integers(0, 5), st.binary(max_size=4)
    ),
    st.lists(
        st.tuples(
            st.sampled_from(
                ["--d", "--L", "--T", "--batch_size", "--drop", "--l2", "--nv", "--seed"]
            ),
            st.sampled_from(["0", "1", "2", "7", "-1", "0.5", "nan", "x", ""]),
        ),
        max_size=2,
    ),
)
def test_damaged_files_and_flags_never_break(
    command, tmp_path_factory, train_data, test_data, flags
):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "train.txt").write_bytes(train_data)
    (folder / "test.txt").write_bytes(test_data)
    output = folder / "out"
    before = tree(folder)
    status, out, err = command(
        train_caser.main, "--train_root", folder / "train.txt", "--test_root", folder / "test.txt",
        "--d", 4, "--n_iter", 1, "--output_dir", output, *[word for flag in flags for word in flag],
    )  # fmt: skip
    assert status in (0, 2)
    assert len(err) == (status == 2)
    assert "Traceback" not in out
    after = tree(folder)
    written = {path.name for path in after.keys() - before.keys()}
    assert {path: after[path] for path in before} == before
    assert len(written) == (2 if status == 0 else 0)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_damaged_checkpoints_never_break(command, tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "damaged"
    if not folder.exists():
        rows = [(user, item) for user in "abcd" for item in "uvwxyz"[: 3 + ord(user) % 3]]
        write_rows(folder / "test" / "train.txt", rows)
        write_rows(folder / "test" / "test.txt", [("a", "z"), ("b", "z")])
    files = (folder / "test" / f"{part}.txt" for part in ("train", "test"))
    roots = [
        word for pair in zip(("--train_root", "--test_root"), files, strict=True) for word in pair
    ]
    flags = [*roots, "--d", 4, "--n_iter", 1, "--output_dir", folder / "out"]
    path = folder / "out" / "damaged-caser-dim=4.pth.tar"
    if not path.exists():
        assert command(train_caser.main, *flags)[0] == 0
    whole = path.read_bytes()
    bad = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        bad[data.draw(st.integers(0, len(bad) - 1))] = data.draw(st.integers(0, 255))
    bad = bytes(bad[: data.draw(st.sampled_from([len(bad), len(bad) - 1, len(bad) // 2, 3]))])
    path.write_bytes(bad)
    try:
        before = tree(folder)
        status, _, err = command(train_caser.main, "--evaluate", "--checkpoint", path)
        assert status in (0, 2)
        assert len(err) == (status == 2)
        assert tree(folder) == before
    finally:
        path.write_bytes(whole)


# ------------------------------------------------------------------------- real processes


def start(script, *flags, cwd, **options):
    command = [sys.executable, str(ROOT / script), *map(str, flags)]
    return subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def finish(script, *flags, cwd):
    process = start(script, *flags, cwd=cwd)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


@pytest.mark.parametrize("script", ["train_caser.py", "distill_caser.py"])
def test_killed_at_random_moments_and_resumed_it_ends_with_the_same_bytes(toy, tmp_path, script):
    flags = [*toy.flags, *SMALL, "--batch_size", 1, "--save_every", 1, "--n_iter", 5]
    name = "toy-caser-dim=6.pth.tar"
    finish("train_caser.py", *flags, "--output_dir", "whole", cwd=tmp_path)
    if script == "distill_caser.py":
        flags += ["--d", 4, "--K", 5, "--dynamic_start_epoch", 1, "--teacher_model_path"]
        flags += [tmp_path / "whole" / name]
        name = "toy-caser-dim=4-rd.pth.tar"
        finish(script, *flags, "--output_dir", "whole", cwd=tmp_path)
    path = tmp_path / "out" / name
    rng = random.Random(0)
    run = [*flags, "--output_dir", "out"]
    for after_a_save in (False, True):
        process = start(script, *run, cwd=tmp_path)
        if after_a_save:
            seen = path.stat().st_mtime_ns if path.exists() else 0
            while process.poll() is None and (not path.exists() or path.stat().st_mtime_ns == seen):
                time.sleep(0.005)
            time.sleep(rng.uniform(0, 0.1))
        else:  # while it starts, builds the lists or trains
            time.sleep(rng.uniform(1, 4))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        if path.exists():
            assert torch.load(path, weights_only=True)["epoch_num"] >= 1
            run = ["--checkpoint", path]
            if script == "distill_caser.py":
                run += ["--teacher_model_path", flags[-1]]
    finish(script, *run, cwd=tmp_path)
    assert_same_weights(tmp_path / "whole" / name, path)
    rows = records(path.with_name(name.replace("pth.tar", "jsonl")))
    assert [row["epoch"] for row in rows[1:]] == [1, 2, 3, 4, 5]


def test_terminated_it_saves_says_how_to_go_on_and_ends_with_the_same_bytes(toy, tmp_path):
    teacher = [*toy.flags, *SMALL, "--n_iter", 1]
    finish("train_caser.py", *teacher, cwd=tmp_path)
    flags = [*toy.flags, *SMALL, "--batch_size", 1, "--d", 4, "--K", 5, "--n_iter", 4,
             "--teacher_model_path", "checkpoints/toy-caser-dim=6.pth.tar",
             "--dynamic_start_epoch", 1]  # fmt: skip
    finish("distill_caser.py", *flags, "--output_dir", "whole", cwd=tmp_path)
    process = start("distill_caser.py", *flags, cwd=tmp_path)
    for line in process.stdout:
        if line.startswith("Epoch 1"):
            break
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (143, "")
    script, *again = out.splitlines()[-1].removeprefix("python ").split()
    finish(script, *again, cwd=tmp_path)
    name = "toy-caser-dim=4-rd.pth.tar"
    assert_same_weights(tmp_path / "whole" / name, tmp_path / "checkpoints" / name)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="a system without SIGHUP")
def test_a_closed_terminal_or_pipe_loses_nothing(toy, tmp_path):
    flags = [*toy.flags, *SMALL, "--batch_size", 1, "--n_iter", 1000, "--eval_every", 1000]
    for leave, status in ((lambda p: p.send_signal(signal.SIGHUP), 129),
                          (lambda p: p.stdout.close(), 1)):  # fmt: skip
        folder = tmp_path / str(status)
        folder.mkdir()
        process = start("train_caser.py", *flags, cwd=folder)
        while not process.stdout.readline().startswith("Epoch 1"):
            pass
        leave(process)
        assert process.wait(60) == status
        assert process.stderr.read() == ""
        saved = torch.load(folder / "checkpoints/toy-caser-dim=6.pth.tar", weights_only=True)
        assert saved["epoch_num"] >= 1


def test_no_progress_bar_in_a_pipe(toy, tmp_path):
    process = start("train_caser.py", *toy.flags, *SMALL, "--n_iter", 1, cwd=tmp_path)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "\r" not in out


def test_a_default_data_set_that_cannot_be_fetched_is_one_line(tmp_path, monkeypatch):
    """The scripts call datasets/prepare.py, whose one line and exit status they hand on."""
    monkeypatch.setenv("PIP_INDEX_URL", "http://localhost:9/")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    process = start("train_caser.py", "--n_iter", 1, cwd=tmp_path)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert err.count("\n") == 1
    assert "--source" in err
    assert not any((tmp_path / "datasets").iterdir() if (tmp_path / "datasets").exists() else [])
