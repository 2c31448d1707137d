"""Times as exports write them, as numbers or dates that sort in the order of time."""

import contextlib
from decimal import Decimal

import numpy as np
import pandas as pd

# One form holds for a whole column. Besides these: numbers, ISO 8601, and days and months in
# numbers, of which one above 12 tells for the whole column which is which.
FORMS = (
    "%a %b %d %H:%M:%S %z %Y",  # Foursquare: Sun Mar 13 07:06:40 +0000 2011
    "%d %b %Y, %H:%M",  # Last.fm: 13 Mar 2011, 07:06
    "%d %b %Y %H:%M",
    "%d %b %Y %H:%M:%S",
    "%d %b %Y",
    "%b %d, %Y",
    "%B %d, %Y",
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", ", %H:%M", " %I:%M %p", " %I:%M:%S %p")
READABLE = "numbers, ISO 8601, 03/13/2011 07:06, 13 Mar 2011, Sun Mar 13 07:06:40 +0000 2011"
FLOAT_DIGITS = 15  # that many a float keeps apart, whatever they are


class Times:
    """A column of times, added block by block.

    dates: "dmy" or "mdy" where days and months are numbers; None to tell by those above 12.
    """

    def __init__(self, dates=None):
        self.dates = dates
        self.form = None  # of the times so far
        self.parts = []
        self.day_first = self.month_first = None  # a text that can only be so

    def add(self, texts):
        """Add texts (n,); ValueError, saying why, where they are no times, or of another form
        than those before."""
        texts = [text.strip() for text in texts]
        form, part = _parsed(texts)
        if form is None:
            raise ValueError(f": {texts[0][:60]!r} is no time; what can be read: {READABLE}")
        if self.form not in (None, form):
            raise ValueError(f": {texts[0][:60]!r} is another kind of time than those before it")
        self.form = form
        self.parts.append(part)
        if isinstance(part, dict):
            for only, other in (("day_first", "month_first"), ("month_first", "day_first")):
                rows = np.flatnonzero(pd.isna(part[other]))
                if len(rows) and getattr(self, only) is None:
                    setattr(self, only, texts[rows[0]])

    def column(self):
        """All of them as a Series that sorts in the order of time; UserError's text in a
        ValueError where that can't be told."""
        if self.parts and isinstance(self.parts[0], dict):
            order = self._order()
            return pd.concat([part[order] for part in self.parts], ignore_index=True)
        kinds = {part.dtype.kind for part in self.parts}  # i, f, O: Decimal; M: dates
        longest = max((abs(part).max() for part in self.parts if part.dtype.kind == "i"), default=0)
        if "O" in kinds or ("f" in kinds and longest >= 10**FLOAT_DIGITS):
            exact = [part.map(lambda number: Decimal(str(number))) for part in self.parts]
            return pd.Series(pd.factorize(pd.concat(exact), sort=True)[0])  # their ranks
        return pd.concat(self.parts, ignore_index=True)

    def _order(self):
        if self.dates:
            order = {"dmy": "day_first", "mdy": "month_first"}[self.dates]
            against = self.month_first if order == "day_first" else self.day_first
            if against is not None:
                raise ValueError(f"--dates {self.dates}: {against!r} can't be read so")
            return order
        if self.day_first and self.month_first:
            raise ValueError(
                f"{self.day_first!r} has the day first and {self.month_first!r} the month; mend"
                " one of them"
            )
        if not (self.day_first or self.month_first):
            raise ValueError(
                "no day is above 12, so nothing tells days from months; --dates dmy or --dates mdy"
                " says which comes first"
            )
        return "day_first" if self.day_first else "month_first"


def _parsed(texts):
    """The form of texts and the times in them, as a Series or, where days and months are numbers,
    a Series each for "day_first" and "month_first"; (None, None) where they are no times."""
    with contextlib.suppress(ValueError, OverflowError):
        return "number", pd.Series(np.array(list(map(int, texts)), dtype=np.int64))
    with contextlib.suppress(ValueError):
        numbers = np.array(list(map(float, texts)))
        if not np.isfinite(numbers).all():
            return None, None
        if max(map(len, texts)) > FLOAT_DIGITS:
            return "number", pd.Series(list(map(Decimal, texts)), dtype=object)
        return "number", pd.Series(numbers)
    # pandas takes words (now, NaT) and bare years as well.
    if min(texts) >= "0" and max(texts) < ":" and not any(map(str.isdecimal, texts)):
        with contextlib.suppress(ValueError):
            return "ISO 8601", _utc(pd.to_datetime(texts, format="ISO8601", utc=True))
    if not all(any(map(str.isdigit, text)) for text in texts):
        return None, None
    for form in FORMS:
        with contextlib.suppress(ValueError):
            return form, _utc(pd.to_datetime(texts, format=form, utc=True))
    for mark in "/.-":
        for clock in CLOCKS if mark in texts[0] else ():
            orders = {
                order: _utc(pd.to_datetime(texts, format=form + clock, utc=True, errors="coerce"))
                for order, form in (("day_first", f"%d{mark}%m{mark}%Y"),
                                    ("month_first", f"%m{mark}%d{mark}%Y"))
            }  # fmt: skip
            if (orders["day_first"].notna() | orders["month_first"].notna()).all():
                return f"days and months between {mark}{clock}", orders
    return None, None


def _utc(times):
    return pd.Series(times.tz_localize(None))
