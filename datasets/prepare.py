"""Prepare a data set: datasets/NAME/{validation,test}/{train,test}.txt, lines `user item rating`.

python datasets/prepare.py ml-100k
python datasets/prepare.py ml-1m --source ml-1m.zip
python datasets/prepare.py gowalla [--source loc-gowalla_totalCheckins.txt.gz]
python datasets/prepare.py gowalla-tail --source FOLDER   (the authors' datasets/gowalla)
python datasets/prepare.py csv --source ratings.csv --user userId --item movieId --time timestamp
"""

import csv
import gzip
import hashlib
import http.client
import io
import itertools
import math
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import Parser, UserError, atomic_write, in_range, path_flag, run_command, sync_folder

# The wheel that carries MovieLens-100K's ratings as a file; nothing of it is installed.
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FILE = "recbole/dataset_example/ml-100k/ml-100k.inter"
SNAP = "https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz"
PAPERS_GOWALLA = (13_149, 14_009, 535_650)  # users, items, unique pairs
ROWS_AT_ONCE = 1 << 9  # read; too few to wake the garbage collector
WRITTEN = 1 << 16  # rows whose lines are made together


# -------------------------------------------------------------------------------- reading


@dataclass
class Events:
    """Who did what, and when, in the file's order.

    user, item, rating: (n,) int64, places in the lists of names ``users``, ``items``,
    ``ratings``. time: (n,) int64 or float64.
    """

    user: np.ndarray
    item: np.ndarray
    rating: np.ndarray
    time: np.ndarray
    users: list
    items: list
    ratings: list

    def __len__(self):
        return len(self.user)

    def take(self, rows):
        """The events ``rows`` (m,), in that order."""
        columns = (column[rows] for column in (self.user, self.item, self.rating, self.time))
        return Events(*columns, self.users, self.items, self.ratings)

    def counts(self):
        """(users, items, rows) that occur."""
        return len(np.unique(self.user)), len(np.unique(self.item)), len(self)


@dataclass
class Layout:
    """How a file of events is written.

    columns: where user, item, time and rating stand, from 0 or by the header's name; time and
    rating may be None. header: whether line 1 names the columns. delimiter: between columns.
    """

    columns: tuple
    header: bool = False
    delimiter: str = "\t"


def read_events(file, name, layout):
    """Read Events from a binary file; UserError, naming the line, where a row can't be read.

    Whole and decimal numbers and ISO 8601 dates (UTC where they tell no zone) are times.
    """
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    lines = text
    if len(layout.delimiter) > 1:
        lines = (line.replace(layout.delimiter, "\t") for line in text)
    delimiter = layout.delimiter if len(layout.delimiter) == 1 else "\t"
    quoting = csv.QUOTE_NONE if delimiter.isspace() else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    numbers = [defaultdict(itertools.count().__next__) for _ in range(3)]
    parts, dated = [], None
    try:
        places = list(layout.columns)
        if layout.header and (names := next(reader, None)):
            places = _places(names, layout, name)
        while chunk := list(itertools.islice(reader, ROWS_AT_ONCE)):
            rows = [row for row in chunk if row]
            if not rows:
                continue
            try:
                user, item, time, rating = (
                    ["1"] * len(rows) if place is None else [row[place].strip() for row in rows]
                    for place in places
                )
                if not (all(user) and all(item)) or not (_are_ids(user) and _are_ids(item)):
                    raise ValueError
                if any(not math.isfinite(float(value)) for value in set(rating)):
                    raise ValueError
                seconds, are_dates = _times(time)
                if dated not in (None, are_dates):
                    raise ValueError
                dated = are_dates
            except (IndexError, ValueError):
                fault = _first_fault(chunk, reader.line_num, places, dated)
                hint = "" if layout.header or parts else "; --header skips a line 1 of names"
                raise UserError(f"{name}, {fault}{hint}") from None
            coded = (
                np.fromiter(map(number.__getitem__, column), np.int64, len(rows))
                for number, column in zip(numbers, (user, item, rating), strict=True)
            )
            parts.append((*coded, seconds))
    except UnicodeDecodeError as error:
        line = reader.line_num + 1 + error.object[: error.start].count(b"\n")
        raise UserError(f"{name}, line {line}: not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise UserError(f"{name}, line {reader.line_num}: {error}") from None
    except (EOFError, OSError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"{name}: damaged ({error})") from None
    if not parts:
        raise UserError(f"{name}: no rows in it")
    columns = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Events(*columns, *(list(number) for number in numbers))


def _places(names, layout, name):
    """The numbers of the layout's columns, from a header's names."""
    places = []
    for column in layout.columns:
        if isinstance(column, str):
            if column not in names:
                raise UserError(
                    f"{name}, line 1: no column {column!r} in {', '.join(names)[:200]!r}; name one"
                    " that is there, or what stands between them by --delimiter"
                )
            column = names.index(column)
        places.append(column)
    return places


def _are_ids(names):
    """Whether no name holds white space or a NUL, which a data set's files can't."""
    text = "".join(names)
    return len(text.split(None, 1)) == 1 and "\0" not in text


def _times(column):
    """Numbers (n,) that sort as the times in ``column``, a list of str, do; whether these are
    dates. ValueError where one is neither a finite number nor a date, or where both occur."""
    try:
        return np.array(list(map(int, column)), dtype=np.int64), False
    except (ValueError, OverflowError):
        pass
    try:
        times, dates = np.array(list(map(float, column))), False
    except ValueError:
        parsed = map(datetime.fromisoformat, column)
        times = np.array([(d if d.tzinfo else d.replace(tzinfo=UTC)).timestamp() for d in parsed])
        dates = True
    if not np.isfinite(times).all():
        raise ValueError("a time is not finite")
    return times, dates


def _first_fault(chunk, last_line, places, dated):
    """Where the first row in ``chunk`` is that can't be read, and why.

    dated: whether earlier times were dates; None where there are none.
    """
    spans = [1 + sum(field.count("\n") for field in row) for row in chunk]
    for number, row in zip(last_line + 1 - np.cumsum(spans[::-1])[::-1], chunk, strict=True):
        if not row:
            continue
        where = f"line {number}: {' '.join(row)[:60]!r}"
        try:
            user, item, time, rating = ("1" if p is None else row[p].strip() for p in places)
        except IndexError:
            return f"{where} has {len(row)} column(s); more are needed"
        if not (user and item and _are_ids([user, item])):
            return f"{where}: a user or item is empty or holds white space or a NUL"
        try:
            if not math.isfinite(float(rating)):
                raise ValueError
        except ValueError:
            return f"{where}: {rating[:30]!r} is no rating"
        try:
            _, is_date = _times([time])
        except ValueError:
            return f"{where}: {time[:30]!r} is no time"
        if dated not in (None, is_date):
            return f"{where}: {time[:30]!r} is another kind of time than those before it"
        dated = is_date
    raise AssertionError("no row of the chunk has a fault")


def open_source(path, member=None):
    """Open a plain or .gz file, or the ``member`` of a .zip (default: its only one), for reading
    bytes."""
    path = str(path)
    if path.endswith(".zip"):
        try:
            archive = zipfile.ZipFile(path)
            if member is None and len(archive.namelist()) != 1:
                raise UserError(f"{path}: holds several files; unpack it and name one of them")
            return archive.open(member or archive.namelist()[0])
        except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{path}: {error}") from None
    return gzip.open(path) if path.endswith(".gz") else open(path, "rb")


# ------------------------------------------------------------------------------- choosing


def unique_pairs(events, keep):
    """Each (user, item) once: its "first" or "last" event in time, ties in the file's order."""
    order = np.lexsort((events.time, events.item, events.user))
    user, item = events.user[order], events.item[order]
    new = (np.diff(user, prepend=-1) != 0) | (np.diff(item, prepend=-1) != 0)
    chosen = new if keep == "first" else np.append(new[1:], True)
    return events.take(np.sort(order[chosen]))


def k_core(events, k):
    """What is left when users and items with fewer than k rows go, over and over."""
    rows = np.arange(len(events))
    while True:
        user, item = events.user[rows], events.item[rows]
        enough = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
        if enough.all():
            return events.take(rows)
        rows = rows[enough]


def in_time(events):
    """Each user's events together, in time order; ties keep their order."""
    return events.take(np.lexsort((events.time, events.user)))


def split_points(lengths, shares=("0.7", "0.8")):
    """Where a user's n rows are cut, in exact arithmetic: 0.7 * 10 is a little over 7 as a float.

    lengths: (users,) int. Returns two (users,) int arrays: where the validation rows begin, at
    ceil(0.7 n), and where the test rows do, at ceil(0.8 n).
    """
    sizes, inverse = np.unique(lengths, return_inverse=True)
    cuts = [[math.ceil(Fraction(share) * n) for n in sizes.tolist()] for share in shares]
    return [np.array(cut)[inverse] for cut in cuts]


def rounded_split_points(lengths):
    """As ``split_points``, at round(0.7 n) and round(0.8 n) in floating point."""
    return [np.array([round(share * n) for n in lengths.tolist()]) for share in (0.7, 0.8)]


# -------------------------------------------------------------------------------- writing


def write_splits(folder, events, cut=split_points):
    """Write both splits of events from ``in_time``, and let them appear all at once."""
    lengths = np.diff(np.flatnonzero(np.diff(events.user, prepend=-1, append=-1)))
    place = np.arange(len(events)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    train_end, validation_end = (np.repeat(end, lengths) for end in cut(lengths))
    parts = {
        "validation/train.txt": place < train_end,
        "validation/test.txt": (train_end <= place) & (place < validation_end),
        "test/train.txt": place < validation_end,
        "test/test.txt": validation_end <= place,
    }
    for name, chosen in parts.items():
        if not chosen.any():
            raise UserError(
                f"{folder}/{name}: no user has rows enough for it; choose other shares by --train"
                " and --validation, or a higher --core"
            )
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, chosen in parts.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            with atomic_write(path, "w") as file:
                for rows in np.array_split(np.flatnonzero(chosen), len(events) // WRITTEN + 1):
                    file.writelines(_lines(events, rows))
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    print("prepared {}: {} users, {} items, {} rows".format(folder, *events.counts()))


def _lines(events, rows):
    """The events ``rows`` as lines `user item rating`."""
    for user, item, rating in zip(
        *(column[rows].tolist() for column in (events.user, events.item, events.rating)),
        strict=True,
    ):
        yield f"{events.users[user]} {events.items[item]} {events.ratings[rating]}\n"


def left(events, name):
    """``events``, or a UserError where nothing is left of them."""
    if not len(events):
        raise UserError(f"{name}: no users and items have rows enough; use a lower --core")
    return events


# -------------------------------------------------------------------------------- data sets


def fetch_ml_100k():
    """The bytes of ml-100k.inter, out of a wheel that pip downloads. UserError where it can't."""
    advice = "download ml-100k yourself and pass its u.data with --source"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            folder,
        ]
        done = subprocess.run([*command, WHEEL], capture_output=True, text=True, errors="replace")
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            errors = [line for line in done.stderr.splitlines() if "error" in line.lower()]
            reason = (errors or done.stderr.splitlines() or ["no wheel came"])[-1]
            raise UserError(f"pip could not download {WHEEL} ({reason}); {advice}")
        digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
        if digest != WHEEL_SHA256:
            raise UserError(
                f"{wheels[0].name}: its SHA-256 is {digest}, not the pinned one; {advice}"
            )
        with zipfile.ZipFile(wheels[0]) as wheel:
            return wheel.read(WHEEL_FILE)


def prepare_ml_100k(folder, args):
    """MovieLens-100K: 5-core, time order with ties in the file's order."""
    if args.source:
        data, name = Path(args.source).read_bytes(), args.source
    else:
        data, name = fetch_ml_100k(), WHEEL_FILE
    layout = Layout((0, 1, 3, 2), header=b"user_id:" in data[:20])
    events = left(k_core(read_events(io.BytesIO(data), name, layout), 5), name)
    write_splits(folder, in_time(events))


def prepare_ml_1m(folder, args):
    """MovieLens-1M from its ratings.dat, or the zip that holds it: 5-core, time order."""
    source = needed(args, "ratings.dat or ml-1m.zip, from grouplens.org/datasets/movielens/1m")
    with open_source(source, "ml-1m/ratings.dat") as file:
        events = read_events(file, source, Layout((0, 1, 3, 2), delimiter="::"))
    write_splits(folder, in_time(left(k_core(events, 5), source)))


def prepare_gowalla(folder, args):
    """Gowalla from SNAP's check-ins: unique pairs, 15-core, time order."""
    source = args.source or download(SNAP, folder.parent / ".downloads")
    with open_source(source) as file:
        events = read_events(file, source, Layout((0, 4, 1, None)))
    # The file runs from new to old: turned round, ties in time keep the order of events.
    events = events.take(np.arange(len(events))[::-1])
    events = left(k_core(unique_pairs(events, args.keep), 15), source)
    write_splits(folder, in_time(events))
    compare_with_paper(events.counts())


def compare_with_paper(counts):
    """Print a Gowalla's counts beside the paper's, and whether they differ."""
    print("here:      {:,} users, {:,} items, {:,} rows".format(*counts))
    print("the paper: {:,} users, {:,} items, {:,} rows".format(*PAPERS_GOWALLA))
    if counts != PAPERS_GOWALLA:
        print("These differ: results on this data are not the paper's Gowalla results.")


def prepare_gowalla_tail(folder, args):
    """The last 30% of the rows of the authors' Gowalla, users with 8 or more there."""
    source = Path(needed(args, "the authors' folder datasets/gowalla"))
    data = b"\n".join((source / part / "test.txt").read_bytes() for part in ("validation", "test"))
    layout = Layout((0, 1, None, 2), delimiter=" ")
    events = read_events(io.BytesIO(data), f"{source}/{{validation,test}}/test.txt", layout)
    events = events.take(np.flatnonzero(np.bincount(events.user)[events.user] >= 8))
    write_splits(folder, in_time(left(events, source)), rounded_split_points)


def prepare_csv(folder, args):
    """Any file of rows with a user, an item and a time."""
    source = needed(args, "a file with user, item and time columns")
    columns = [args.user, args.item, args.time, args.rating]
    if any(column is None for column in columns[:3]):
        raise UserError("--user, --item and --time name the columns, or number them from 1")
    numbered = [column is None or column.isdecimal() for column in columns]
    columns = [int(c) - 1 if c and n else c for c, n in zip(columns, numbered, strict=True)]
    if -1 in columns:
        raise UserError("--user, --item, --time, --rating: columns are numbered from 1")
    by_tabs = source.removesuffix(".gz").endswith((".tsv", ".inter"))
    delimiter = args.delimiter or ("\t" if by_tabs else ",")
    layout = Layout(
        tuple(columns), args.header or not all(numbered), delimiter.replace("\\t", "\t")
    )
    shares = str(args.train), str(args.validation)
    if columns[0] == columns[1]:
        raise UserError(f"--user {args.user} --item {args.item}: name the same column")
    if not args.train < args.validation:
        raise UserError(f"--validation {args.validation}: must be above --train {args.train}")
    with open_source(source) as file:
        events = left(k_core(read_events(file, source, layout), args.core), source)
    write_splits(folder, in_time(events), lambda lengths: split_points(lengths, shares))


def needed(args, what):
    if not args.source:
        raise UserError(f"{args.name} needs --source: {what}")
    return args.source


def download(address, folder):
    """The path of a downloaded file, kept in ``folder``; UserError where it can't be had."""
    path = folder / address.rsplit("/", 1)[1]
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        print(f"downloading {address}", flush=True)
        try:
            with urllib.request.urlopen(address, timeout=60) as source, atomic_write(path) as file:
                shutil.copyfileobj(source, file)
                size = source.headers.get("Content-Length", file.tell())
                if file.tell() != int(size):
                    raise OSError(f"{file.tell()} of {size} bytes came")
        except (http.client.HTTPException, OSError) as error:
            raise UserError(
                f"{address}: could not be downloaded ({error}); get it yourself and pass --source"
            ) from None
    return path


DATASETS = {
    "ml-100k": prepare_ml_100k,
    "ml-1m": prepare_ml_1m,
    "gowalla": prepare_gowalla,
    "gowalla-tail": prepare_gowalla_tail,
    "csv": prepare_csv,
}


def get_args_parser():
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=DATASETS, help="the data set")
    path_flag(parser, "--source", "the original file or folder, if you have it")
    path_flag(
        parser, "--output_dir", "where the data set's folder goes", str(Path(__file__).parent)
    )
    parser.add_argument("--keep", default="first", choices=["first", "last"],
                        help="gowalla: which of a pair's repeated check-ins stays")  # fmt: skip
    group = parser.add_argument_group("csv")
    path_flag(group, "--as_name", "the data set's name (default: the source's)", metavar="NAME")
    for name in ("user", "item", "time", "rating"):
        path_flag(group, f"--{name}", f"column of the {name}: its name, or its number from 1",
                  metavar="COLUMN")  # fmt: skip
    group.add_argument(
        "--header", action="store_true", help="skip line 1 though columns are numbers"
    )
    path_flag(
        group, "--delimiter", "between columns (default: , or a tab by the name)", metavar="TEXT"
    )
    group.add_argument("--core", default=5, type=in_range(int, "[1, 1e9]"), metavar="K",
                       help="fewest rows of a user and of an item, over and over")  # fmt: skip
    for name, share in (("train", 0.7), ("validation", 0.8)):
        group.add_argument(f"--{name}", default=share, type=in_range(float, "(0, 1)"), metavar="X",
                           help=f"share of a user's rows up to the end of {name}")  # fmt: skip
    return parser


CSV_FLAGS = {"as_name", "user", "item", "time", "rating", "header", "delimiter", "core", "train",
             "validation"}  # fmt: skip


def main(argv=None):
    parser = get_args_parser()
    args = parser.parse_args(argv)
    name = args.name
    foreign = (CSV_FLAGS if name != "csv" else set()) | ({"keep"} if name != "gowalla" else set())
    for flag in sorted(foreign):
        if getattr(args, flag) != parser.get_default(flag):
            raise UserError(f"--{flag}: means nothing for {name}; leave it out")
    if name == "csv":
        name = args.as_name or Path(args.source or "csv").name.split(".")[0]
        if name != Path(name).name or name in {"", ".", ".."}:
            raise UserError(f"--as_name {name!r}: give a folder's name")
    folder = Path(args.output_dir, name)
    if folder.exists():
        counts = authors_counts(folder) if name == "gowalla" else None
        if counts == PAPERS_GOWALLA:
            print(f"{folder}: the authors' own split is here and is used as it is")
            compare_with_paper(counts)
            return 0
        raise UserError(f"{folder}: exists already; delete it to prepare it again")
    DATASETS[args.name](folder, args)
    return 0


def authors_counts(folder):
    """(users, items, rows) of a ready split in ``folder``, or None where there is none."""
    users, items, rows = set(), set(), 0
    for part in ("train", "test"):
        path = folder / "test" / f"{part}.txt"
        if not path.is_file():
            return None
        for line in path.read_bytes().splitlines():
            user, item, *_ = [*line.split(), b"", b""]
            users.add(user)
            items.add(item)
            rows += 1
    return len(users), len(items), rows


if __name__ == "__main__":
    run_command(main)
