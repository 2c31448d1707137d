"""How a row's flags were chosen: what was tried on the validation split, with the first seed."""

from dataclasses import replace

import numpy as np
import pandas as pd

from reproduction.cells import decimal, table
from reproduction.rows import GRIDS, ROWS, setting_of, with_flags
from reproduction.runs import parsed


def varied(data_set, row, flag, value):
    """``row`` with one flag changed, the share of instances for its teacher as well; the row itself
    where that is its value anyway. flag, value: or "flag,flag" and a tuple of their values."""
    setting = setting_of(data_set, row)
    now = parsed(row, ("--d", str(setting.d), *setting.flags, *row.flags))
    wanted = zip(flag.split(","), value if isinstance(value, tuple) else (value,), strict=True)
    changed = {name: to for name, to in wanted if getattr(now, name) != to}
    if not changed:
        return row
    flags = [word for name, to in changed.items() for word in (f"--{name}", str(to))]
    teacher_flags = tuple(flags) if flag == "train_fraction" and row.distilled else ()
    return replace(with_flags(row, *flags), teacher_flags=teacher_flags)


def grid_rows(data_set, name):
    """The rows that are searched for the choices of a row of GRIDS, itself among them."""
    row = ROWS[name]
    rows = [
        varied(data_set, row, flag, value)
        for flag, values in GRIDS[name].items() for value in values
    ]  # fmt: skip
    return list(dict.fromkeys([row, *rows]))


def table_of_grids(numbers, data_set, names=GRIDS):
    """A line per flag that was chosen of some rows; [] where nothing was searched of the data
    set."""
    lines = []
    for name in names:
        shown = set()
        for flag, values in GRIDS[name].items():
            cells = []
            rows = [varied(data_set, ROWS[name], flag, value) for value in values]
            if shown.issuperset(rows):
                continue  # they are those of another line
            shown.update(rows)
            for row, value in zip(rows, values, strict=True):
                curve = numbers.of("curves", data_set=data_set, row=row.name)
                if len(curve):
                    best = curve.loc[pd.to_numeric(curve["map"]).idxmax()]
                    told = " ".join(f"{part:g}" for part in np.atleast_1d(value))
                    cell = f"{told}: {decimal(float(best['map']))} ({best['epoch']})"
                    cells.append(f"**{cell}**" if row.name == name else cell)
            if len(cells) > 1:
                most = setting_of(data_set, ROWS[name]).epochs
                flags = " ".join(f"`--{part}`" for part in flag.split(","))
                lines.append([ROWS[name].title, flags, ", ".join(cells), most])
    heads = ["", "flag", "value: best validation MAP (after epochs)", "the most epochs"]
    return table(heads, lines) if lines else []
