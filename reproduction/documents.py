"""The documents that are printed from the published numbers: RESULTS.md, the marked blocks of
README.md, and the pictures in docs/ with the csv files behind them."""

import re
from pathlib import Path

from evaluation import metrics_line
from reproduction.cells import decimal, mean_and_deviation, metric_cell, p_value, table
from reproduction.figures import (
    FIGURES,
    draw_figure,
    draw_headline,
    figure_points,
    figure_title,
    figures_of,
    headline_points,
    points_csv,
)
from reproduction.grids import table_of_grids
from reproduction.published import EVERY_METRIC, Numbers
from reproduction.report import (
    PROTOCOL,
    TITLES,
    difference,
    table_1,
    table_3,
    table_of_metrics,
    tables_beside,
)
from reproduction.rows import AUTHORS, COMPARISONS, DATA_SETS, ROWS, TABLES
from support.run import ROOT
from utils import UserError, atomic_write

DIFFERENT_P = 0.05  # below it a difference counts as one

CLAIMS = (  # claim, row, rival: the row's MAP is higher
    ("The distilled student beats the student alone", "caser-rd", "caser-s"),
    ("... by the paper's formulas", "rd-paper", "caser-s"),
    ("... when all are trained to convergence", "caser-rd-converged", "caser-s-converged"),
    ("... and that by the paper's formulas", "rd-paper-converged", "caser-s-converged"),
    ("The distilled student beats its teacher", "caser-rd", "caser-t"),
    ("... by the paper's formulas", "rd-paper", "caser-t"),
    ("... with the user's own items out of the lists", "rd-observed", "caser-t"),
    ("... with Fossil: it beats the student alone", "fossil-rd", "fossil-s"),
    ("... with Fossil: it beats its teacher", "fossil-rd", "fossil-t"),
    ("Caser ranks better than Fossil", "caser-t", "fossil-t"),
    ("Fossil ranks better than BPR", "fossil-t", "bpr"),
    ("The hybrid weight beats equal weights, w = 1/K", "caser-rd", "uniform"),
    ("... by the paper's formula", "rd-normalized", "uniform"),
    ("The hybrid weight beats position importance alone", "caser-rd", "position"),
    ("The hybrid weight beats ranking discrepancy alone", "caser-rd", "discrepancy"),
    ("Position importance alone beats w = 1/K", "position", "uniform"),
    ("Ranking discrepancy alone beats w = 1/K", "discrepancy", "uniform"),
)
OLDER = "945ce2d..fc5f0a5"  # the commits before an epoch drew from its seed and number alone
HALF_THE_TIME = 0.6  # of the teacher's, at most

HEAD = f"""\
# Results

<!-- Printed by `python reproduce_tables.py --documents` from reproduction/*.csv. -->

{PROTOCOL}

A test is over the seeds that both rows have, a mean over all that a row has. *p* is of the
two-sided paired t-test over seeds, which asks of the mean MAP of training runs; Holm's correction
is for the tests of one table. *p over users* is of Wilcoxon's signed-rank test, which takes the
trained models as given and goes by ranks, so it can point away from the mean. A dash is what is
not known.

Every seed's line is in [reproduction/results.csv](reproduction/results.csv). How the runs are made:
[docs/method.md](docs/method.md). They ran on two shared cores of an Intel Xeon (family 6, model
207), those of "1 or 2" threads, and the later losses' that docs/method.md names, on two of an AMD
EPYC, which rounds otherwise:

{{sources}}

{{older}}

## Where the paper's claims show

The difference in mean MAP, and its p, not corrected. A claim shows where it is above 0 with p below
{DIFFERENT_P}; the one on time where the student takes {HALF_THE_TIME:.0%} of the teacher's at most.
"""


def data_sets_of(numbers):
    """The data sets with published results, in the documents' order."""
    there = dict.fromkeys(numbers.results["data_set"])
    return [name for name in DATA_SETS if name in there]


def verdict(shown):
    """Three words on whether a claim shows, from True, False or None (not known) a data set."""
    known = [one for one in shown if one is not None]
    if not known:
        return "not run yet"
    return "shows on all" if all(known) else "shows in part" if any(known) else "does not show"


def claims_table(numbers):
    """What the paper claims, the difference in MAP and its p on each data set, and a verdict."""
    data_sets, lines = data_sets_of(numbers), []
    for claim, *pair in CLAIMS:
        found = [difference(numbers, data_set, *pair) for data_set in data_sets]
        cells = [f"{decimal(one.mean, '+')} (p {p_value(one.p)})" if one else "not run"
                 for one in found]  # fmt: skip
        shown = [one and bool(one.mean > 0 and one.p < DIFFERENT_P) for one in found]
        lines.append([claim, *cells, verdict(shown)])
    ratios = [time_ratios(numbers, data_set) for data_set in data_sets]
    cells = [time_words(of) or "not measured" for of in ratios]
    shown = [ratio <= HALF_THE_TIME for of in ratios for ratio in of.values()]
    lines.append(["The student ranks in half the time", *cells, verdict(shown)])
    return table(["claim", *data_sets, "verdict"], lines)


def time_ratios(numbers, data_set):
    """{how many users at once: the student's seconds by the teacher's} on a CPU."""
    times = numbers.of("times", data_set=data_set, device="cpu")
    seconds = times.set_index(["row", "at_once"])["seconds"].astype(float)
    return {
        {"1": "one by one"}.get(at_once, "together"): seconds["caser-rd", at_once]
        / seconds["caser-t", at_once]
        for at_once in dict.fromkeys(times["at_once"])
    }


def time_words(ratios):
    """What ``time_ratios`` gives, in words."""
    return ", ".join(f"{ratio:.0%} {how}" for how, ratio in ratios.items())


def older_runs(numbers):
    """A sentence on the runs whose seeds drew other random numbers than today's code."""
    told = []
    for data_set in data_sets_of(numbers):
        results = numbers.of("results", data_set=data_set)
        older = results[results["commit"] == OLDER]["row"].unique()
        if len(older):
            titles = ", ".join(ROWS[row].title for row in older)
            told.append(data_set + f" ({titles})" * (set(older) != set(results["row"])))
    if not told:
        return ""
    return (
        f"Runs of before a change in how random numbers are drawn ([CHANGELOG.md](CHANGELOG.md)):"
        f" {'; '.join(told)}. Today's code gives slightly other numbers, by seed only their MAP is"
        " known, to four digits, and tests of them against later runs pair seeds that drew"
        " differently."
    )


def sources(numbers):
    """A table of what trained the runs: devices, threads, versions and commits by data set."""
    columns, lines = ["data_set", "device", "threads", "versions"], []
    for key, frame in numbers.results.groupby(columns, sort=False):
        short = frame["commit"].str.replace(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", regex=True)
        lines.append([*(cell or "-" for cell in key), len(frame), ", ".join(short.unique())])
    return table(["data set", "device", "threads", "versions", "runs", "commits"], lines)


def results_text(numbers):
    """RESULTS.md."""
    data_sets = data_sets_of(numbers)
    lines = [
        *HEAD.format(sources="\n".join(sources(numbers)), older=older_runs(numbers)).splitlines(),
        "",
        *claims_table(numbers),
        "",
        f"## {TITLES['1']}",
        "",
        *table_1(numbers, data_sets),
        "",
    ]
    for data_set in data_sets:
        for number, names in TABLES.items():
            there = numbers.of("results", data_set=data_set)
            if number in {"1", "first"} or len(set(there["row"]) & set(names)) < 2:
                continue
            lines += [f"## {data_set}: {TITLES[number]}", ""]
            if number == "3":
                lines += [*table_3(numbers, data_set), ""]
                continue
            lines += [*table_of_metrics(numbers, data_set, names), ""]
            parts = tables_beside(numbers, data_set, number, COMPARISONS[number])
            lines += [line for part in parts for line in (*part, "")]
        if grids := table_of_grids(numbers, data_set):
            lines += [f"## {data_set}: {TITLES['grids']}", "", *grids, ""]
        if set(AUTHORS) & set(numbers.of("results", data_set=data_set)["row"]):
            lines += [f"## {data_set}: the authors' released code", "",
                      "Patched where it could not start. It ranks padding, which the distilled"
                      " student puts first for nearly every user, and takes unknown test items for"
                      " another (differences 7 and 8 in docs/method.md): that is why its distilled"
                      " student falls. Golden values hold the losses, the network and the metrics"
                      " here against it where padding is not ranked.", "",
                      *table_of_metrics(numbers, data_set, AUTHORS), ""]  # fmt: skip
        for name in figures_of(numbers, data_set):
            title = figure_title(numbers, data_set, name).replace("\n", ", ")
            lines += [f"![{title}](docs/{data_set}-{name}.png)", ""]
    return "\n".join(lines)


# ---------------------------------------------------------------------------- README's blocks


def headline_table(numbers):
    """README's table: MAP of teacher, student alone and distilled, a column a data set."""
    data_sets = data_sets_of(numbers)
    meanings = {
        "caser-t": ": the teacher",
        "caser-s": ": the student alone",
        "caser-rd": ": the student, distilled",
    }
    papers = ("caser-t", "caser-s", "caser-rd", "fossil-t", "fossil-s", "fossil-rd")
    later = ("caser-s-tuned", "caser-rd-tuned", "caser-rrd", "caser-listwise", "caser-cd")
    later_of_fossil = ("fossil-s-tuned", "fossil-cd")
    lines = []
    for name in (*papers, *later, *later_of_fossil):
        title = ROWS[name].title + meanings.get(name, "")
        of_row = (numbers.of("results", data_set=d, row=name, split="test") for d in data_sets)
        cells = [metric_cell(of, "map") for of in of_row]
        bold = "**" * (name in {"caser-rd", "fossil-rd"})
        if any(cells):
            lines.append([f"{bold}{title}{bold}", *(cell and bold + cell + bold for cell in cells)])
    if any(sizes := [parameters(numbers, data_set) for data_set in data_sets]):
        lines.append(["*parameters: student / teacher*", *sizes])
    heads = ["MAP (mean average precision), test split, ± sd over seeds", *data_sets]
    return table(heads, lines)


def parameters(numbers, data_set):
    """The student's and the teacher's parameters, as "109k / 553k", where they were counted."""
    times = numbers.of("times", data_set=data_set).drop_duplicates("row")
    counts = times.set_index("row")["parameters"].astype(int)
    short = (f"{n / 1e6:.2f}M" if n >= 1e6 else f"{n / 1e3:.0f}k"
             for n in (counts.get("caser-rd", 0), counts.get("caser-t", 0)))  # fmt: skip
    return " / ".join(short) if len(counts) else ""


def evaluate_line(numbers):
    """What --evaluate prints of the distilled student that the first run leaves."""
    lines = numbers.of("results", data_set="ml-100k", row="caser-rd", seed="1234", split="test")
    means = lines.iloc[0][EVERY_METRIC].astype(float)
    return [f"    Evaluation\t{metrics_line(means, standard=True)}"]


def means_of(lines, rows, metric):
    """{row: mean of a metric} from lines of one data set; {} where a row has none."""
    of_rows = {row: lines[lines["row"] == row] for row in rows}
    whole = all(map(len, of_rows.values()))
    return {row: mean_and_deviation(of, metric)[0] for row, of in of_rows.items() if whole}


def best_three(numbers, data_set):
    """The best of the paper's Table 2 on a data set, by MAP, in words; "" where one is not run."""
    rows = ("pop", "itemcf", "itemcf-count", "bpr", "fossil-t", "caser-t", "fossil-rd", "caser-rd")
    maps = means_of(numbers.of("results", data_set=data_set), rows, "map")
    return ", ".join(ROWS[row].title for row in sorted(maps, key=maps.get, reverse=True)[:3])


def recalls_of_others(numbers, data_set):
    """Recall@10 of less popular items by the student alone and by CD, in words; "" where one is
    not run with several seeds."""
    lines = numbers.of("popularity", data_set=data_set)
    several = lines.groupby("row").filter(lambda of_row: len(of_row) > 1)
    means = means_of(several, ("caser-s-tuned", "caser-cd"), "recall_other")
    return ", ".join(map(decimal, means.values()))


def findings(numbers):
    """README's sentences on what shows, a difference of MAP and its p a data set."""
    data_sets = data_sets_of(numbers)

    def differences(*pair):
        found = ((d, difference(numbers, d, *pair)) for d in data_sets)
        return ", ".join(f"{data_set} {decimal(one.mean, '+')} (p {p_value(one.p)})"
                         for data_set, one in found if one and one.seeds > 1)  # fmt: skip

    def joined(*parts):
        return "; ".join(words + told for words, *pair in parts if (told := differences(*pair)))

    def by_data_set(words_of):
        words = ((data_set, words_of(numbers, data_set)) for data_set in data_sets)
        return "; ".join(f"{data_set} {told}" for data_set, told in words if told)

    def times(numbers, data_set):
        return ", ".join(f"{ratio:.0%}" for ratio in time_ratios(numbers, data_set).values())

    lines = {
        "Gain by distilling": joined(
            ("", "caser-rd", "caser-s"),
            ("both tuned, ", "caser-rd-tuned", "caser-s-tuned"),
            ("Fossil, ", "fossil-rd", "fossil-s"),
        ),
        "Trained to convergence (200 epochs)": joined(
            ("", "caser-rd-converged", "caser-s-converged"),
            ("by the paper's formulas, ", "rd-paper-converged", "caser-s-converged"),
        ),
        "Against the teacher": differences("caser-rd", "caser-t"),
        "A Caser taught by Fossil-T gains": differences("caser-rd-from-fossil", "caser-s"),
        "The hybrid weight, against w = 1/K": differences("caser-rd", "uniform"),
        "The paper ranks RD, Caser, Fossil, BPR, ItemCF, POP; here": by_data_set(best_three),
        "Time to rank, one by one and together, of the teacher's": by_data_set(times),
        "Recall@10 of less popular items, tuned S and CD": by_data_set(recalls_of_others),
    }
    return [f"- **{what}**: {told}." for what, told in lines.items() if told]


BLOCKS = {"headline": headline_table, "findings": findings, "evaluate": evaluate_line}


def with_blocks(text, numbers):
    """``text`` with what stands between the marks <!-- NAME --> and <!-- end --> printed anew.
    Raises UserError where a block's marks are not there."""
    for name, lines_of in BLOCKS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", re.DOTALL)
        block = "\n".join([*lines_of(numbers), ""])
        text, found = pattern.subn(lambda marks, b=block: marks[1] + b + marks[2], text)
        if found != 1:
            raise UserError(f"README.md: the marks <!-- {name} --> and <!-- end --> are not there")
    return text


# ---------------------------------------------------------------------------- all of them


def document_texts(numbers, root=ROOT):
    """{path below the root: text} of every document's text and every figure's csv."""
    readme = (Path(root) / "README.md").read_text("utf-8")
    texts = {"README.md": with_blocks(readme, numbers), "RESULTS.md": results_text(numbers)}
    texts["docs/headline.csv"] = points_csv(headline_points(numbers), "data set", ["MAP", "sd"])
    for data_set in data_sets_of(numbers):
        for name in figures_of(numbers, data_set):
            points = figure_points(numbers, data_set, name)
            texts[f"docs/{data_set}-{name}.csv"] = points_csv(points, FIGURES[name][3], ["MAP"])
    return texts


def write_documents(root=ROOT):
    """Print every document, and draw every picture, from the published numbers."""
    numbers = Numbers.read()
    for name, text in document_texts(numbers, root).items():
        path = Path(root, name)
        if not path.exists() or path.read_text("utf-8") != text:
            with atomic_write(path, "w") as file:
                file.write(text)
            print(f"printed {name}")
    draw_headline(numbers, Path(root, "docs/headline"))
    for data_set in data_sets_of(numbers):
        for name in figures_of(numbers, data_set):
            draw_figure(numbers, data_set, name, Path(root, f"docs/{data_set}-{name}"))
