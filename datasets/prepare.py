"""Prepare a data set: datasets/NAME/{validation,test}/{train,test}.txt, lines `user item rating`.

python datasets/prepare.py ml-100k [--source u.data]
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from utils import Parser, UserError, run_command, sync_folder

# The wheel that carries MovieLens-100K's ratings as a file; nothing of it is installed.
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
WHEEL_FILE = "recbole/dataset_example/ml-100k/ml-100k.inter"


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


def read_ratings(data, name):
    """Parse `user item rating time` lines, a RecBole header allowed.

    data: bytes, name: of their file, for messages. Returns (users, items, ratings, times): lists
    of str, and times an int64 array.
    """
    lines = data.decode("utf-8", "replace").splitlines()
    first = 1 if lines and lines[0].startswith("user_id:") else 0
    rows = []
    for number, line in enumerate(lines[first:], first + 1):
        fields = line.split()
        if len(fields) != 4 or not fields[3].split(".")[0].isdecimal():
            raise UserError(f"{name}, line {number}: {line[:60]!r} is not `user item rating time`")
        rows.append(fields)
    if not rows:
        raise UserError(f"{name}: no ratings in it")
    users, items, ratings, times = zip(*rows, strict=True)
    return users, items, ratings, np.array([int(float(time)) for time in times])


def k_core(users, items, k):
    """The rows that are left when users and items with fewer than k rows go, over and over.

    users, items: (n,) int arrays of numbers from 0. Returns (m,) int indices, ascending.
    """
    rows = np.arange(len(users))
    while True:
        enough = (np.bincount(users[rows])[users[rows]] >= k) & (
            np.bincount(items[rows])[items[rows]] >= k
        )
        if enough.all():
            return rows
        rows = rows[enough]


def split_points(lengths):
    """Where a user's n rows are cut: train to ceil(0.7 n), validation to ceil(0.8 n).

    In whole numbers: 0.7 * 10 is a little over 7 as a float.
    """
    return -(-7 * lengths // 10), -(-8 * lengths // 10)


def write_splits(folder, users, lines):
    """Write both splits of rows sorted by user and time, and let them appear all at once.

    users: (n,) int array, equal ones adjacent. lines: n str. Raises UserError where ``folder``
    exists already.
    """
    lengths = np.diff(np.flatnonzero(np.diff(users, prepend=-1, append=-1)))
    place = np.arange(len(users)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    train_end, validation_end = (np.repeat(cut, lengths) for cut in split_points(lengths))
    parts = {
        "validation/train.txt": place < train_end,
        "validation/test.txt": (train_end <= place) & (place < validation_end),
        "test/train.txt": place < validation_end,
        "test/test.txt": validation_end <= place,
    }
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, chosen in parts.items():
            path = temporary / name
            path.parent.mkdir(exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.writelines(lines[row] for row in np.flatnonzero(chosen))
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder.parent)


def prepare_ml_100k(folder, source=None):
    """5-core, time order with ties in the file's order, both splits; prints the counts."""
    if source is None:
        data, name = fetch_ml_100k(), WHEEL_FILE
    else:
        data, name = Path(source).read_bytes(), source
    users, items, ratings, times = read_ratings(data, name)
    user, item = (np.unique(ids, return_inverse=True)[1] for ids in (users, items))
    rows = k_core(user, item, 5)
    if not len(rows):
        raise UserError(f"{name}: no user and item has 5 ratings")
    rows = rows[np.lexsort((times[rows], user[rows]))]  # stable: ties keep the file's order
    lines = [f"{users[row]} {items[row]} {ratings[row]}\n" for row in rows]
    write_splits(folder, user[rows], lines)
    counts = (len(np.unique(numbers[rows])) for numbers in (user, item))
    print("prepared {}: {} users, {} items, {} rows".format(folder, *counts, len(rows)))


DATASETS = {"ml-100k": prepare_ml_100k}


def main(argv=None):
    parser = Parser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=DATASETS, help="the data set")
    parser.add_argument("--source", metavar="FILE", help="the original file, if you have it")
    parser.add_argument(
        "--output_dir", default=str(Path(__file__).parent), help="where the data set's folder goes"
    )
    args = parser.parse_args(argv)
    folder = Path(args.output_dir, args.name)
    if folder.exists():
        raise UserError(f"{folder}: exists already; delete it to prepare it again")
    DATASETS[args.name](folder, args.source)
    return 0


if __name__ == "__main__":
    run_command(main)
