"""Times as exports write them, as numbers or dates that sort in the order of time."""

import contextlib
import itertools
import re
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
)
CLOCKS = ("", " %H:%M", " %H:%M:%S", ", %H:%M", " %I:%M %p", " %I:%M:%S %p")
FULL_MONTHS = ("%b", "%B")  # a column of May alone is of both
# What whole numbers count since 1970, by their size from 1973 to 2286.
UNITS = {"seconds": 10**8, "milliseconds": 10**11, "microseconds": 10**14, "nanoseconds": 10**17}
TOO_FINE = re.compile(r"[.,]\d{10}")
LEADING_ZERO = re.compile(r"\n0[0-9]")  # 05012011 is a date
MONTH = re.compile(r"(?:19|20)\d\d\.(?:\d|1[0-2])")
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
        self.units, self.days, self.months = {}, set(), set()  # what whole numbers may count

    def add(self, texts):
        """Add texts (n,); ValueError, saying why, where they are no times, or of another form
        than those before."""
        texts = [text.strip() for text in texts]
        form, part = _parsed(texts)
        long = form == "ISO 8601" and max(map(len, texts)) > len("2011-03-13T07:06:40.123456789")
        if long and (fine := list(filter(TOO_FINE.search, texts))):
            raise ValueError(f": {fine[0][:60]!r} has more than nine decimals; round it")
        if form == "number":
            self._look_at_numbers(texts, part)
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

    def _look_at_numbers(self, texts, part):
        """ValueError where numbers are no times, or not of one unit with those before."""
        if self.dates:
            raise ValueError(f": {texts[0]!r} is a number, and --dates is for days and months")
        months = all(map(MONTH.fullmatch, texts)) and {len(text) for text in texts}
        months = self.months | (months or {0})
        if months == {6, 7}:  # 2011.10 comes after 2011.9 and is less
            raise ValueError(f": {texts[0]!r} may be a year and a month; write 2011-09, 2011-10")
        units, days = dict(self.units), self.days
        if part.dtype.kind == "i":
            for unit, least in UNITS.items():
                of_it = (part >= least) & (part < 100 * least)
                if of_it.any():
                    units.setdefault(unit, texts[int(of_it.to_numpy().argmax())])
            days = days | set(part[(part >= 19_000_101) & (part < 21_000_101)])
            kinds = list(units.items())
            if days and all(map(_is_date, days)):
                kinds.insert(0, ("days", min(days)))
            if len(kinds) > 1:
                (first, one), (second, another) = kinds[:2]
                raise ValueError(f": {one} ({first}) and {another} ({second}) are times of two"
                                 " kinds; write all of them in one")  # fmt: skip
        self.months, self.units, self.days = months, units, days

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


def _is_date(number):
    """Whether a number of eight digits is a day, as 20110313."""
    return 1 <= number // 100 % 100 <= 12 and 1 <= number % 100 <= 31


def _parsed(texts):
    """The form of texts and the times in them, as a Series or, where days and months are numbers,
    a Series each for "day_first" and "month_first"; (None, None) where they are no times."""
    joined = "\n".join(["", *texts])
    if "_" in joined or not joined.isascii():  # int takes 1_000 and digits of other scripts
        return None, None
    with contextlib.suppress(ValueError, OverflowError):
        numbers = pd.Series(np.array(list(map(int, texts)), dtype=np.int64))
        led_by_zero = "\n0" in joined and LEADING_ZERO.search(joined)
        return (None, None) if led_by_zero else ("number", numbers)
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
    for form, month in itertools.product(FORMS, FULL_MONTHS):
        with contextlib.suppress(ValueError):
            written = form.replace("%b", month)
            return form, _utc(pd.to_datetime(texts, format=written, utc=True))
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
