"""Whether the first row of a training file is data, told by the rows below it."""

import math
import re

import numpy as np

HEADER = " looks like a header; delete that line"
CSV = (
    " looks like a csv file; separate the columns by spaces or tabs, or, where these are ids, add a"
    " third column of ratings"
)
MISSING = {"nan", "na", "n/a", "null", "none", "nil", "inf", "-inf", "-", "?", "."}  # no names
# Where structure can't tell, these names do: a line with one is refused, never skipped.
USER = re.compile(r"(?i)[\"']?(?:users?(?:[_-]?id)?|uid)(?::\w+)?[\"']?")
ID = re.compile(r"(?:[_-](?:id|ID)|[a-z]I[dD])[\"']?$")  # customer_id, movieId
ITEM = re.compile(r"(?i)[\"']?(?:items?(?:[_-]?id)?|iid)(?::\w+)?[\"']?")


def header_or_fault(fields, rest):
    """Whether a row names the columns, as words over numbers do; and why it can't be, or None.

    fields: list of str, the row. rest: list of such lists, the rows below.
    """
    if _is_csv(fields, rest):
        return False, CSV
    rest = [row for row in rest if len(row) == len(fields)]
    worded = not any(letter.isdigit() for letter in "".join(fields))
    if len(fields) > 2:
        recurs = any(fields[0] == row[0] or fields[1] == row[1] for row in rest)
        numbers = any(is_number(row[2]) for row in rest)
        return worded and numbers and not recurs and fields[2].lower() not in MISSING, None
    if len(fields) == 2:
        if worded and rest and all(field.isdigit() for row in rest for field in row):
            return True, None
        if any(_is_word_over_numbers(*column) for column in zip(fields, *rest, strict=True)):
            return False, HEADER
        if USER.fullmatch(fields[0]) or ITEM.fullmatch(fields[1]) or all(map(ID.search, fields)):
            return False, HEADER
    return False, None


def _is_word_over_numbers(field, *below):
    """Whether a column's first field has a letter, and those below, if any, have digits alone."""
    return bool(below) and any(map(str.isalpha, field)) and all(map(str.isdigit, below))


def _is_csv(fields, rest):
    """Whether other marks than white space seem to divide the columns.

    Where the third field is a number, as data has it, ids may well hold a comma; a csv with blanks
    has one behind each of them. Else every line of a csv has the mark, and ids do not.
    """
    for mark in (",", ";", "|", "::"):
        if len(fields) in (3, 4) and is_number(fields[2]):  # as data should be
            divided = all(field.endswith(mark) for field in fields[:2])
        else:
            divided = any(mark in field for field in fields[:2])
            divided = divided and all(mark in "".join(row) for row in rest)
        if divided:
            return True
    return False


def has_header_row(users, items):
    """Whether some row of two columns, each (codes (n,), the texts that they stand for), names the
    columns."""
    named = [
        np.isin(codes, [place for place, text in enumerate(texts) if pattern.fullmatch(text)])
        for (codes, texts), pattern in ((users, USER), (items, ITEM))
    ]
    return (named[0] & named[1]).any()


def is_number(text):
    """Whether it is a finite number in ASCII digits, as it stands."""
    try:
        plain = text.isascii() and "_" not in text and text == text.strip()
        return plain and math.isfinite(float(text))
    except ValueError:
        return False
