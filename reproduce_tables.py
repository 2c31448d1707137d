"""The paper's tables and figures, each by one command.

    python reproduce_tables.py                          Table 2 on ml-100k, one seed
    python reproduce_tables.py --table 4 --seeds 3 --dataset gowalla-tail
    python reproduce_tables.py --figure d
    python reproduce_tables.py --report                 Markdown from the runs that are finished
    python reproduce_tables.py --plot checkpoints/*.jsonl

It trains nothing itself: study.py runs train_caser.py and distill_caser.py. The rows are in
table_rows.py.
"""

import functools
import shlex
import statistics
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from checkpoint import restore_network
from figures import draw, points_of_runs
from study import Study, execute_all
from table_rows import METRICS, ROWS, TABLES, with_flags

from evaluation import evaluate_ranking, topk
from utils import Parser, UserError, numeric_flag, path_flag, run_command

HEADS = ["P@3", "P@5", "P@10", "nDCG@3", "nDCG@5", "nDCG@10", "MAP"]
PAPERS_GOWALLA = {"users": 13_149, "items": 14_009, "rows": 535_650}
RIVALS = ("caser-s", "caser-t")  # what every distilled row is tested against
PAPERS_PARAMETERS = {"caser-t": "5.58M", "caser-rd": "2.79M"}  # Table 3
PAPERS_TIMES = (
    "The paper, on its machine: Caser-T 38.58 s on a CPU, 4.52 s on a GPU; Caser-RD, with 50.0% of"
    " the parameters, 18.63 s and 2.99 s."
)


# ----------------------------------------------------------------------------- the tables


def table(heads, rows):
    """A Markdown table as a list of lines."""
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def mean_and_deviation(values):
    """ "mean ± standard deviation", the latter where there are two values or more."""
    values = list(values)
    deviation = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{deviation}"


def counts(study):
    """Users, items and rows of train and test together."""
    data = study.data()
    return {
        "users": data.counts["users"] + data.counts["unknown_test_users"],
        "items": data.counts["items"] + len(data.test.unknown_items),
        "rows": sum(data.counts[f"{part}_rows"] for part in ("train", "test", "unknown_test_user")),
    }


def is_papers(study):
    """Whether the data set is the paper's Gowalla, whose numbers the paper's are compared with."""
    return study.dataset == "gowalla" and counts(study) == PAPERS_GOWALLA


def table_1(study):
    """The data set's statistics."""
    lines = {study.dataset: counts(study)}
    if study.dataset == "gowalla":
        lines["gowalla (paper)"] = PAPERS_GOWALLA
    return table(
        ["", "users", "items", "rows", "rows per user", "density"],
        [[name, *n.values(), f"{n['rows'] / n['users']:.2f}",
          f"{n['rows'] / n['users'] / n['items']:.4%}"] for name, n in lines.items()],
    )  # fmt: skip


def table_of_metrics(study, names):
    """Tables 2, 4 and the readings: a line per row, and the paper's above it on its Gowalla."""
    lines = []
    for row in (ROWS[name] for name in names):
        if row.paper and is_papers(study):
            paper = ["" if value is None else f"{value:.4f}" for value in row.paper]
            lines.append([f"{row.title} (paper)", "", "", *paper])
        runs = study.finals(row)
        if runs:
            results = [run.result() for run in runs]
            means = (mean_and_deviation(result[name] for result in results) for name in METRICS)
            lines.append([row.title, runs[0].epochs(), len(runs), *means])
        else:
            lines.append([row.title, "", 0, *["not run"] * len(METRICS)])
    return table(["", "epochs", "seeds", *HEADS], lines)


def every_seed(study, names):
    """A line per row: the MAP of each of its seeds."""
    for row in (ROWS[name] for name in names):
        if runs := study.finals(row):
            values = ", ".join(f"{run.seed}: {run.result()['map']:.4f}" for run in runs)
            yield f"MAP of {row.title} by seed: {values}."


@functools.cache  # teacher and student alone are compared with every distilled row
def average_precision(run):
    """(users,) float64: each user's average precision, from the checkpoint of a finished run."""
    data = run.study.data()
    checkpoint = run.trained()
    data.check(checkpoint)
    return evaluate_ranking(restore_network(checkpoint), data.train, data.test)["map"]


def paired_test(study, *rows):
    """A line on whether one row serves users better than the other, of the seeds that both have;
    none where there are none. Wilcoxon's test takes the trained models as given and users as
    drawn at random, the t-test the other way round."""
    runs = [{run.seed: run for run in study.finals(row)} for row in rows]
    seeds = [seed for seed in runs[0] if seed in runs[1]]
    if not seeds:
        return []
    by_seed = np.array([[average_precision(of_row[s]) for s in seeds] for of_row in runs])
    first, second = by_seed.mean(1)  # (users,) each
    if (first == second).all():
        return [f"{rows[0].title} and {rows[1].title} rank alike for every user."]
    p = scipy.stats.wilcoxon(first, second).pvalue
    up, down = (first > second).mean(), (first < second).mean()
    line = (
        f"{rows[0].title} against {rows[1].title}, average precision per user averaged over"
        f" {len(seeds)} seed(s), Wilcoxon's signed-rank test over {len(first)} users:"
        f" mean difference {(first - second).mean():+.4f}, better for {up:.0%}, worse for"
        f" {down:.0%}, p = {p:.2g}"
    )
    if len(seeds) > 1:
        first, second = by_seed.mean(2)  # (seeds,) each: MAP
        differences = first - second
        line += "; by seed " + ", ".join(f"{difference:+.4f}" for difference in differences)
        if np.ptp(differences) > 1e-12:  # else they are alike but for rounding
            p = scipy.stats.ttest_rel(first, second).pvalue
            line += f", paired t-test over seeds: p = {p:.2g}"
    return [f"{line}."]


@torch.inference_mode()
def ranking_seconds(net, train, users, at_once):
    """How long it takes to rank all items for users (n,), ``at_once`` of them together."""
    device = next(net.parameters()).device
    windows = torch.from_numpy(train.test_sequences.sequences[users]).to(device)
    users = torch.from_numpy(users).to(device)
    started = time.perf_counter()
    for first in range(0, len(users), at_once):
        part = slice(first, first + at_once)
        scores = net.score_all(windows[part], users[part])
        topk(scores, min(10, scores.shape[1]))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def table_3(study, names):
    """Parameters, size, and the time to rank all items for every test user."""
    lines, sizes = [], {}
    data = study.data()
    users = np.flatnonzero(np.diff(data.test.tocsr().indptr))
    devices = ["cpu"] + ["cuda"] * torch.cuda.is_available()
    for row in (ROWS[name] for name in names):
        runs = study.finals(row)
        if not runs:
            lines.append([row.title, *["not run"] * (4 + 2 * len(devices))])
            continue
        net = restore_network(runs[0].trained()).eval()
        sizes[row.size] = sum(parameter.numel() for parameter in net.parameters())
        ratio = f"{sizes[row.size] / sizes['teacher']:.1%}" if "teacher" in sizes else ""
        times = [
            statistics.median(
                ranking_seconds(net.to(device), data.train, users, n) for _ in range(3)
            )
            for device in devices
            for n in (256, 1)
        ]
        paper = PAPERS_PARAMETERS[row.name] if is_papers(study) else ""
        megabytes = runs[0].checkpoint.stat().st_size / 1e6
        cells = [f"{sizes[row.size]:,}", paper, ratio, f"{megabytes:.1f}"]
        lines.append([row.title, *cells, *(f"{seconds:.2f}" for seconds in times)])
    heads = ["", "parameters", "paper", "ratio", "checkpoint MB"]
    heads += [f"{device} s, {n}" for device in devices for n in ("256 users at once", "one by one")]
    notes = [f"{len(users)} users, {torch.get_num_threads()} threads, medians of 3."]
    if is_papers(study):
        notes.append(PAPERS_TIMES)
    return [*table(heads, lines), "", *notes]


def results(study, names, rivals):
    """The metrics of some rows, each seed's, under what protocol and setting, and tests of the
    distilled ones against the ``rivals``."""
    rows = [ROWS[name] for name in names]
    settings = {run.setting() for row in rows for run in study.finals(row)}
    return [
        *table_of_metrics(study, names),
        "",
        "Test split, all items ranked, the user's train items and padding out, nDCG as in the"
        " paper; epochs chosen by MAP on the validation split with the first seed. p values are"
        " not corrected for how many there are.",
        *(f"Trained on {setting}." for setting in sorted(settings)),
        *every_seed(study, names),
        *(
            line
            for row in rows
            if row.distilled
            for rival in rivals
            if rival != row.name
            for line in paired_test(study, row, ROWS[rival])
        ),
    ]


def report(study, number):
    """The Markdown lines of one table."""
    names = TABLES[number]
    title = "Readings" if number == "readings" else f"Table {number}"
    if number == "1":
        body = table_1(study)
    elif number == "3":
        body = table_3(study, names)
    else:
        body = results(study, names, RIVALS + ("caser-rd",) * (number == "4"))
    return [f"### {title}, {study.dataset}", "", *body, ""]


# ---------------------------------------------------------------------------- the figures


def varied(row, flag, value):
    """``row`` with one flag changed: d for a student only, the share of instances for its teacher
    as well."""
    if flag == "d" and row.size == "teacher":
        return row
    flags = (f"--{flag}", str(value))
    teacher_flags = flags if flag == "train_fraction" and row.distilled else ()
    return replace(with_flags(row, *flags), teacher_flags=teacher_flags)


TRIO = ("caser-t", "caser-s", "caser-rd")
# figure -> (flag, its values, the rows it is drawn for, the axis' label)
FIGURES = {
    "d": ("d", (10, 20, 50, 100), TRIO, "dimension d of the student (the teacher has its own)"),
    "epochs": (None, (), TRIO, "epoch"),
    "balance": (
        "teach_alpha",
        (0.1, 0.25, 0.5, 1, 2, 4, 9),
        ("caser-rd",),
        "balance a, the share of L^D",
    ),
    "K": ("K", (1, 5, 10, 20, 50), ("caser-rd",), "length K of the teacher's list"),
    "instances": ("train_fraction", (0.2, 0.4, 0.6, 0.8, 1.0), TRIO, "share of training instances"),
}


def figure_rows(name):
    """The rows whose runs a figure needs."""
    flag, values, names, _ = FIGURES[name]
    rows = [ROWS[n] for n in names]
    return [varied(row, flag, value) for value in values for row in rows] if flag else rows


def figure_points(study, name):
    """The points, for ``draw``, of a figure's finished runs."""
    flag, values, names, _ = FIGURES[name]
    for row in (ROWS[n] for n in names):
        if not flag:  # the searches on the validation split have the whole curve
            search = study.search(row)
            for record in search.records() if search.finished() else ():
                if "map" in record:
                    yield row.title, record["epoch"], {"MAP": record["map"]}
        for value in values:
            runs = study.finals(varied(row, flag, value))
            if runs:
                x = value / (1 + value) if name == "balance" else value
                yield row.title, x, {"MAP": statistics.mean(r.result()["map"] for r in runs)}


def draw_figure(study, name):
    """Draw a figure from those of its runs that are finished; UserError where none is."""
    points = list(figure_points(study, name))
    if not points:
        raise UserError(f"--figure {name}: none of its runs is finished")
    if name == "epochs":
        source = "validation split, 1 seed"
    else:
        seeds = {len(study.finals(row)) for row in figure_rows(name)} - {0}
        most = f" to {max(seeds)}" if len(seeds) > 1 else ""
        source = f"test split, mean of {min(seeds)}{most} seed(s)"
    label = FIGURES[name][3]
    title = f"MAP against {label}\n{study.dataset}, {source}"
    draw(points, study.folder / "figures" / name, label, ["MAP"], title)


# --------------------------------------------------------------------------- command line


def get_args_parser():
    parser = Parser(description=__doc__.split("\n")[0])
    path_flag(parser, "--dataset", "the data set, prepared: datasets/NAME", "ml-100k", "NAME")
    parser.add_argument(
        "--table", choices=[*TABLES, "all"], help="run and print a table (default: 2)"
    )
    parser.add_argument("--row", choices=ROWS, help="run one row of a table")
    parser.add_argument("--figure", choices=[*FIGURES, "all"], help="run and draw a figure")
    numeric_flag(parser, "--seeds", 1, int, "[1, 100]", "how many seeds: 1234, then 1, 2, ...")
    numeric_flag(parser, "--eval_every", 5, int, "[1, 1e9]", "epochs between the search's looks")
    instead = parser.add_mutually_exclusive_group()  # of running
    instead.add_argument(
        "--plot",
        nargs="+",
        type=Path,
        metavar="FILE.jsonl",
        help="draw loss and MAP against epochs from the records of runs",
    )
    instead.add_argument("--list", action="store_true", help="list tables, rows and figures")
    instead.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    instead.add_argument(
        "--report",
        action="store_true",
        help="print the finished results, train nothing (Table 3 is timed anew)",
    )
    path_flag(parser, "--results_dir", "where runs and figures go", "results", "DIR")
    return parser


def chosen(name, known):
    """The names out of ``known`` that a flag's value means: one, "all", or none for None."""
    if name == "all":
        return list(known)
    return [name] if name else []


def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.list:
        for number, names in TABLES.items():
            print(f"--table {number}: {', '.join(names) or 'statistics of the data set'}")
        for row in ROWS.values():
            print(f"--row {row.name}: {row.title}, by {shlex.join([row.script, *row.flags])}")
        for name, (flag, values, _, label) in FIGURES.items():
            points = f", by --{flag} {', '.join(map(str, values))}" if flag else ""
            print(f"--figure {name}: MAP against {label}{points}")
        return 0
    if args.plot:
        path = Path(args.results_dir, "plot")
        draw(points_of_runs(args.plot), path, "epoch", ["loss", "MAP"], "Training runs")
        return 0
    study = Study(args, look=args.report or args.dry_run)
    everything = args.report and not (args.table or args.row or args.figure)
    tables = chosen("all" if everything else args.table, TABLES)
    figures = chosen(args.figure, FIGURES)
    rows = [args.row] if args.row else []
    if not (tables or figures or rows):
        tables = ["2"]
    runs = [run for name in rows for run in study.runs(ROWS[name])]
    runs += [run for number in tables for name in TABLES[number] for run in study.runs(ROWS[name])]
    runs += [run for name in figures for row in figure_rows(name) for run in study.runs(row)]
    if args.dry_run:
        for run in dict.fromkeys(runs):
            state = "  # finished" if run.finished() else ""
            print(f"python {shlex.join(run.command())}{state}")
        return 0
    if args.report and study.key["data"] is None:
        raise UserError(f"datasets/{args.dataset}: not there, so no result is of it; see --dry_run")
    if not args.report:
        execute_all(runs)
    for number in tables:
        print("\n".join(report(study, number)))
    for name in rows:
        lines = results(study, [name], RIVALS)
        print("\n".join([f"### {ROWS[name].title}, {study.dataset}", "", *lines, ""]))
    undrawn = []
    for name in figures:
        try:
            draw_figure(study, name)
        except UserError as error:  # what the others show is not to be lost with it
            undrawn.append(str(error))
    if undrawn:
        raise UserError("; ".join(undrawn))
    return 0


if __name__ == "__main__":
    run_command(main)
