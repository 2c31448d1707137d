"""Rows of text: the one reader, for training files and for what datasets/prepare.py prepares.

pandas (or csv, where there are quotes) splits the lines; this module holds it to what the file
says: every row has as many fields as the first, ids stay text as it is written (007, NA, null), and
the first bad line is named.
"""

import csv
import io
import itertools
import re
from dataclasses import dataclass

import numpy as np
import pandas as pd

from support.headers import HEADER, has_header_row, header_or_fault, is_number
from support.sources import SEPARATOR_LINE, reported_damage
from support.times import Times
from utils import UserError

BLOCK = 1 << 24  # bytes read at a time: bounds the memory
PEEK = 1000  # rows that tell a header, or a csv, from data
EXPECTED = "expected `user item [rating [time]]`, separated by spaces or tabs"

MARK = b"\xef\xbb\xbf"  # the byte order mark that begins some UTF-8 files
BLANKS = bytes.maketrans(b"\t\v\f", b"   ")
BLANK_LINE = re.compile(rb"(?m)^ +$")
# Such as `1<tab>Toy Story<tab>5`.
SPACE_INSIDE_TABS = re.compile(rb"(?m)^(?=[^\n]*\S[ ]*\t)[^\n]*[^\s][ ]+[^\s][^\n]*")


@dataclass(frozen=True)
class Layout:
    """How a file of rows is written.

    columns: where user, item, rating and time stand, from 0 or by the header's name; rating and
        time may be None.
    delimiter: between columns; None for a training file: white space, 2 to 4 columns, the third a
        rating if there is one, and a header told by structure.
    header: whether the first line names the columns.
    dates: "dmy" or "mdy" where days and months are numbers; None to tell them by those above 12.
    hint: ends the message where the first row can't be read.
    """

    columns: tuple = (0, 1, 2, None)
    delimiter: str | None = None
    header: bool = False
    dates: str | None = None
    hint: str = ""


TRAINING = Layout()


def read_rows(file, name, layout=TRAINING):
    """Read a binary file.

    Returns a DataFrame of the file's rows, with ``user``, ``item`` and ``rating`` (categories of
    str, in order of first appearance) and ``time`` (numbers or datetime64, which sort in the order
    of time; UTC where a date tells no zone), and a list of one-line notes. What there is no column
    for is "1" or 1. Raises UserError, naming ``name`` and the line, where a row can't be read.
    """
    reader = _Reader(name, layout)
    columns = ("user", "item", "rating")
    numbers, parts = [{} for _ in columns], [[] for _ in columns]
    with reported_damage(name):
        for block in reader.blocks(file):
            coded = reader.read(block)
            for seen, part, (codes, texts) in zip(numbers, parts, coded, strict=True):
                places = [seen.setdefault(text, len(seen)) for text in texts]
                part.append(np.array(places, dtype=np.int32)[codes])
    if not parts[0]:
        raise UserError(f"{name}: no rows in it{f'; {EXPECTED}' if reader.plain else ''}")
    frame = {
        column: pd.Categorical.from_codes(np.concatenate(part), pd.Index(list(seen), dtype=object))
        for column, seen, part in zip(columns, numbers, parts, strict=True)
    }
    frame["time"] = 1
    if reader.times.parts:
        try:
            frame["time"] = reader.times.column()
        except pd.errors.OutOfBoundsDatetime:
            raise UserError(f"{name}: {TOO_FAR_APART}") from None
        except ValueError as error:
            raise UserError(f"{name}: {error}") from None
    return pd.DataFrame(frame, copy=False), reader.notes


class _Reader:
    """Reads blocks of lines, and keeps what the lines so far tell of the rest."""

    def __init__(self, name, layout):
        self.name, self.layout = name, layout
        self.plain = layout.delimiter is None
        self.delimiter = (layout.delimiter or " ").encode()
        self.mark = b"\x1f" if len(self.delimiter) > 1 else self.delimiter  # in its place: a byte
        self.quotes = len(self.delimiter) == 1 and not self.delimiter.isspace()
        self.line = 1  # of the block's first
        self.first = self.width = self.places = None  # the first row's line, and what it tells
        self.times = Times(layout.dates)
        self.notes = []

    def refuse(self, line, reason):
        raise UserError(f"{self.name}, line {line}: {reason}")

    # ---------------------------------------------------------------------------- lines

    def blocks(self, file):
        """Yield the file's rows in blocks of whole lines: UTF-8, one ``mark`` between fields, and
        \\n behind every line; blank lines stay."""
        while block := file.read(BLOCK):
            block += file.readline()
            if self.width is None and not self.quotes:
                self.quotes = self.delimiter == b"\t" and _is_quoted(block)
            while self._ends_inside_quotes(block) and (more := file.read(BLOCK)):
                block += more + file.readline()
            block = self._normalized(block)
            if self.line == 1 and not self.plain:
                end = block.index(b"\n")
                block = SEPARATOR_LINE.sub(b"", block[:end]) + block[end:]
            after = self.line + block.count(b"\n")
            if self.width is None:
                block = self._without_header(block)
            if block.count(b"\n") < len(block):
                yield block
            self.line = after

    def _ends_inside_quotes(self, block):
        if not self.quotes or b'"' not in block:
            return False
        text = io.StringIO(block.decode("utf-8", "replace"), newline="")
        try:
            for _ in csv.reader(text, delimiter=self.mark.decode(), strict=True):
                pass
        except csv.Error as error:
            return "end of data" in str(error)
        return False

    def _normalized(self, block):
        if b"\r" in block:
            block = block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        block += b"" if block.endswith(b"\n") else b"\n"
        while self.line == 1 and block.startswith(MARK):
            block = block.removeprefix(MARK)

        def refuse(position, reason):
            self.refuse(self.line + block.count(b"\n", 0, position), reason)

        try:
            block.decode()
        except UnicodeDecodeError as error:
            refuse(error.start, "not UTF-8; save the file as UTF-8")
        if b"\0" in block:
            refuse(block.index(b"\0"), "a NUL byte, so this is no UTF-8 text")
        if self.mark != self.delimiter:
            block = block.replace(self.delimiter, self.mark)
        if not self.plain:
            return BLANK_LINE.sub(b"", block) if b"\n " in block or block[:1] == b" " else block
        if b"\t" in block and b" " in block and (found := SPACE_INSIDE_TABS.search(block)):
            refuse(found.start(), f"{_quoted(found[0].decode())} has a space between tabs; ids hold"
                   " no white space, and one kind of separator divides the columns")  # fmt: skip
        if MARK in block:  # files that were joined
            block = re.sub(rb"(?m)^(?:%s)+" % MARK, b"", block)
        block = block.translate(BLANKS)
        if b"  " in block:
            block = re.sub(rb"  +", b" ", block)
        for blank in (b" \n", b"\n "):
            if blank in block:
                block = block.replace(blank, b"\n")
        return block.lstrip(b" ")

    def rows(self, block):
        """Yield (the line after it, fields) for every row of a block: the slow, obvious way."""
        quoting = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        text = io.TextIOWrapper(io.BytesIO(block), "utf-8", newline="")
        reader = csv.reader(text, delimiter=self.mark.decode(), quoting=quoting, strict=True)
        after = self.line
        try:
            for fields in reader:
                after = self.line + reader.line_num
                if fields:
                    yield after, fields
        except csv.Error as error:
            never_closed = self.quotes and re.search("end of data|field limit", str(error))
            self.refuse(after, "a quote opens here and never closes" if never_closed else error)

    # ------------------------------------------------------------------------- the header

    def _without_header(self, block):
        """Learn width and places from the first row; if that is a header, blank it."""
        rows = list(itertools.islice(self.rows(block), PEEK))
        if not rows:
            return block
        (after, fields), rest = rows[0], [fields for _, fields in rows[1:]]
        self.first = self.line + len(block) - len(block.lstrip(b"\n"))
        self.width, self.places = len(fields), list(self.layout.columns)
        header = self.layout.header
        if header:
            names = [field.strip() for field in fields]
            self.places = [self._place(column, names) for column in self.places]
        elif self.plain:
            self.places = self.places if self.width > 2 else [0, 1, None, None]
            header, fault = header_or_fault(fields, rest)
            if fault:
                self.refuse(self.first, f"{self._shown(fields)}{fault}")
            if header:
                place = f"{self.name}, line {self.first}"
                self.notes.append(f"{place}: {self._shown(fields)} is a header and was skipped")
        named = [place for place in self.places if place is not None]
        if len(set(named)) < len(named):
            raise UserError(f"{self.name}: two of user, item, rating and time are the same column")
        if not header:
            return block
        lines = after - self.line
        return b"\n" * lines + block.split(b"\n", lines)[lines]

    def _place(self, column, names):
        """The number of a column of the layout, from a header's names."""
        if not isinstance(column, str):
            return column
        if names.count(column) != 1:
            self.refuse(
                self.first,
                f"{names.count(column) or 'no'} columns {column!r} in {', '.join(names)[:200]!r};"
                " name one that is there once, or number the columns and add --header, or say what"
                " stands between them by --delimiter",
            )
        return names.index(column)

    # ------------------------------------------------------------------------ the columns

    def read(self, block):
        """Of a block: (codes, texts) for user, item and rating; its times go to ``times``."""
        try:
            return self._columns(block)
        except _Fault as fault:
            # Halves of it, and halves of these, until one row is left.
            rows, first = list(self.rows(block)), self.line
            if len(rows) == 1:
                after, fields = rows[0]
                line = after - 1 - sum(field.count("\n") for field in fields)
                hint = self.layout.hint if line == self.first else ""
                self.refuse(line, f"{self._shown(fields)}{fault}{hint}")
            lines = rows[len(rows) // 2 - 1][0] - first
            *head, tail = block.split(b"\n", lines)
            self.read(b"\n".join([*head, b""]))
            self.line = first + lines
            self.read(tail)
            self.refuse(first, f"from here on, {TOO_FAR_APART}")  # no row fails by itself

    def _columns(self, block):
        count, text_of = self._split(block)
        user, item, rating, time = (
            None if place is None else np.asarray(text_of(place), dtype=object)
            for place in self.places
        )
        user, item = (self._coded_ids(texts) for texts in (user, item))
        if self.plain and self.width == 2 and has_header_row(user, item):
            raise _Fault(HEADER)
        rating = (np.zeros(count, int), ["1"]) if rating is None else pd.factorize(rating)
        if not self.plain:
            rating = rating[0], [text.strip() for text in rating[1]]
        for text in rating[1]:
            if not is_number(text):
                raise _Fault(f": the rating {_quoted(text)} is not a number")
        if time is not None:
            try:
                self.times.add(time)
            except ValueError as error:
                raise _Fault(error) from None
        return user, item, rating

    def _split(self, block):
        """The number of rows, and a function from a place to its column's texts."""
        if self.quotes and b'"' in block:
            rows = [fields for _, fields in self.rows(block)]
            widths = np.array(list(map(len, rows)))
        else:
            text = np.frombuffer(block, dtype=np.uint8)
            places = np.flatnonzero((text == self.mark[0]) | (text == ord("\n")))
            ends = np.flatnonzero(text[places] == ord("\n"))
            blank = np.diff(places[ends], prepend=-1) == 1
            rows, widths = None, np.diff(ends, prepend=-1)[~blank]
        for width in (self.width, *widths[widths != self.width][:1]):
            if self.plain and not 2 <= width <= 4:
                raise _Fault(f" has {width} field(s); {EXPECTED}")
            if width != self.width:
                above = "the header" if self.layout.header else "the lines above"
                raise _Fault(f" has {width} fields, {above} {self.width}")
        needed = [place for place in self.places if place is not None]
        if max(needed) >= self.width:
            advice = "" if self.plain else "; --delimiter says what stands between them"
            raise _Fault(f" has {self.width} column(s); more are needed{advice}")
        if rows:
            return len(rows), list(zip(*rows, strict=True)).__getitem__
        frame = pd.read_csv(
            io.BytesIO(block), sep=self.mark.decode(), quoting=csv.QUOTE_NONE, header=None,
            usecols=set(needed), dtype=object, na_filter=False, low_memory=False,
        )  # fmt: skip
        return len(frame), frame.__getitem__

    def _coded_ids(self, texts):
        """texts (n,) as codes (n,) and the different ones."""
        codes, names = pd.factorize(texts)
        if not self.plain:  # where they may hold what a training file's can't
            names = [name.strip() for name in names]
            together = "".join(names)
            if not all(names) or len(together.split(None, 1)) != 1 or "\ufeff" in together:
                raise _Fault(": a user or item is empty or holds white space or a BOM")
        return codes, names

    def _shown(self, fields):
        return _quoted(self.delimiter.decode().join(fields))


def _is_quoted(block):
    """Whether the first row of tab-separated lines has its words in quotes, as R and Python write
    them; else a quote is part of a word."""
    fields = block.lstrip().split(b"\n", 1)[0].strip().split(b"\t")
    fields = [field.strip().decode("utf-8", "replace") for field in fields]
    words = [field for field in fields if not is_number(field)]
    return bool(words) and all(len(word) > 1 and word[0] == word[-1] == '"' for word in words)


class _Fault(Exception):
    """Why a row, which the message begins with, can't be read."""


TOO_FAR_APART = "some times have nine decimals and others lie centuries away; round the former"


def _quoted(text):
    return repr(text if len(text) <= 60 else text[:57] + "...")
