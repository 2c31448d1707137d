import os
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import utils  # noqa: E402

# In CI the same examples each time, so that a failure there is one of the change at hand.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def write_rows(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{user} {item} 1\n" for user, item in rows))
    return path


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
    return SimpleNamespace(
        folder=folder,
        train=write_rows(folder / "train.txt", train),
        test=write_rows(folder / "test.txt", test),
        flags=["--train_root", str(folder / "train.txt"), "--test_root", str(folder / "test.txt")],
    )


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


def tree(folder):
    """Every file below a folder with its bytes: what a refused command must leave alone."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
