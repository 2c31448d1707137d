"""Who did what, in order: reading a data set, and its windows.

The vocabulary is Spotlight's (Interactions, to_sequence, SequenceInteractions). Users are
numbered from 0 and items from 1, by first appearance in the training file; item 0 is padding.
"""

import os
import re
import stat
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from utils import UserError, fingerprint

PADDING = 0
SPLITS = ("test", "validation")
ROWS_AT_ONCE = 1 << 9  # lines split at a time: too few to wake the garbage collector


@dataclass
class SequenceInteractions:
    """Windows of L items, and the T items that follow each.

    user_ids: (n,) int64. sequences: (n, L) int64, left-padded with 0. targets: (n, T) int64,
    or None for the windows that a test starts from.
    """

    user_ids: np.ndarray
    sequences: np.ndarray
    targets: np.ndarray | None = None


class Interactions:
    """The rows of a file ``user item [rating [time]]``, in its order; ratings are not used.

    Parameters
    ----------
    file_path: path of a UTF-8 text file, 2 to 4 columns separated by white space.
    user_map, item_map: maps of a training file, for the test file that belongs to it. Rows of
        users outside ``user_map`` are dropped; items outside ``item_map`` get numbers from
        ``num_items`` on, which no model can score, so that they still count as targets.

    Attributes
    ----------
    user_ids, item_ids: (n,) int64, a row each.
    user_map, item_map: dict of original id (str) to number.
    num_users, num_items: int; num_items counts the padding id.
    unknown_users, unknown_items: lists of original ids outside the given maps.
    num_unknown_user_rows: int, the rows that were dropped.
    notes: list of str, what a reader of results should know of the file.
    sequences, test_sequences: SequenceInteractions, set by ``to_sequence``.

    Raises UserError, naming file and line, where the file can't be read as such.

    Example
    -------
    >>> train = Interactions("datasets/ml-100k/test/train.txt")       # doctest: +SKIP
    >>> train.to_sequence(sequence_length=5, target_length=1)         # doctest: +SKIP
    >>> train.sequences.sequences.shape, train.sequences.targets.shape  # doctest: +SKIP
    """

    def __init__(self, file_path, user_map=None, item_map=None):
        self.path = file_path
        self.notes = []
        users = defaultdict(count(len(user_map or ())).__next__, _encoded(user_map or {}))
        items = defaultdict(count(len(item_map or ()) + 1).__next__, _encoded(item_map or {}))
        columns = [
            (
                np.fromiter(map(users.__getitem__, user_column), np.int64, len(user_column)),
                np.fromiter(map(items.__getitem__, item_column), np.int64, len(item_column)),
            )
            for user_column, item_column in self._read_columns()
        ]
        if not columns:
            raise UserError(f"{file_path}: no rows in it; expected lines `user item rating`")
        self.user_ids, self.item_ids = (
            np.concatenate(parts) for parts in zip(*columns, strict=True)
        )

        self.user_map = _decoded(users) if user_map is None else user_map
        self.item_map = _decoded(items) if item_map is None else item_map
        self.num_users = len(self.user_map)
        self.num_items = len(self.item_map) + 1
        known = self.user_ids < self.num_users
        self.num_unknown_user_rows = int((~known).sum())
        self.user_ids, self.item_ids = self.user_ids[known], self.item_ids[known]
        self.unknown_users = [name.decode() for name in list(users)[self.num_users :]]
        self.unknown_items = [name.decode() for name in list(items)[self.num_items - 1 :]]
        self.sequences = self.test_sequences = None

    def __len__(self):
        return len(self.user_ids)

    def _read_columns(self):
        """Yield (users, items), lists of bytes, for a bounded number of rows at a time."""
        try:
            with open(self.path, "rb") as file:
                if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                    raise UserError(f"{self.path}: is no regular file")
                data = file.read()
        except OSError as error:
            raise UserError(f"{self.path}: {error.strerror}") from None
        data = BYTE_ORDER_MARKS.sub(b"", data) if b"\xef\xbb\xbf" in data else data

        def refuse(position, reason):
            number = len((data[:position] + b"x").splitlines())
            raise UserError(f"{self.path}, line {number}: {reason}")

        try:
            data.decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(error.start, "not UTF-8; save the file as UTF-8")
        if b"\0" in data:
            refuse(data.index(b"\0"), "a NUL byte, so this is no UTF-8 text")
        if b"\t" in data and b" " in data and (found := SPACE_INSIDE_TABS.search(data)):
            refuse(
                found.start(),
                f"{_quoted(found[0])} has a space between tabs; ids hold no white space, and one"
                " kind of separator divides the columns",
            )
        lines = data.splitlines()
        first = next((number for number, line in enumerate(lines) if line.strip()), len(lines))
        if first < len(lines):
            self._refuse_csv(lines[first : first + 1000], first)
            first += self._is_header(lines, first)
        width = None
        for start in range(first, len(lines), ROWS_AT_ONCE):
            chunk = lines[start : start + ROWS_AT_ONCE]
            rows = [fields for fields in map(bytes.split, chunk) if fields]
            if not rows:
                continue
            width = width or len(rows[0])
            regular = 2 <= width <= 4 and set(map(len, rows)) == {width}
            if regular and width > 2:
                regular = all(map(_is_number, {fields[2] for fields in rows}))
            elif regular:
                regular = not any(map(HEADER.match, chunk))
            if not regular:
                raise self._first_fault(chunk, start, width)
            yield [fields[0] for fields in rows], [fields[1] for fields in rows]

    def _first_fault(self, chunk, start, width):
        """The UserError of the first line in ``chunk`` that is not like the file's first one."""
        for number, line in enumerate(chunk, start + 1):
            fields = line.split()
            where = f"{self.path}, line {number}: {_quoted(line)}"
            if fields and not 2 <= len(fields) <= 4:
                return UserError(
                    f"{where} has {len(fields)} field(s); expected `user item [rating [time]]`,"
                    " separated by spaces or tabs"
                )
            if fields and len(fields) != width:
                return UserError(f"{where} has {len(fields)} fields, the lines above {width}")
            if len(fields) > 2 and not _is_number(fields[2]):
                return UserError(f"{where}: the rating {_quoted(fields[2])} is not a number")
            if len(fields) == 2 and HEADER.match(line):
                return UserError(f"{where} looks like a header; delete that line")
        raise AssertionError("a chunk that failed has a line that fails")

    def _refuse_csv(self, lines, first):
        """UserError where other marks than white space seem to divide the columns."""
        fields = lines[0].split()
        for mark in (b",", b";", b"|", b"::"):
            if len(fields) in (3, 4) and _is_number(fields[2]):  # as data should be
                divided = all(field.endswith(mark) for field in fields[:2])
            else:
                divided = any(mark in field for field in fields[:2])
                divided = divided and all(mark in line for line in lines if line.strip())
            if divided:
                raise UserError(
                    f"{self.path}, line {first + 1}: {_quoted(lines[0])} looks like a csv file;"
                    " separate the columns by spaces or tabs, or, where these are ids, add a third"
                    " column of ratings"
                )

    def _is_header(self, lines, first):
        """Whether line ``first`` names the columns; UserError where it can't be data either."""
        line, fields = lines[first], lines[first].split()
        if len(fields) < 2 or (len(fields) > 2 and _is_number(fields[2])):
            return False
        where = f"{self.path}, line {first + 1}: {_quoted(line)}"
        if HEADER.match(line):
            self.notes.append(f"{where} is a header and was skipped")
            return True
        rest = [row for row in map(bytes.split, lines[first + 1 : first + 1000]) if len(row) > 1]
        if len(fields) > 2:
            unlike = rest and len(rest[0]) > 2 and _is_number(rest[0][2])
        else:
            worded = not any(byte in b"0123456789" for byte in line)
            numbered = rest and all(row[0].isdigit() and row[1].isdigit() for row in rest)
            unlike = (worded and numbered) or USER_COLUMN.match(line)
        if unlike:
            raise UserError(f"{where} looks like a header; delete that line")
        return False

    def tocsr(self):
        """The unique (user, item) pairs as a scipy CSR matrix with sorted indices."""
        width = self.num_items + len(self.unknown_items)
        ones = np.ones(len(self), dtype=bool)
        pairs = sp.csr_matrix((ones, (self.user_ids, self.item_ids)), (self.num_users, width))
        pairs.sum_duplicates()
        return pairs

    def fingerprint(self):
        """A hash of the rows, in the order of their users, with the original ids."""
        order = np.argsort(self.user_ids, kind="stable")
        maps = "\n".join((*self.user_map, "", *self.item_map)).encode()
        rows = self.user_ids[order], self.item_ids[order]
        return fingerprint(*rows, np.frombuffer(maps, dtype=np.uint8))

    def to_sequence(self, sequence_length=5, target_length=1):
        """Cut every user's row of items into windows, in the order of the authors' code.

        Sets ``sequences``: every run of L + T consecutive items of a user, newest first, users
        in order. A user with T < n < L + T rows has one window, left-padded with 0; one with
        n <= T rows has none. Sets ``test_sequences``: every user's last L items, (num_users, L).
        """
        L, T = sequence_length, target_length
        items = self.item_ids[np.argsort(self.user_ids, kind="stable")]
        lengths = np.bincount(self.user_ids, minlength=self.num_users)
        ends = np.cumsum(lengths)
        starts = ends - lengths

        def rows_before(users, stops, width):  # (n, width): the items up to each stop, padded
            positions = stops[:, None] + np.arange(-width, 0)
            inside = positions >= starts[users, None]
            return np.where(inside, items[np.where(inside, positions, 0)], PADDING)

        windows = np.where(lengths > T, np.maximum(lengths - (L + T) + 1, 1), 0)
        users = np.repeat(np.arange(self.num_users), windows)
        age = np.arange(len(users)) - np.repeat(np.cumsum(windows) - windows, windows)
        rows = rows_before(users, ends[users] - age, L + T)
        self.sequences = SequenceInteractions(users, rows[:, :L], rows[:, L:])
        everyone = np.arange(self.num_users)
        self.test_sequences = SequenceInteractions(everyone, rows_before(everyone, ends, L))


BYTE_ORDER_MARKS = re.compile(rb"(?m)^(?:\xef\xbb\xbf)+")
SPACE_INSIDE_TABS = re.compile(rb"(?m)^(?=[^\r\n]*\S[ ]*\t)[^\r\n]*[^\s][ ]+[^\s][^\r\n]*")
# A line that names its columns, such as `user_id:token item_id:token` or `userId movieId`.
_NAME = rb"[\"']?(?:%s)s?[_-]?(?:id|name|no|nr|num|number|index|idx|key|code)?(?::\w+)?[\"']?"
_USER = _NAME % (
    rb"user|customer|client|member|reviewer|reader|listener|visitor|buyer|session|person|author"
    rb"|account|profile|u(?=[_-]?id)"
)
_ITEM = _NAME % (
    rb"item|movie|film|show|product|song|track|artist|book|business|location|venue|poi|place"
    rb"|article|news|video|game|anime|ad|app|content|recipe|url|page|check-?in|isbn|sku"
    rb"|(?:parent_?)?asin|hotel|restaurant|[a-z](?=[_-]?id)"
)
USER_COLUMN = re.compile(rb"(?i)\s*%s\s" % _USER)
HEADER = re.compile(rb"(?i)\s*%s\s+%s(?:\s|$)" % (_USER, _ITEM))


def _is_number(field):
    try:
        float(field)
    except ValueError:
        return False
    return True


def _quoted(line):
    text = line.decode("utf-8", "replace")
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _encoded(ids):
    return {name.encode(): number for name, number in ids.items()}


def _decoded(ids):
    return {name.decode(): number for name, number in ids.items()}


@dataclass
class DataSet:
    """A training file and the file to predict, ready for use.

    name: what files made from it are named after; it ends in "-validation" for that split.
    train: Interactions after ``to_sequence``. test: Interactions with train's maps.
    counts: dict of str to int. notes: one-line str each, what a reader of results should know.
    """

    name: str
    train: Interactions
    test: Interactions
    counts: dict
    notes: list

    @classmethod
    def load(cls, name, train_path, test_path, L, T):
        """Read both files; UserError where nothing could be trained or evaluated."""
        train = Interactions(train_path)
        train.to_sequence(L, T)
        test = Interactions(test_path, train.user_map, train.item_map)
        return cls(name, train, test, *_describe(train, test))

    def headline(self):
        """One line of counts."""
        windows = self.train.sequences
        L, T = windows.sequences.shape[1], windows.targets.shape[1]
        line = (
            "{0}: {users} users, {items} items, {train_rows} train rows, {windows} windows"
            " (L={1}, T={2}), {test_rows} test rows of {test_users} users"
        )
        return line.format(self.name, L, T, **self.counts)

    @cached_property
    def identity(self):
        """What a checkpoint keeps of its data: plain values, ids of one kind in one string."""
        return {
            "name": self.name,
            "user_ids": "\n".join(self.train.user_map),
            "item_ids": "\n".join(self.train.item_map),
            "fingerprint": self.train.fingerprint(),
            "test": self.test.fingerprint(),
        }

    def check(self, checkpoint, allow_other_data=False):
        """Refuse, with a UserError, a checkpoint (``checkpoint.read_checkpoint``) of other data.

        Returns a list of notes: what could not be verified.
        """
        path, train = checkpoint["path"], self.train
        sizes = checkpoint["num_users"], checkpoint["num_items"] - 1
        if sizes != (train.num_users, train.num_items - 1):
            raise UserError(
                f"{path}: the checkpoint has {sizes[0]} users and {sizes[1]} items, {train.path}"
                f" has {train.num_users} and {train.num_items - 1}; it was trained on other data"
            )
        theirs, ours = checkpoint.get("data"), self.identity
        if theirs is None:
            return [
                f"{path}: tells nothing of its data, drop, ac_conv and ac_fc; only the numbers of"
                " users and items could be compared, and the flags give the rest"
            ]
        notes = []
        for key, what in (
            ("user_ids", "user ids"),
            ("item_ids", "item ids"),
            ("fingerprint", "rows"),
        ):
            if theirs.get(key) != ours[key]:
                notes.append(
                    f"{path}: trained on {theirs.get('name')!r}, whose {what} are not those of"
                    f" {train.path} (the targets of this split may be among them)"
                )
        if notes and not allow_other_data:
            raise UserError(f"{notes[0]}; --allow_other_data accepts it all the same")
        return notes


def find_files(dataset, split, train_root=None, test_root=None):
    """(name, training file, file to predict) of datasets/<dataset>/<split>/, or of given files.

    ml-100k is prepared where it is missing. The name is that of the folder above test/ or
    validation/; UserError where there is no such data set.
    """
    if train_root:
        folder = Path(os.path.abspath(train_root)).parent
        name = (folder.parent if folder.name in SPLITS else folder).name or "data"
        paths = train_root, test_root
    else:
        name, folder = dataset, Path("datasets", dataset)
        if name != folder.name:
            raise UserError(f"--dataset {name!r}: give a folder's name, or use --train_root")
        if not folder.is_dir():
            if name != "ml-100k":
                raise UserError(f"{folder}: no such data set; see datasets/README.md")
            prepare = Path(__file__).with_name("datasets") / "prepare.py"
            command = [sys.executable, prepare, name, "--output_dir", folder.parent]
            if status := subprocess.run(command, stdout=2).returncode:  # 2: stderr
                sys.exit(status)  # it has said why
        paths = (str(folder / split / f"{part}.txt") for part in ("train", "test"))
    return name + "-validation" * (split == "validation"), *paths


def _describe(train, test):
    """The counts and the notes of a DataSet."""
    seen, wanted = train.tocsr(), test.tocsr()
    seen.resize(wanted.shape)
    owners = np.flatnonzero(np.diff(seen.indptr) == train.num_items - 1)
    strange = wanted.indices[wanted.indices >= train.num_items]
    counts = {
        "users": train.num_users,
        "items": train.num_items - 1,
        "train_rows": len(train),
        "windows": int((~np.isin(train.sequences.user_ids, owners)).sum()),
        "test_rows": len(test),
        "test_users": int((np.diff(wanted.indptr) > 0).sum()),
        "test_targets": wanted.nnz,
        "unknown_test_users": len(test.unknown_users),
        "unknown_test_user_rows": test.num_unknown_user_rows,
        "unknown_test_items": len(np.unique(strange)),
        "unknown_item_targets": len(strange),
        "repeated_targets": seen.multiply(wanted).nnz,
        "owners_of_everything": len(owners),
    }
    notes = train.notes + test.notes
    if counts["unknown_test_users"]:
        notes.append(
            "{unknown_test_users} test user(s), e.g. {0!r}, with {unknown_test_user_rows} row(s)"
            " are not in train: skipped".format(test.unknown_users[0], **counts)
        )
    if len(strange):
        name = test.unknown_items[strange[0] - train.num_items]
        notes.append(
            "{unknown_item_targets} test target(s) are of {unknown_test_items} item(s), e.g."
            " {0!r}, not in train: never hit, still counted".format(name, **counts)
        )
    if counts["repeated_targets"]:
        notes.append(
            "{repeated_targets} test target(s) are also in the user's train rows: never hit,"
            " still counted".format(**counts)
        )
    owned = ""
    if len(owners):
        name = list(train.user_map)[owners[0]]
        owned = (
            f"{len(owners)} user(s), e.g. {name!r}, have every item in train: no negatives exist,"
            " so nothing is trained on their windows"
        )
        notes.append(owned)
    if not counts["windows"]:
        why = f"; {owned}" if owned else ""
        raise UserError(f"{train.path}: no training windows; no user has more than T rows{why}")
    if not counts["test_users"]:
        raise UserError(f"{test.path}: none of its users is in {train.path}; nothing to evaluate")
    return counts, notes
