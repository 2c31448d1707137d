"""What several files of tests share: a toy data set, and commands run on it."""

import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tests are small, and many

import numpy as np
import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import distill_caser  # noqa: E402
import train_caser  # noqa: E402
import utils  # noqa: E402
from support.data_set import DataSet  # noqa: E402

if os.environ.get("CI"):  # the same examples each time: a failure is one of the change at hand
    settings.register_profile("ci", derandomize=True)
    settings.load_profile("ci")

SMALL = ["--d", 6, "--L", 3, "--batch_size", 16, "--eval_every", 2]
STUDENT = ["--d", 4, *SMALL[2:], "--teacher_model_dim", 6, "--K", 5, "--dynamic_start_epoch", 1]


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{user} {item} 1\n" for user, item in rows))
    return path


def tree(folder):
    """Every file below a folder with its bytes: what a refused command must leave alone."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.fixture
def toy(tmp_path):
    """A small data set in tmp_path/toy/test: users of many lengths, string ids."""
    rng = np.random.default_rng(0)
    train, test = [], []
    for user in range(12):
        items = rng.permutation(40)[: 3 + 2 * user]
        cut = max(1, len(items) - 2)
        train += [(f"u{user}", f"i{item}") for item in items[:cut]]
        test += [(f"u{user}", f"i{item}") for item in items[cut:]]
    folder = tmp_path / "toy" / "test"
    first = write_rows(folder / "train.txt", train)
    second = write_rows(folder / "test.txt", test)
    flags = ["--train_root", str(first), "--test_root", str(second)]
    load = partial(DataSet.load, "toy", first, second, L=3, T=1)
    return SimpleNamespace(folder=folder, train=first, test=second, flags=flags, load=load)


@pytest.fixture
def command(capsys, monkeypatch):
    """Call a script's main as the shell would: (exit status, stdout, lines of stderr)."""

    def call(main, *argv):
        monkeypatch.setattr(sys, "argv", ["script.py", *map(str, argv)])
        with pytest.raises(SystemExit) as stop:
            utils.run_command(main)
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err.splitlines()

    return call


def train(command, toy, tmp_path, *flags):
    """Train a small network in tmp_path/out; returns what was printed."""
    flags = [*toy.flags, *SMALL, "--output_dir", tmp_path / "out", *flags]
    status, out, err = command(train_caser.main, *flags)
    assert (status, err) == (0, [])
    return out


@pytest.fixture
def taught(command, toy, tmp_path):
    """A trained teacher in tmp_path/out; distils with flags: (status, stdout, stderr lines)."""
    train(command, toy, tmp_path, "--n_iter", 2)

    def distill(*flags, out="out"):
        paths = ["--output_dir", tmp_path / out]
        if out != "out":
            paths += ["--teacher_model_path", distill.teacher]
        return command(distill_caser.main, *toy.flags, *STUDENT, *paths, *flags)

    distill.teacher = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    distill.cache = tmp_path / "out" / "toy-teacher-dim=6-top=5.npy"
    distill.student = tmp_path / "out" / "toy-caser-dim=4-rd.pth.tar"
    return distill


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(*paths):
    first, second = map(weights, paths)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
