"""Events, who did what and when: reading them from a file, and choosing among them."""

import csv
import gzip
import io
import itertools
import lzma
import math
import zipfile
import zlib
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from utils import UserError

ROWS_AT_ONCE = 1 << 9  # read; too few to wake the garbage collector


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
    hint: ends the message where the first rows can't be read, without a header.
    """

    columns: tuple
    header: bool = False
    delimiter: str = "\t"
    hint: str = ""


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
            places = _places([column.strip() for column in names], layout, name)
        if places[0] == places[1]:
            raise UserError(f"{name}: user and item are the same column; name two")
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
                if not all(map(_is_rating, set(rating))):
                    raise ValueError
                seconds, are_dates = _times(time)
                if dated not in (None, are_dates):
                    raise ValueError
                dated = are_dates
            except (IndexError, ValueError):
                fault = _first_fault(chunk, reader.line_num, places, dated)
                hint = "" if layout.header or parts else layout.hint
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
    except (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile) as error:
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
            if names.count(column) > 1:
                raise UserError(
                    f"{name}, line 1: {names.count(column)} columns {column!r}; number the columns"
                    " and add --header"
                )
            column = names.index(column)
        places.append(column)
    return places


def _are_ids(names):
    """Whether no name holds what a data set's files can't: white space, a NUL, or the mark that
    begins some UTF-8 files, which stands elsewhere where such files were joined."""
    text = "".join(names)
    return len(text.split(None, 1)) == 1 and "\0" not in text and "\ufeff" not in text


def _is_rating(text):
    """Whether it is a finite number in ASCII digits."""
    try:
        return text.isascii() and math.isfinite(float(text))
    except ValueError:
        return False


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
            return f"{where}: a user or item is empty or holds white space, a NUL or a BOM"
        if not _is_rating(rating):
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
    ending = Path(path).suffix.lower()
    if ending == ".zip":
        try:
            archive = zipfile.ZipFile(path)
            files = [name for name in archive.namelist() if not name.endswith("/")]
            if member is None and len(files) != 1:
                raise UserError(f"{path}: holds {len(files)} files; unpack it and name one of them")
            return archive.open(member or files[0])
        except (zipfile.BadZipFile, KeyError, RuntimeError, NotImplementedError) as error:
            raise UserError(f"{path}: {error}") from None
    return gzip.open(path) if ending == ".gz" else open(path, "rb")


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
