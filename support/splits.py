"""Which rows of a source stay, in which order, and how a data set's files are cut from them.

Rows are DataFrames as ``rows.read_rows`` gives them.
"""

import contextlib
import filecmp
import math
import os
import shutil
from fractions import Fraction

import numpy as np

from support.headers import header_or_fault
from utils import UserError, atomic_write, sync_folder, temporary_beside

WRITTEN = 1 << 16  # rows whose lines are made together

# ------------------------------------------------------------------------------- choosing


def unique_pairs(rows, keep):
    """Each (user, item) once: its "first" or "last" row in time, ties in the file's order."""
    by_time = rows.sort_values("time", kind="stable")
    return by_time.drop_duplicates(["user", "item"], keep=keep).sort_index()


def k_core(rows, k):
    """What is left when users and items with fewer than k rows go, over and over."""
    while True:
        user, item = (rows[column].cat.codes.to_numpy() for column in ("user", "item"))
        enough = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
        if enough.all():
            return rows
        rows = rows[enough]


def in_time(rows):
    """Each user's rows together, in time order; ties keep their order."""
    return rows.iloc[np.lexsort((rows["time"], rows["user"].cat.codes))]


def count(rows):
    """(users, items, rows) that occur."""
    return rows["user"].nunique(), rows["item"].nunique(), len(rows)


def require_rows(rows, name, advice="is it whole?"):
    """``rows``, or a UserError where there are none."""
    if not len(rows):
        raise UserError(f"{name}: no users and items have rows enough; {advice}")
    return rows


# -------------------------------------------------------------------------------- writing


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


def write_splits(folder, rows, cut=split_points, advice="is the source whole?"):
    """Write both splits of rows from ``in_time``, and let them appear all at once."""
    user = rows["user"].cat.codes.to_numpy().astype(np.int64)
    lengths = np.diff(np.flatnonzero(np.diff(user, prepend=-1, append=-1)))
    place = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    train_end, validation_end = (np.repeat(end, lengths) for end in cut(lengths))
    parts = {
        "validation/train.txt": place < train_end,
        "validation/test.txt": (train_end <= place) & (place < validation_end),
        "test/train.txt": place < validation_end,
        "test/test.txt": validation_end <= place,
    }
    for name, part in parts.items():
        if not part.any():
            raise UserError(f"{folder}/{name}: no user has rows enough for it; {advice}")
        row = rows.iloc[np.flatnonzero(part)[0]]
        fields = [str(row[column]) for column in ("user", "item", "rating")]
        _, fault = header_or_fault(fields, [])
        if fault:
            raise UserError(
                f"{folder}/{name}: would begin with {' '.join(fields)!r} (row {row.name + 1} of the"
                " source), which a reader takes for a csv; let ids not end in such marks"
            )
    with appearing_folder(folder) as temporary, contextlib.ExitStack() as stack:
        files = {}
        for name in parts:
            (temporary / name).parent.mkdir(exist_ok=True)
            files[name] = stack.enter_context(atomic_write(temporary / name, "w"))
        for first, lines in _lines(rows):
            for name, part in parts.items():
                files[name].write("".join(lines[part[first : first + WRITTEN]]))
    print("prepared {}: {} users, {} items, {} rows".format(folder, *count(rows)))


@contextlib.contextmanager
def appearing_folder(folder):
    """Give a folder to write to, which becomes ``folder`` when the block ends, or nothing does."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(folder)
    temporary.mkdir()
    try:
        yield temporary
        try:
            os.rename(temporary, folder)
        except OSError:
            if not os.path.lexists(folder):
                raise
            if not _same_files(temporary, folder):
                raise UserError(
                    f"{folder}: meanwhile another run has made it, of other rows; that one stays"
                ) from None
            print(f"{folder}: meanwhile another run has prepared the same")
    except OSError as error:
        if error.filename:
            error.filename = str(error.filename).replace(str(temporary), str(folder))
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # nothing is there once it is renamed
    sync_folder(folder.parent)


def _same_files(first, second):
    """Whether every file of one folder is in the other, byte for byte."""
    names = [path.relative_to(first) for path in first.rglob("*.txt")]
    return all((second / name).is_file() for name in names) and all(
        filecmp.cmp(first / name, second / name, shallow=False) for name in names
    )


def _lines(rows):
    """Yield (place of the first, an array of lines `user item rating`), WRITTEN rows at a time."""
    pieces = []
    for column, form in (("user", "{} "), ("item", "{} "), ("rating", "{}\n")):
        names = rows[column].cat.categories
        codes = rows[column].cat.codes.to_numpy()
        pieces.append((np.array([form.format(name) for name in names], dtype=object), codes))
    for first in range(0, len(rows), WRITTEN):
        user, item, rating = (names[codes[first : first + WRITTEN]] for names, codes in pieces)
        yield first, user + item + rating
