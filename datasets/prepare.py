"""Prepare a data set: datasets/NAME/{validation,test}/{train,test}.txt, lines `user item rating`.

python datasets/prepare.py ml-100k
python datasets/prepare.py ml-1m --source ml-1m.zip
python datasets/prepare.py gowalla [--teacher] [--source FOLDER, FILE or snap]
python datasets/prepare.py gowalla-tail --source FOLDER   (the authors' datasets/gowalla)
python datasets/prepare.py csv --source ratings.csv --user userId --item movieId --time timestamp
"""

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support.data_set import read_interactions
from support.rows import Layout, read_rows
from support.sources import blob_id, download, guessed_delimiter, open_source, reported_damage
from support.splits import (
    appearing_folder,
    count,
    in_time,
    k_core,
    require_rows,
    rounded_split_points,
    split_points,
    unique_pairs,
    write_splits,
)
from utils import Parser, UserError, in_range, path_flag, run_command

DESCRIPTION = "Prepare a data set: datasets/NAME/{validation,test}/{train,test}.txt."
# The wheel that carries MovieLens-100K's ratings as a file; nothing of it is installed.
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FILE = "recbole/dataset_example/ml-100k/ml-100k.inter"
SNAP = "https://snap.stanford.edu/data/loc-gowalla_totalCheckins.txt.gz"
# The authors' ready Gowalla, commit 4fb5237, a second copy of it, and their ready teacher.
GOWALLA = (
    "https://github.com/graytowne/rank_distill/raw/4fb5237/datasets/gowalla",
    "https://raw.githubusercontent.com/zzxslp/CosRec/HEAD/data/gowalla",
)
GOWALLA_BLOBS = {  # git blob ids
    "validation/train.txt": "c762a1270dd64ba18c8612b22419fd124ebce63e",
    "validation/test.txt": "24db5da696cbaa99ef8c38f0d97ee8b0d9bc0e36",
    "test/train.txt": "0be3446a61c0841109aec2c9ab70db0797737e0f",
    "test/test.txt": "325262b29d182ea4062b641866a77fe77e129987",
}
TEACHER = "https://github.com/graytowne/rank_distill/raw/4fb5237/checkpoints"
TEACHER_NAME = "gowalla-caser-dim=100.pth.tar"
TEACHER_BLOB = "ac8a1999e1a99484de6065ab9d45e3d918c88b2b"
PAPERS_GOWALLA = (13_149, 14_009, 535_650)  # users, items, unique pairs
# What the right originals give: users, items, rows.
COUNTS = {
    "ml-100k": (943, 1_349, 99_287),
    "ml-1m": (6_040, 3_416, 999_611),
    "gowalla-tail": (6_677, 13_779, 120_083),
}


# -------------------------------------------------------------------------------- data sets


def fetch_ml_100k():
    """The bytes of ml-100k.inter, out of a wheel that pip downloads. UserError where it can't."""
    advice = "download ml-100k yourself and pass its u.data with --source"
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable,
            *["-m", "pip", "download", "--quiet", "--no-deps", "--dest"],
            folder,
            WHEEL,
        ]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
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
        name = args.source
        with open_source(name, ("ml-100k/u.data", "u.data")) as file, reported_damage(name):
            data = file.read()
    else:
        data, name = fetch_ml_100k(), WHEEL_FILE
    layout = Layout((0, 1, 2, 3), "\t", header=b"user_id:" in data[:20])
    rows, _ = read_rows(io.BytesIO(data), name, layout)
    rows = require_rows(k_core(rows, 5), name)
    write_splits(folder, in_time(rows))
    check_counts("ml-100k", rows, name)


def prepare_ml_1m(folder, args):
    """MovieLens-1M from its ratings.dat, or the zip that holds it: 5-core, time order."""
    source = needed(args, "ratings.dat or ml-1m.zip, from grouplens.org/datasets/movielens/1m")
    with open_source(source, ("ml-1m/ratings.dat", "ratings.dat")) as file:
        rows, _ = read_rows(file, source, Layout((0, 1, 2, 3), "::"))
    rows = require_rows(k_core(rows, 5), source)
    write_splits(folder, in_time(rows))
    check_counts("ml-1m", rows, source)


def prepare_gowalla(folder, args):
    """Gowalla: the authors' ready files, downloaded or at hand, or SNAP's check-ins."""
    if args.source and (args.source == "snap" or not os.path.isdir(args.source)):
        return prepare_check_ins(folder, args)
    with appearing_folder(folder) as temporary:
        for name, blob in GOWALLA_BLOBS.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            if not args.source:
                download([f"{base}/{name}" for base in GOWALLA], path, blob)
                continue
            source = Path(args.source, name)
            shutil.copyfile(source, path)
            if blob_id(path) != blob:
                told = f"{source}: not the authors' file (its git blob id is not {blob})"
                if not args.unverified:
                    raise UserError(f"{told}; --unverified takes it all the same")
                print(f"note: {told}")
        counts = counts_of(temporary)
    print("prepared {}: {} users, {} items, {} rows".format(folder, *counts))
    compare_with_paper(counts)


def prepare_check_ins(folder, args):
    """Gowalla from SNAP's check-ins: unique pairs, 15-core, time order."""
    source = args.source
    if source == "snap":
        source = folder.parent / ".downloads" / SNAP.rsplit("/", 1)[1]
        if not source.exists():
            download([SNAP], source)
    with open_source(source) as file:
        rows, _ = read_rows(file, source, Layout((0, 4, None, 1), "\t"))
    # The file runs from new to old: turned round, ties in time keep the order of events.
    rows = rows[::-1].reset_index(drop=True)
    rows = require_rows(k_core(unique_pairs(rows, args.keep or "last"), 15), source)
    write_splits(folder, in_time(rows))
    compare_with_paper(count(rows))


def is_authors(folder):
    """Whether a folder holds the authors' four files."""
    return all(
        (folder / name).is_file() and blob_id(folder / name) == blob
        for name, blob in GOWALLA_BLOBS.items()
    )


def fetch_teacher(folder):
    """Download the authors' ready teacher into ``folder``, unless it is there."""
    path = folder / TEACHER_NAME
    if path.exists():
        if blob_id(path) != TEACHER_BLOB:
            raise UserError(f"{path}: exists, and is not the authors' teacher; move it away")
        return
    download([f"{TEACHER}/{TEACHER_NAME}"], path, TEACHER_BLOB)
    print(f"saved the authors' teacher in {path}")


def check_counts(name, rows, source):
    """Say so where ``source`` was not the original that the name promises."""
    if count(rows) != COUNTS[name]:
        expected = "{:,} users, {:,} items, {:,} rows".format(*COUNTS[name])
        print(f"{source}: not the original, of which {name} has {expected}; results differ too")


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
    rows, _ = read_rows(io.BytesIO(data), f"{source}/{{validation,test}}/test.txt")
    user = rows["user"].cat.codes.to_numpy()
    rows = require_rows(rows[np.bincount(user)[user] >= 8], source)
    write_splits(folder, in_time(rows), rounded_split_points)
    check_counts("gowalla-tail", rows, source)


def prepare_csv(folder, args):
    """Any file of rows with a user, an item and a time."""
    source = needed(args, "a file with user, item and time columns")
    if not (args.user and args.item and args.time):
        raise UserError("--user, --item and --time name the columns, or number them from 1")
    columns = [args.user, args.item, args.rating, args.time]
    numbered = [column is None or column.isdecimal() for column in columns]
    columns = [int(c) - 1 if c and n else c for c, n in zip(columns, numbered, strict=True)]
    if -1 in columns:
        raise UserError("--user, --item, --time, --rating: columns are numbered from 1")
    delimiter = args.delimiter or guessed_delimiter(source)
    delimiter = "\t" if delimiter == "tab" else delimiter.replace("\\t", "\t")
    if set(delimiter) & set('"\r\n'):
        raise UserError("--delimiter: a quote or a line end can't divide columns; name another")
    header = args.header or not all(numbered)
    hint = "" if header else "; --header skips a line 1 of names"
    shares = str(args.train), str(args.validation)
    if not args.train < args.validation:
        raise UserError(f"--validation {args.validation}: must be above --train {args.train}")
    with open_source(source) as file:
        layout = Layout(tuple(columns), delimiter, header, args.dates, hint)
        rows, _ = read_rows(file, source, layout)
    if args.keep not in (None, "all"):
        rows = unique_pairs(rows, args.keep)
    rows = require_rows(k_core(rows, args.core), source, "use a lower --core")
    advice = "choose other shares by --train and --validation, or a higher --core"
    write_splits(folder, in_time(rows), lambda lengths: split_points(lengths, shares), advice)


def needed(args, what):
    if not args.source:
        raise UserError(f"{args.name} needs --source: {what}")
    return args.source


DATASETS = {
    "ml-100k": prepare_ml_100k,
    "ml-1m": prepare_ml_1m,
    "gowalla": prepare_gowalla,
    "gowalla-tail": prepare_gowalla_tail,
    "csv": prepare_csv,
}


def get_args_parser():
    parser = Parser(description=DESCRIPTION)
    parser.add_argument("name", choices=DATASETS, help="the data set")
    path_flag(parser, "--source", "the original file or folder, if you have it")
    path_flag(
        parser, "--output_dir", "where the data set's folder goes", str(Path(__file__).parent)
    )
    parser.add_argument("--keep", choices=["all", "first", "last"],
                        help="csv, SNAP's check-ins: which of a pair's rows stay (default: csv "
                        "all; of check-ins last, as in the authors' files)")  # fmt: skip
    for name, does in (
        ("--teacher", "fetch the authors' ready teacher into checkpoints/ too"),
        ("--unverified", "take files of --source FOLDER that are not the authors'"),
    ):
        parser.add_argument(name, action="store_true", help=f"gowalla: {does}")
    group = parser.add_argument_group("csv")
    path_flag(group, "--as_name", "the data set's name (default: the source's)", metavar="NAME")
    for name in ("user", "item", "time", "rating"):
        path_flag(group, f"--{name}", f"column of the {name}: its name, or its number from 1",
                  metavar="COLUMN")  # fmt: skip
    group.add_argument(
        "--header", action="store_true", help="skip line 1 though columns are numbers"
    )
    path_flag(group, "--delimiter", "between columns (default: comma, tab or semicolon, by line 1)",
              metavar="TEXT")  # fmt: skip
    group.add_argument("--dates", choices=["dmy", "mdy"],
                       help="whether 03/04/2011 has the day or the month first (default: told by a "
                       "number above 12)")  # fmt: skip
    group.add_argument("--core", default=5, type=in_range(int, "[1, 1e9]"), metavar="K",
                       help="fewest rows of a user and of an item, over and over")  # fmt: skip
    for name, share in (("train", 0.7), ("validation", 0.8)):
        group.add_argument(f"--{name}", default=share, type=in_range(float, "(0, 1)"), metavar="X",
                           help=f"share of a user's rows up to the end of {name}")  # fmt: skip
    return parser


CSV_FLAGS = {"as_name", "user", "item", "time", "rating", "header", "delimiter", "dates", "core",
             "train", "validation"}  # fmt: skip


def main(argv=None):
    parser = get_args_parser()
    args = parser.parse_args(argv)
    name = args.name
    foreign = set() if name == "csv" else {*CSV_FLAGS}
    foreign |= {"csv": {"teacher", "unverified"}, "gowalla": set()}.get(
        name, {"keep", "teacher", "unverified"}
    )
    for flag in sorted(foreign):
        if getattr(args, flag) != parser.get_default(flag):
            raise UserError(f"--{flag}: means nothing for {name}; leave it out")
    of_check_ins = args.source and not os.path.isdir(args.source) and args.keep != "all"
    if name == "gowalla" and args.keep and not of_check_ins:
        raise UserError(f"--keep {args.keep}: first or last, of SNAP's check-ins (--source)")
    if name == "csv":
        name = args.as_name or Path(args.source or "csv").name.split(".")[0]
        if name != Path(name).name or name in {"", ".", ".."} or name.startswith("-"):
            raise UserError(f"--as_name {name!r}: give a folder's name, not beginning with -")
    folder = Path(args.output_dir, name)
    if name == "gowalla" and folder.is_dir() and is_authors(folder):
        print(f"{folder}: the authors' own files are here and are used as they are")
        compare_with_paper(counts_of(folder))
    elif os.path.lexists(folder):
        other = "--as_name names" if args.name == "csv" else "--output_dir names"
        if not (folder / "test" / "train.txt").is_file() or _is_within(args.source, folder):
            raise UserError(f"{folder}: exists already, and not as this data set; {other} another")
        raise UserError(f"{folder}: exists already; delete it to prepare it again; {other} another")
    else:
        DATASETS[args.name](folder, args)
    if args.teacher:
        fetch_teacher(folder.parent.parent / "checkpoints")
    return 0


def _is_within(path, folder):
    """Whether a path, if there is one, is a folder or lies in it."""
    return bool(path) and Path(path).resolve().is_relative_to(folder.resolve())


def counts_of(folder):
    """(users, items, rows) of a ready split in ``folder``."""
    train, _ = read_interactions(folder / "test" / "train.txt")
    test, _ = read_interactions(folder / "test" / "test.txt", train.user_map, train.item_map)
    rows = len(train) + len(test) + test.num_unknown_user_rows
    items = train.num_items - 1 + len(test.unknown_items)
    return train.num_users + len(test.unknown_users), items, rows


if __name__ == "__main__":
    run_command(main)
