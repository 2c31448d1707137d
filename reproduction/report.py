"""The paper's tables as Markdown lines, from the runs that are finished."""

import functools
import statistics
import time

import numpy as np
import scipy.stats
import torch

from evaluation import evaluate_ranking
from kernels import topk
from reproduction.rows import METRICS, ROWS, TABLES
from support.checkpoint import restore_network
from support.run import commit

HEADS = ["P@3", "P@5", "P@10", "nDCG@3", "nDCG@5", "nDCG@10", "MAP"]
PAPERS_GOWALLA = {"users": 13_149, "items": 14_009, "rows": 535_650}
RIVALS = ("caser-s", "caser-t")  # what every distilled row is tested against
PAPERS_PARAMETERS = {"caser-t": "5.58M", "caser-rd": "2.79M"}  # Table 3
PAPERS_TIMES = (
    "The paper, on its machine: Caser-T 38.58 s on a CPU, 4.52 s on a GPU; Caser-RD, with 50.0% of"
    " the parameters, 18.63 s and 2.99 s."
)


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
        runs = study.finished_runs(row)
        if runs:
            results = [run.result() for run in runs]
            means = (mean_and_deviation(result[name] for result in results) for name in METRICS)
            lines.append([row.title, runs[0].epochs(), len(runs), *means])
        else:
            lines.append([row.title, "", 0, *["not run"] * len(METRICS)])
    return table(["", "epochs", "seeds", *HEADS], lines)


def other_commits(study, rows):
    """A line on what other commits than the present one have done, if anything."""
    done = {
        f"{row.title} by {run.commit or 'an unknown commit'}"
        for row in rows
        for run in study.finished_runs(row)
        if run.commit != commit()
    }
    if done:
        yield f"Not of this commit: {', '.join(sorted(done))}; --again does it anew."
        yield ""


def every_seed(study, names):
    """A line per row: the MAP of each of its seeds."""
    for row in (ROWS[name] for name in names):
        if runs := study.finished_runs(row):
            values = ", ".join(f"{run.seed}: {run.result()['map']:.4f}" for run in runs)
            yield f"MAP of {row.title} by seed: {values}."


@functools.cache  # teacher and student alone are compared with every distilled row
def average_precision(run):
    """(users,) float64: each user's average precision, from the checkpoint of a finished run."""
    data = run.study.data()
    net, _ = data.network(run.trained())
    return evaluate_ranking(net, data.train, data.test)["map"]


def paired_test(study, *rows):
    """A line on whether one row serves users better than the other, of the seeds that both have;
    none where there are none. Wilcoxon's test takes the trained models as given and users as
    drawn at random, the t-test the other way round."""
    runs = [{run.seed: run for run in study.finished_runs(row)} for row in rows]
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
        runs = study.finished_runs(row)
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
        paper = PAPERS_PARAMETERS.get(row.name, "") if is_papers(study) else ""
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
    settings = {run.setting() for row in rows for run in study.finished_runs(row)}
    return [
        *other_commits(study, rows),
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
