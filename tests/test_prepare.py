import gzip
import io
import math
import os
import shutil
import subprocess
import sys
import zipfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, tree

from interactions import DataSet
from utils import UserError

sys.path.insert(0, str(ROOT / "datasets"))
import prepare
from events import ROWS_AT_ONCE, Layout, _times, k_core, read_events


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


def read(data, layout):
    return read_events(io.BytesIO(data), "x", layout)


ML = Layout((0, 1, 3, 2))


def test_a_recbole_header_is_no_rating(tmp_path, command):
    header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
    for name, text in (("plain", ""), ("headed", header), ("marked", "\ufeff" + header)):
        (tmp_path / name).write_text(text + as_udata(made_up_ratings()))
        flags = ["--source", tmp_path / name, "--output_dir", tmp_path / f"{name}-out"]
        assert command(prepare.main, "ml-100k", *flags)[0] == 0
    outs = [
        [path.read_bytes() for path in sorted((tmp_path / f"{name}-out").rglob("*.txt"))]
        for name in ("plain", "headed", "marked")
    ]
    assert len(outs[0]) == 4
    assert outs[0] == outs[1] == outs[2]


@pytest.mark.parametrize(
    ("data", "word"),
    [(b"", "no rows"), (b"1\t2\t3\n", "line 1"), (b"1\t2\t3\t4\n1\t2\t3\tx\n", "line 2"),
     (b"1\t2\t3\t4\n\xff\t2\t3\t4\n", "UTF-8"), (b"1\t2\t3\t4\n", "rows enough"),
     (b"1\t2\tgood\t4\n", "rating"), (b"1\t2\t3\t12.5.3\n", "time"), (b"1\t2\t3\tnan\n", "time"),
     (b"1\t\t3\t4\n", "empty"), (b"1\tToy Story\t3\t4\n", "white space")],
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
        prepare.main(
            ["ml-100k", "--source", str(tmp_path / "u.data"), "--output_dir", str(tmp_path)]
        )
    assert [path.name for path in tmp_path.iterdir()] == ["u.data"]


def test_split_points_are_exact():
    lengths = np.arange(1, 1000)[::-1]
    train, validation = (ends[::-1] for ends in prepare.split_points(lengths))
    assert train.tolist() == [math.ceil(Fraction(7, 10) * n) for n in range(1, 1000)]
    assert validation.tolist() == [math.ceil(Fraction(8, 10) * n) for n in range(1, 1000)]


def test_gowalla_tail_is_cut_as_that_data_set_was():
    train, validation = prepare.rounded_split_points(np.array([15, 35, 45, 65, 10]))
    assert train.tolist() == [10, 24, 31, 46, 7]  # 0.7 * 45 is a little under 31.5 as a float
    assert validation.tolist() == [12, 28, 36, 52, 8]


def test_k_core_equals_the_slow_version():
    rows = made_up_ratings(3)
    events = read(as_udata(rows).encode(), ML)
    for k in (1, 3, 5, 8):
        core = k_core(events, k)
        ours = [(core.users[u], core.items[i]) for u, i in zip(core.user, core.item, strict=True)]
        assert ours == [row[:2] for row in slow_core(rows, k)]


def test_times_of_every_kind_sort_alike():
    stamps = [
        "2010-10-19T23:55:27Z",
        "2010-10-20T01:55:28+02:00",
        "2010-10-20 00:00:00",
        "2010-10-21",
    ]
    times, dates = _times(stamps)
    assert dates
    assert (np.diff(times) > 0).all()
    assert times[1] - times[0] == 1
    assert _times(["12", "1700000000000000001"])[0][1] == 1700000000000000001
    times, dates = _times(["1.5", "2e3", "100000000000000000000"])
    assert (times.tolist(), dates) == ([1.5, 2000, 1e20], False)


# --------------------------------------------------------------------- other data sets


def test_csv_by_name_and_by_number(tmp_path, command):
    rows = made_up_ratings(1)
    headed = "when,who,what,stars\n" + "".join(f'{t},"{u}",{i},{r}\n' for u, i, r, t in rows)
    (tmp_path / "mine.csv").write_text(headed)
    (tmp_path / "mine.tsv").write_text("".join(f"{i}\t{u}\t{t}\n" for u, i, _, t in rows))
    shared = ["--core", 3, "--train", 0.5, "--validation", 0.75, "--output_dir", tmp_path]
    by_name = ["--user", "who", "--item", "what", "--time", "when", "--rating", "stars"]
    by_number = ["--user", "2", "--item", "1", "--time", "3", "--as_name", "numbered"]
    assert (
        command(prepare.main, "csv", "--source", tmp_path / "mine.csv", *by_name, *shared)[0] == 0
    )
    assert (
        command(prepare.main, "csv", "--source", tmp_path / "mine.tsv", *by_number, *shared)[0] == 0
    )
    for part in ("validation/train.txt", "test/test.txt"):
        one, two = (
            [line.split() for line in (tmp_path / name / part).read_text().splitlines()]
            for name in ("mine", "numbered")
        )
        assert [row[:2] for row in one] == [row[:2] for row in two]
        assert {row[2] for row in two} == {"1"}
    core = slow_core(rows, 3)
    train = (tmp_path / "mine/validation/train.txt").read_text().splitlines()
    lengths = [sum(row[0] == user for row in core) for user in {row[0] for row in core}]
    assert len(train) == sum(math.ceil(Fraction(1, 2) * n) for n in lengths)


@pytest.mark.parametrize(
    "flags",
    [[], ["--user", "who", "--item", "nope", "--time", "when"],
     ["--user", "0", "--item", "2", "--time", "3"],
     ["--user", "who", "--item", "what"], ["--user", "1", "--item", "2", "--time", "9"],
     ["--user", "who", "--item", "what", "--time", "when", "--core", "999"],
     ["--user", "who", "--item", "what", "--time", "when", "--train", "0.9"],
     ["--user", "who", "--item", "what", "--time", "when", "--as_name", "a/b"]],
    ids=" ".join,
)  # fmt: skip
def test_a_csv_that_cannot_be_is_one_line(tmp_path, command, flags):
    (tmp_path / "mine.csv").write_text("when,who,what\n1,a,b\n")
    before = tree(tmp_path)
    status, _, err = command(
        prepare.main, "csv", "--source", tmp_path / "mine.csv", "--output_dir", tmp_path, *flags
    )
    assert (status, len(err)) == (2, 1)
    assert tree(tmp_path) == before


CSV = "u,i,t\n" + "".join(f"a{n % 7},b{n % 11},{n}\n" for n in range(600))
BY_NAME = ["--user", "u", "--item", "i", "--time", "t"]


@pytest.mark.parametrize(
    ("text", "flags", "word"),
    [(CSV + "a,b,2020-01-01\n", BY_NAME, "line 602: 'a b 2020-01-01': '2020-01-01' is"),
     (CSV + 'a,"b\n",5\na,b,x\n', BY_NAME, "line 604: 'a b x': 'x' is no time"),
     (CSV + "a,c\0,3\n", BY_NAME, "line 602"),
     (CSV.encode() + b"a,\xe9,3\n", BY_NAME, "line 602: not UTF-8"),
     (CSV + "\ufeffa,b,3\n", BY_NAME, "line 602"),
     ("u,i,t,r\na,b,1,\u0665\n", [*BY_NAME, "--rating", "r"], "'\u0665' is no rating"),
     (CSV, ["--user", "uid", *BY_NAME[2:]], "mine.csv, line 1: no column 'uid'"),
     (CSV, ["--user", "1", "--item", "2", "--time", "3"], "--header"),
     (CSV, [*BY_NAME[:2], "--item", "u", *BY_NAME[4:]], "same column"),
     (CSV, [*BY_NAME[:2], "--item", "1", *BY_NAME[4:]], "same column"),
     ("u, i,u,t\n" + CSV, BY_NAME, "line 1: 2 columns 'u'"),
     (CSV, [*BY_NAME, "--as_name=-x"], "not beginning with -"),
     (CSV, [*BY_NAME, "--core", "500"], "use a lower --core"),
     (CSV, [*BY_NAME, "--train", "0.98", "--validation", "0.999"], "no user has rows enough"),
     (CSV, [*BY_NAME, "--keep", "last"], "--keep"),
     ("", BY_NAME, "no rows"), ("u,i,t\n\n", BY_NAME, "no rows")],
)  # fmt: skip
def test_the_line_and_the_flag_of_a_fault_are_named(tmp_path, command, text, flags, word):
    data = text if isinstance(text, bytes) else text.encode()
    (tmp_path / "mine.csv").write_bytes(data)
    status, _, err = command(
        prepare.main, "csv", "--source", tmp_path / "mine.csv", "--output_dir", tmp_path, *flags
    )
    assert (status, len(err)) == (2, 1)
    assert word in err[0]
    assert [path.name for path in tmp_path.iterdir()] == ["mine.csv"]


def test_blank_lines_are_no_fault(tmp_path, command):
    """A whole chunk of them was once taken for times of several kinds."""
    (tmp_path / "mine.csv").write_text(CSV + "\n" * (2 * ROWS_AT_ONCE))
    status, out, _ = command(prepare.main, "csv", "--source", tmp_path / "mine.csv",
                             "--output_dir", tmp_path, *BY_NAME)  # fmt: skip
    assert status == 0
    assert "600 rows" in out


def test_a_zip_of_one_file_is_read(tmp_path, command):
    for names, wanted in ((["r.csv"], 0), (["r.csv", "s.csv"], 2), (["r/", "r/r.csv"], 0)):
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        with zipfile.ZipFile(tmp_path / "mine.zip", "w") as archive:
            for name in names:
                archive.writestr(name, CSV)
        status, _, err = command(prepare.main, "csv", "--source", tmp_path / "mine.zip",
                                 "--output_dir", tmp_path / "out", *BY_NAME)  # fmt: skip
        assert (status, len(err)) == (wanted, wanted // 2)


def test_a_damaged_lzma_zip_is_one_line(tmp_path, command):
    with zipfile.ZipFile(tmp_path / "mine.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("r.csv", CSV)
    data = bytearray((tmp_path / "mine.zip").read_bytes())
    data[60:70] = bytes(10)
    (tmp_path / "mine.zip").write_bytes(data)
    status, _, err = command(prepare.main, "csv", "--source", tmp_path / "mine.zip",
                             "--output_dir", tmp_path / "out", *BY_NAME)  # fmt: skip
    assert (status, len(err)) == (2, 1)
    assert "mine.zip: damaged" in err[0]


def test_endings_in_capitals(tmp_path, command):
    with gzip.open(tmp_path / "MINE.TSV.GZ", "wt") as file:
        file.write(CSV.replace(",", "\t"))
    status, out, _ = command(prepare.main, "csv", "--source", tmp_path / "MINE.TSV.GZ",
                             "--output_dir", tmp_path / "out", *BY_NAME)  # fmt: skip
    assert status == 0
    assert "600 rows" in out


def test_two_runs_at_once_prepare_once(tmp_path, command, monkeypatch):
    real = prepare.os.rename

    def second(temporary, folder):
        real(temporary, folder)
        temporary.mkdir()
        (temporary / "file").touch()
        real(temporary, folder)

    monkeypatch.setattr(prepare.os, "rename", second)
    (tmp_path / "u.data").write_text(as_udata(made_up_ratings()))
    words = ["ml-100k", "--source", tmp_path / "u.data", "--output_dir", tmp_path / "out"]
    status, out, err = command(prepare.main, *words)
    assert (status, err) == (0, [])
    assert "meanwhile" in out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["ml-100k"]


@pytest.mark.parametrize("keep", ["first", "last"])
def test_gowalla_from_check_ins(tmp_path, command, monkeypatch, keep):
    """Against the recipe written down slowly: unique pairs, 15-core, time order, ceil."""
    rng = np.random.default_rng(0)
    rows = []
    for user in range(25):
        for stamp in sorted(rng.integers(0, 10**6, 60), reverse=True):  # newest first
            rows.append((str(user), f"2010-01-{1 + stamp // 10**5:02}T00:00:{stamp % 60:02}Z",
                         f"L{rng.integers(0, 40)}"))  # fmt: skip
    text = "".join(f"{user}\t{time}\t1.0\t2.0\t{place}\n" for user, time, place in rows)
    with gzip.open(tmp_path / "raw.txt.gz", "wt") as file:
        file.write(text)
    status, out, _ = command(prepare.main, "gowalla", "--source", tmp_path / "raw.txt.gz",
                             "--keep", keep, "--output_dir", tmp_path)  # fmt: skip
    assert status == 0
    assert "13,149 users" in out
    assert "differ" in out
    chosen = {}
    for user, time, place in sorted(rows[::-1], key=lambda row: row[1]):
        if keep == "last" or (user, place) not in chosen:
            chosen[user, place] = time
    pairs = [(user, place) for user, place in chosen]
    core = slow_core(pairs, 15)
    written = [
        line.split()[:2]
        for part in ("train", "test")
        for line in (tmp_path / "gowalla/test" / f"{part}.txt").read_text().splitlines()
    ]
    assert len(core) > 100
    assert {tuple(row) for row in written} == set(core)
    assert len(written) == len(core)
    for user in {user for user, _ in core}:
        times = [chosen[row[0], row[1]] for row in written if row[0] == user]
        assert times == sorted(times)


def test_the_authors_gowalla_is_used_as_it_is(tmp_path, command, monkeypatch):
    folder = tmp_path / "gowalla" / "test"
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("a x 1\nb y 1\n")
    (folder / "test.txt").write_text("a z 1\n")
    assert command(prepare.main, "gowalla", "--output_dir", tmp_path)[0] == 2
    monkeypatch.setattr(prepare, "PAPERS_GOWALLA", (2, 3, 3))
    status, out, _ = command(prepare.main, "gowalla", "--output_dir", tmp_path)
    assert status == 0
    assert "used as it is" in out


def test_gowalla_tail_by_hand(tmp_path, command):
    source = tmp_path / "authors"
    rows = {
        "a": [f"i{n}" for n in range(15)],
        "b": [f"i{n}" for n in range(7)],
        "c": list("stuvwxyz"),
    }
    for part, cut in (("validation", slice(0, 5)), ("test", slice(5, None))):
        (source / part).mkdir(parents=True)
        lines = [f"{user} {item} 1\n" for user, items in rows.items() for item in items[cut]]
        (source / part / "test.txt").write_text("".join(lines))
    assert (
        command(prepare.main, "gowalla-tail", "--source", source, "--output_dir", tmp_path)[0] == 0
    )
    folder = tmp_path / "gowalla-tail"
    parts = {
        part: [tuple(line.split()[:2]) for line in (folder / part).read_text().splitlines()]
        for part in (
            "validation/train.txt",
            "validation/test.txt",
            "test/train.txt",
            "test/test.txt",
        )
    }
    a, c = ([(user, item) for item in rows[user]] for user in "ac")
    assert parts["validation/train.txt"] == a[:10] + c[:6]  # round(10.5) = 10, round(5.6) = 6
    assert parts["validation/test.txt"] == a[10:12] + c[6:6]
    assert parts["test/train.txt"] == a[:12] + c[:6]
    assert parts["test/test.txt"] == a[12:] + c[6:]


@pytest.mark.skipif(
    not os.environ.get("GOWALLA_TAIL"), reason="GOWALLA_TAIL names no folder gowalla-tail"
)
def test_gowalla_tail_comes_out_as_it_is_published(tmp_path, command):
    """From its own rows, cut as the authors' two files cut them: somewhere in a user's tail."""
    wanted = Path(os.environ["GOWALLA_TAIL"])
    rows = {}
    for part in ("train", "test"):
        for line in (wanted / "test" / f"{part}.txt").read_text().splitlines(keepends=True):
            rows.setdefault(line.split()[0], []).append(line)
    for part, cut in (("validation", slice(0, 3)), ("test", slice(3, None))):
        (tmp_path / "authors" / part).mkdir(parents=True)
        lines = [line for tail in rows.values() for line in tail[cut]]
        (tmp_path / "authors" / part / "test.txt").write_text("".join(lines))
    flags = ["--source", tmp_path / "authors", "--output_dir", tmp_path]
    status, out, _ = command(prepare.main, "gowalla-tail", *flags)
    assert status == 0
    assert "not the original" not in out
    for path in wanted.rglob("*.txt"):
        ours, theirs = {}, {}
        for file, found in ((tmp_path / "gowalla-tail" / path.relative_to(wanted), ours),
                            (path, theirs)):  # fmt: skip
            for line in file.read_text().splitlines():
                user, item, *_ = line.split()
                found.setdefault(user, []).append(item)
        assert ours == theirs


def test_another_original_than_the_name_promises_is_told(tmp_path, command, monkeypatch):
    rows = made_up_ratings()
    (tmp_path / "u.data").write_text(as_udata(rows))
    core = slow_core(rows, 5)
    right = len({row[0] for row in core}), len({row[1] for row in core}), len(core)
    for place, (counts, told) in enumerate(((right, False), ((1, 2, 3), True))):
        monkeypatch.setitem(prepare.COUNTS, "ml-100k", counts)
        flags = ["--source", tmp_path / "u.data", "--output_dir", tmp_path / str(place)]
        status, out, _ = command(prepare.main, "ml-100k", *flags)
        assert status == 0
        assert ("u.data: not the original" in out) == told


def test_ml_1m_from_its_zip(tmp_path, command):
    rows = made_up_ratings(2)
    text = "".join("::".join(map(str, row)) + "\n" for row in rows)
    (tmp_path / "ratings.dat").write_text(text)
    with zipfile.ZipFile(tmp_path / "ml-1m.zip", "w") as archive:
        archive.writestr("ml-1m/ratings.dat", text)
    for source, out in (("ratings.dat", "a"), ("ml-1m.zip", "b")):
        flags = ["--source", tmp_path / source, "--output_dir", tmp_path / out]
        status, text, _ = command(prepare.main, "ml-1m", *flags)
        assert status == 0
    assert f"{len(slow_core(rows, 5))} rows" in text
    one, two = ((tmp_path / x / "ml-1m/test/train.txt").read_text() for x in "ab")
    assert one == two
    (tmp_path / "ml-1m.zip").write_bytes(b"PK no zip")
    status, _, err = command(prepare.main, "ml-1m", "--source", tmp_path / "ml-1m.zip",
                             "--output_dir", tmp_path / "c")  # fmt: skip
    assert (status, len(err)) == (2, 1)
    assert not (tmp_path / "c").exists()


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
        prepare.main(["ml-100k", "--output_dir", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_without_a_network_it_says_what_to_do(tmp_path, monkeypatch):
    fake_pip(monkeypatch, lambda _: None, 1, "WARNING: retrying\nERROR: no connection\n")
    with pytest.raises(UserError, match=r"no connection.*--source"):
        prepare.main(["ml-100k", "--output_dir", str(tmp_path)])


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
