"""Numbers as words: the cells of Markdown tables, from the lines of reproduction/*.csv."""

import math

import pandas as pd

from reproduction.published import SUMMARIES


def table(heads, rows):
    """A Markdown table as a list of lines."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def decimal(value, sign=""):
    """A number below 1 to four decimals, as the paper writes it: .0958."""
    return f"{value:{sign}.4f}".replace("0.", ".", 1)


def p_value(p):
    """A p to two digits, .031; a dash where there is none."""
    if math.isnan(p):
        return "-"
    if p < 1e-4:
        return "<.0001"
    digits = 2 if p >= 0.1 else 3 if p >= 0.01 else 4 if p >= 0.001 else 5
    return f"{p:.{digits}f}".removeprefix("0")


def by_seed(lines, metric="map"):
    """A Series, by seed, of a metric of the lines of results.csv of one row."""
    seeds = lines[~lines["seed"].isin(SUMMARIES)].set_index("seed")[metric]
    return pd.to_numeric(seeds, errors="coerce").dropna()


def mean_and_deviation(lines, metric):
    """(mean, standard deviation, number of seeds) of a metric of the lines of one row, from their
    summaries where the seeds' own are not published; NaN for what is not known."""
    values = by_seed(lines, metric)
    count = (~lines["seed"].isin(SUMMARIES)).sum()
    if len(values) == count:
        return values.mean(), values.std(), count
    kept = (pd.to_numeric(lines.loc[lines["seed"] == name, metric]) for name in SUMMARIES)
    return *(cells.iloc[0] if len(cells) else math.nan for cells in kept), count


def metric_cell(lines, metric):
    """ "mean ± standard deviation", the latter where there are two seeds or more."""
    mean, deviation, _ = mean_and_deviation(lines, metric)
    if math.isnan(mean):
        return ""
    return decimal(mean) + ("" if math.isnan(deviation) else f" ± {decimal(deviation)}")
