"""Numbers as Markdown: the paper's tables, the tests, and a user's own beside the published."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.stats

from reproduction.cells import by_seed, decimal, mean_and_deviation, metric_cell, p_value, table
from reproduction.rows import AUTHORS, COMPARISONS, LATER, METRICS, ROWS, TABLES

HEADS = ["P@3", "P@5", "P@10", "nDCG@3", "nDCG@5", "nDCG@10", "MAP"]
TITLES = {
    "1": "Table 1, the data",
    "first": "Table 2, its first rows",
    "2": "Table 2, teacher, student, distilled student, baselines",
    "3": "Table 3, size and time to rank all items for every test user",
    "4": "Table 4, the weights",
    "readings": "readings of the method, the authors' code and the paper",
    "grids": "settings, chosen on the validation split with the first seed",
    "later": "later losses",
    "later-small": "later losses, a smaller student",
    "later-fossil": "later losses with Fossil",
    "convergence": "to convergence, up to 200 epochs",
}
PROTOCOL = (
    "Test split, all items ranked (none sampled), the user's train items and padding out, metrics"
    " averaged over users, nDCG as in the paper, mean ± standard deviation over seeds; epochs"
    " chosen by MAP on the validation split with the first seed."
)
POPULARITY = {
    "recall_popular": "Recall@10 of popular targets",
    "recall_other": "Recall@10 of others",
    "coverage": "catalogue coverage@10",
}
LATER_NOTE = (
    "Factors, and the tuned S's learning rate and L2, are what a search on the data set chose"
    " (--grid); a method has the tuned S's learning rate and L2 where its flags say so, else the"
    " plain S's. ml-1m has the default factors and the plain S's settings. A share where the gap's"
    " 95% interval is above 0. Seconds of the fastest seed, with whatever ran beside, which compare"
    " no methods: docs/speed.md does, step by step. - where there is no list, or no time is known."
)
PAPERS_GOWALLA = {"users": "13149", "items": "14009", "rows": "535650"}
PAPERS_PARAMETERS = {  # Table 3
    "caser-t": "5.58M", "caser-rd": "2.79M", "fossil-t": "1.48M", "fossil-rd": "0.64M",
}  # fmt: skip
PAPERS_TIMES = (
    "The paper, on its machine: Caser-T 38.58 s on a CPU, 4.52 s on a GPU; Caser-RD, with 50.0% of"
    " the parameters, 18.63 s and 2.99 s; Fossil-T 9.32 s and 3.72 s; Fossil-RD, with 43.2%, 4.99 s"
    " and 2.11 s."
)


# ---------------------------------------------------------------------------- tables


def is_papers(numbers, data_set):
    """Whether a data set is the paper's Gowalla, whose numbers the paper's are compared with."""
    lines = numbers.of("data_sets", data_set=data_set)
    return data_set == "gowalla" and (lines[list(PAPERS_GOWALLA)] == PAPERS_GOWALLA).all().all()


def table_1(numbers, data_sets):
    """The data sets' statistics."""
    lines = {name: numbers.of("data_sets", data_set=name) for name in data_sets}
    counts = {name: frame.iloc[0].to_dict() for name, frame in lines.items() if len(frame)}
    if "gowalla" in data_sets:
        counts["gowalla (paper)"] = PAPERS_GOWALLA
    rows = []
    for name, of in counts.items():
        users, items, pairs = (int(of[part]) for part in ("users", "items", "rows"))
        rows.append([name, f"{users:,}", f"{items:,}", f"{pairs:,}", f"{pairs / users:.2f}",
                     f"{pairs / users / items:.4%}"])  # fmt: skip
    return table(["", "users", "items", "rows", "rows per user", "density"], rows)


def table_of_metrics(numbers, data_set, names):
    """A line per row, and the paper's above it on its Gowalla; then which are not run."""
    lines, missing = [], []
    for name in names:
        row = ROWS.get(name)
        if row and row.paper and is_papers(numbers, data_set):
            paper = ["" if value is None else decimal(value) for value in row.paper]
            lines.append([f"{row.title} (paper)", "", "", "", *paper])
        found = numbers.of("results", data_set=data_set, row=name, split="test")
        title = row.title if row else AUTHORS[name]
        if len(found):
            flags = " ".join(row.flags) if row and not row.method else ""
            if row and row.chosen:  # which another data set has others of
                flags = found["flags"].iloc[0]
            counts = found["epochs"].iloc[0], mean_and_deviation(found, "map")[2]
            cells = (metric_cell(found, metric) for metric in METRICS)
            flags = f"`{flags}`" if flags else ""
            lines.append([title, flags, *(counts if not row or row.network else "--"), *cells])
        else:
            missing.append(title)
    heads = ["", "flags", "epochs", "seeds", *HEADS]
    if not any(flags for _, flags, *_ in lines):
        heads, *lines = ([title, *rest] for title, _, *rest in [heads, *lines])
    told = ["", f"Not run: {'; '.join(missing)}."] if missing else []
    return [*table(heads, lines), *told] if lines else told[1:]


@dataclass
class Difference:
    """The difference of two rows' MAP over the seeds that both have: its mean, the bounds of its
    95% interval, and p of the paired t-test; NaN where one seed tells nothing."""

    seeds: int
    mean: float
    low: float
    high: float
    p: float


def difference(numbers, data_set, row, rival):
    """The Difference of two published rows; None where they share no seed."""
    first, second = (
        by_seed(numbers.of("results", data_set=data_set, row=name, split="test"))
        for name in (row, rival)
    )
    apart = (first - second).dropna().to_numpy()
    if not len(apart):
        return None
    mean, low, high, p = apart.mean(), math.nan, math.nan, math.nan
    if len(apart) > 1 and np.ptp(apart) > 1e-12:  # else they are alike but for rounding
        t = scipy.stats.ttest_1samp(apart, 0)
        (low, high), p = t.confidence_interval(0.95), float(t.pvalue)
    return Difference(len(apart), mean, low, high, p)


def holm(values):
    """Holm's correction of a list of p values, in their order; NaN stays and does not count."""
    adjusted, largest = list(values), 0.0
    order = sorted((p, n) for n, p in enumerate(values) if not math.isnan(p))
    for place, (p, n) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p))
        adjusted[n] = largest
    return adjusted


def table_of_tests(numbers, data_set, pairs):
    """A line per pair of rows that are both there; no line at all where none is."""
    tested = [(pair, difference(numbers, data_set, *pair)) for pair in pairs]
    tested = [(pair, found) for pair, found in tested if found]
    corrected = holm([found.p for _, found in tested])
    lines = []
    for ((row, rival), found), p_holm in zip(tested, corrected, strict=True):
        interval = f"{decimal(found.low, '+')} to {decimal(found.high, '+')}"
        users = numbers.of("comparisons", data_set=data_set, row=row, rival=rival)
        shares = [f"{float(users[name].iloc[0]):.0%}" if len(users) else "-"
                  for name in ("better", "worse")]  # fmt: skip
        lines.append([
            f"{ROWS[row].title} against {ROWS[rival].title}", found.seeds, decimal(found.mean, "+"),
            "-" if math.isnan(found.low) else interval, p_value(found.p), p_value(p_holm),
            *shares, p_value(float(users["p"].iloc[0])) if len(users) else "-",
        ])  # fmt: skip
    heads = ["MAP", "seeds", "difference", "95% interval", "p", "Holm's p", "users better",
             "worse", "p over users"]  # fmt: skip
    return table(heads, lines) if lines else []


def table_of_gaps(numbers, data_set, number):
    """What each student of a table of later losses gains of what the teacher, its first row, has
    over the student alone, its second, and every row's costs; [] for other tables."""
    if number not in LATER:
        return []
    teacher, alone, *others = TABLES[number]
    gap, lines = difference(numbers, data_set, teacher, alone), []

    def fastest(name, column="seconds"):
        of_row = numbers.of("results", data_set=data_set, row=name, split="test")
        return pd.to_numeric(of_row[column]).min()

    for name in TABLES[number]:
        if not len(numbers.of("results", data_set=data_set, row=name, split="test")):
            continue
        own = difference(numbers, data_set, name, alone) if name in others else None
        share = f"{own.mean / gap.mean:.0%}" if own and gap and gap.low > 0 else "-"
        parts = [fastest(teacher), fastest(name, "lists_seconds")] if name in others else []
        seconds = (f"{part:.0f}".replace("nan", "-") for part in (*parts, fastest(name)))
        epoch = fastest(name) / fastest(name, "epochs")
        lines.append([ROWS[name].title, share, f"{epoch:.2f}", " + ".join(seconds)])
    heads = ["", "share of the gap between teacher and student alone", "seconds an epoch",
             "seconds in all: teacher + lists + student"]  # fmt: skip
    return [*table(heads, lines), "", LATER_NOTE] if lines else []


def table_of_popularity(numbers, data_set, number):
    """Whom the students of a table of later losses serve, by ``popularity.by_popularity``."""
    lines = []
    for name in TABLES[number] if number in LATER else ():
        found = numbers.of("popularity", data_set=data_set, row=name)
        if len(found):
            cells = (metric_cell(found, column) for column in POPULARITY)
            lines.append([ROWS[name].title, *cells])
    return table(["", *POPULARITY.values()], lines) if lines else []


def tables_beside(numbers, data_set, number, pairs):
    """What stands below a table's metrics: a list of tables."""
    parts = (
        table_of_tests(numbers, data_set, pairs),
        table_of_gaps(numbers, data_set, number),
        table_of_popularity(numbers, data_set, number),
    )
    return list(filter(None, parts))


def table_3(numbers, data_set):
    """Parameters, size and times, as ``timing.measure`` has found them."""
    times = numbers.of("times", data_set=data_set)
    columns = list(dict.fromkeys(zip(times["device"], times["at_once"], strict=True)))
    counts = times.drop_duplicates("row").set_index("row")["parameters"].astype(int)
    lines = []
    for name in dict.fromkeys(times["row"]):
        of_row = times[times["row"] == name]
        teacher = ROWS[name].teacher if ROWS[name].distilled else name
        ratio = f"{counts[name] / counts[teacher]:.1%}" if teacher in counts else ""
        paper = [PAPERS_PARAMETERS.get(name, "")] * is_papers(numbers, data_set)
        seconds = of_row.set_index(["device", "at_once"])["seconds"]
        lines.append([ROWS[name].title, f"{counts[name]:,}", *paper, ratio,
                      f"{float(of_row['megabytes'].iloc[0]):.1f}",
                      *(f"{float(seconds.get(key, 'nan')):.3f}" for key in columns)])  # fmt: skip
    if not lines:
        return ["not measured: `--table 3` does"]
    heads = ["", "parameters", *["paper"] * is_papers(numbers, data_set), "ratio", "checkpoint MB"]
    heads += [f"{device} s, {'one by one' if n == '1' else f'{n} users at once'}"
              for device, n in columns]  # fmt: skip
    notes = [f"{times['threads'].iloc[0]} thread(s), medians of 3."]
    return [*table(heads, lines), "", *notes, *[PAPERS_TIMES] * is_papers(numbers, data_set)]


# ---------------------------------------------------------------------------- a study's report


def report(numbers, published, data_set, number, names=None):
    """The Markdown lines of one table of a study, or, with ``names``, of some rows."""
    title = TITLES.get(number) or ROWS[names[0]].title
    if number == "1":
        body = table_1(numbers, [data_set])
    elif number == "3":
        body = table_3(numbers, data_set)
    else:
        names = names or TABLES[number]
        pairs = COMPARISONS.get(number) or rivals_of(names)
        parts = tables_beside(numbers, data_set, number, pairs)
        body = [
            *table_of_metrics(numbers, data_set, names),
            "",
            PROTOCOL,
            *settings(numbers, data_set, names),
            *(line for part in parts for line in ("", *part)),
            *beside_published(numbers, published, data_set, names),
        ]
    return [f"### {data_set}: {title}", "", *body, ""]


def rivals_of(names):
    """What single rows are tested against: the student alone and the teacher."""
    distilled = [name for name in names if ROWS[name].distilled]
    return [(name, f"{ROWS[name].network.name}-{rival}") for name in distilled for rival in "st"]


def settings(numbers, data_set, names):
    """Lines on each seed's MAP, and on the machine and the code of the runs."""
    settings = set()
    for name in names:
        found = numbers.of("results", data_set=data_set, row=name, split="test")
        if len(found):
            values = (f"{seed}: {decimal(value)}" for seed, value in by_seed(found).items())
            yield f"MAP of {ROWS[name].title} by seed: {', '.join(values)}."
        for line in found.to_dict("records"):
            settings.add(
                f"By {line['device']}, {line['threads']} thread(s), {line['versions']}, commit"
                f" {line['commit'] or 'unknown'}."
            )
    yield from sorted(settings)


def beside_published(numbers, published, data_set, names):
    """A table of a study's mean MAP beside the published, with OK where it lies in the 95%
    prediction interval t(n-1) sd sqrt(1/n + 1/m) of n published and m own seeds; [] where nothing
    is published of the data set."""
    own, theirs = (one.of("data_sets", data_set=data_set) for one in (numbers, published))
    if not len(theirs):
        return []
    if own.to_dict("records") != theirs.to_dict("records"):
        return ["", f"Not compared with the published: {data_set} has other rows here."]
    lines = []
    for name in names:
        here, there = (
            one.of("results", data_set=data_set, row=name, split="test")
            for one in (numbers, published)
        )
        if not len(here) or not len(there):
            continue
        (mean, _, m), (expected, deviation, n) = (
            mean_and_deviation(lines, "map") for lines in (here, there)
        )
        apart = mean - expected
        differs = f"differs by {decimal(apart, '+')}"
        if set(here["flags"]) != set(there["flags"]):
            verdict = "of other flags"
        elif set(there["seed"]) == {"none"}:
            verdict = "OK (draws nothing)" if abs(apart) < 5e-5 else differs
        elif n < 2:
            verdict = f"{decimal(apart, '+')} (published: 1 seed)"
        else:
            half = scipy.stats.t.ppf(0.975, n - 1) * deviation * math.sqrt(1 / n + 1 / m)
            verdict = "OK" if abs(apart) <= half else differs
            verdict += f" (expected within {decimal(half)})"
        lines.append([ROWS[name].title, f"{decimal(mean)} ({m})", f"{decimal(expected)} ({n})",
                      verdict])  # fmt: skip
    heads = ["MAP (seeds)", "here", "published", "within the 95% prediction interval?"]
    return ["", *table(heads, lines)] if lines else []
