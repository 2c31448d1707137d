import math
import subprocess
import sys
import zipfile
from fractions import Fraction
from importlib import util

import numpy as np
import pytest
from conftest import ROOT, tree

from interactions import DataSet
from utils import UserError

spec = util.spec_from_file_location("prepare", ROOT / "datasets" / "prepare.py")
prepare = util.module_from_spec(spec)
spec.loader.exec_module(prepare)


def slow_core(rows, k):
    while True:
        users, items = ([row[place] for row in rows] for place in (0, 1))
        kept = [row for row in rows if users.count(row[0]) >= k and items.count(row[1]) >= k]
        if len(kept) == len(rows):
            return rows
        rows = kept


def made_up_ratings(seed=0):
    rng = np.random.default_rng(seed)
    pairs = {
        (int(u), int(i))
        for u, i in zip(rng.zipf(1.3, 900) % 40, rng.zipf(1.3, 900) % 50, strict=True)
    }
    return [
        (f"u{u}", f"i{i}", int(rng.integers(1, 6)), int(rng.integers(0, 9)))
        for u, i in sorted(pairs)
    ]


def as_udata(rows):
    return "".join("\t".join(map(str, row)) + "\n" for row in rows)


def test_prepares_the_users_own_file(tmp_path, command):
    rows = made_up_ratings()
    (tmp_path / "u.data").write_text(as_udata(rows))
    status, out, err = command(
        prepare.main, "ml-100k", "--source", tmp_path / "u.data", "--output_dir", tmp_path
    )
    assert (status, err) == (0, [])
    core = slow_core(rows, 5)
    assert 0 < len(core) < len(rows)
    users = {user for user, *_ in core}
    assert (
        f"{len(users)} users, {len({item for _, item, *_ in core})} items, {len(core)} rows" in out
    )
    written = {
        name: [line.split() for line in (tmp_path / "ml-100k" / name).read_text().splitlines()]
        for name in (
            "validation/train.txt",
            "validation/test.txt",
            "test/train.txt",
            "test/test.txt",
        )
    }
    for user in users:
        of_user = {
            name: [row[1] for row in part if row[0] == user] for name, part in written.items()
        }
        mine = [row for row in core if row[0] == user]
        expected = [row[1] for row in sorted(mine, key=lambda row: row[3])]  # stable
        n = len(expected)
        cuts = [math.ceil(Fraction(share, 10) * n) for share in (7, 8)]
        assert of_user["validation/train.txt"] == expected[: cuts[0]]
        assert of_user["validation/test.txt"] == expected[cuts[0] : cuts[1]]
        assert of_user["test/train.txt"] == expected[: cuts[1]]
        assert of_user["test/test.txt"] == expected[cuts[1] :]
    folder = tmp_path / "ml-100k" / "test"
    data = DataSet.load("x", folder / "train.txt", folder / "test.txt", 5, 1)
    assert data.counts["test_rows"] == len(written["test/test.txt"])


def test_a_recbole_header_is_no_rating():
    text = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    plain = prepare.read_ratings(as_udata(made_up_ratings()).encode(), "x")
    headed = prepare.read_ratings((text + as_udata(made_up_ratings())).encode(), "x")
    assert plain[0] == headed[0]
    assert plain[3].tolist() == headed[3].tolist()


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "no ratings"), (b"1 2 3\n", "line 1"), (b"1 2 3 4\n1 2 3 x\n", "line 2"),
     (b"\xff\xfe", "line 1"), (b"1 2 3 4\n", "5 ratings")],
)  # fmt: skip
def test_a_bad_source_is_one_line_and_leaves_nothing(tmp_path, command, data, word):
    source = tmp_path / "u.data"
    source.write_bytes(data)
    status, _, err = command(
        prepare.main, "ml-100k", "--source", source, "--output_dir", tmp_path / "out"
    )
    assert (status, len(err)) == (2, 1)
    assert word in err[0]
    assert not (tmp_path / "out").exists()


def test_a_missing_source_is_one_line(tmp_path, command):
    status, _, err = command(prepare.main, "ml-100k", "--source", tmp_path / "no")
    assert (status, len(err)) == (2, 1)


def test_what_is_there_is_never_overwritten(tmp_path, command):
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k" / "mine.txt").write_text("precious")
    (tmp_path / "u.data").write_text(as_udata(made_up_ratings()))
    before = tree(tmp_path)
    status, _, err = command(
        prepare.main, "ml-100k", "--source", tmp_path / "u.data", "--output_dir", tmp_path
    )
    assert (status, len(err)) == (2, 1)
    assert tree(tmp_path) == before


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(prepare.os, "rename", interrupted)
    (tmp_path / "u.data").write_text(as_udata(made_up_ratings()))
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare_ml_100k(tmp_path / "ml-100k", tmp_path / "u.data")
    assert [path.name for path in tmp_path.iterdir()] == ["u.data"]


def test_split_points_are_exact():
    lengths = np.arange(1, 1000)
    train, validation = prepare.split_points(lengths)
    assert train.tolist() == [math.ceil(Fraction(7, 10) * n) for n in range(1, 1000)]
    assert validation.tolist() == [math.ceil(Fraction(8, 10) * n) for n in range(1, 1000)]


# -------------------------------------------------------------------------- the download


def fake_pip(monkeypatch, make_wheel, status=0, stderr=""):
    def run(command, **_):
        assert "--no-deps" in command
        assert command[-1] == prepare.WHEEL
        make_wheel(command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, status, "", stderr)

    monkeypatch.setattr(prepare.subprocess, "run", run)


def test_a_wheel_with_another_hash_is_refused(tmp_path, monkeypatch):
    def wheel(folder):
        with zipfile.ZipFile(f"{folder}/recbole-1.2.1-py3-none-any.whl", "w") as archive:
            archive.writestr(prepare.WHEEL_FILE, as_udata(made_up_ratings()))

    fake_pip(monkeypatch, wheel)
    with pytest.raises(UserError, match="SHA-256"):
        prepare.prepare_ml_100k(tmp_path / "ml-100k")
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    fake_pip(monkeypatch, lambda _: None, 1, "WARNING: retrying\nERROR: no connection\n")
    with pytest.raises(UserError, match=r"no connection.*--source"):
        prepare.prepare_ml_100k(tmp_path / "ml-100k")


def test_the_real_data_set_has_its_counts():
    folder = ROOT / "datasets" / "ml-100k"
    if not folder.is_dir():
        pytest.skip("datasets/ml-100k is not prepared here: python datasets/prepare.py ml-100k")
    files = [
        (folder / split / "train.txt", folder / split / "test.txt")
        for split in ("test", "validation")
    ]
    test, validation = (DataSet.load("ml-100k", *paths, 5, 1) for paths in files)
    assert (test.counts["users"], test.counts["items"]) == (943, 1349)
    assert test.counts["train_rows"] + test.counts["test_rows"] == 99_287
    rows = validation.counts["train_rows"] + validation.counts["test_rows"]
    assert rows == test.counts["train_rows"]


def test_it_is_a_script_of_its_own():
    done = subprocess.run(
        [sys.executable, ROOT / "datasets" / "prepare.py", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "--source" in done.stdout
