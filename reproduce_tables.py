"""The paper's tables and figures, each by one command.

    python reproduce_tables.py                          Table 2 on ml-100k, one seed
    python reproduce_tables.py --table 4 --seeds 3 --dataset gowalla-tail
    python reproduce_tables.py --figure d
    python reproduce_tables.py --report                 Markdown from the runs that are finished
    python reproduce_tables.py --plot checkpoints/*.jsonl

It trains nothing itself: a row is a name and a command of train_caser.py or distill_caser.py. How
many epochs a row gets is chosen once, with the first seed, by MAP on the validation split; then
it is trained on the test split's training rows for as many, and the test rows are read once.
"""

import ast
import functools
import hashlib
import itertools
import json
import shlex
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import scipy.stats
import torch

from caser import read_checkpoint, restore_network
from evaluation import KS, evaluate_ranking
from figures import draw, points_of_runs
from interactions import DataSet, find_files
from utils import (
    Parser,
    UserError,
    atomic_write,
    fingerprint,
    numeric_flag,
    path_flag,
    run_command,
    versions,
)

ROOT = Path(__file__).resolve().parent
SOURCES = ("caser", "distill_caser", "evaluation", "interactions", "losses", "train_caser", "utils")
METRICS = [f"{name}@{k}" for name in ("precision", "ndcg_paper") for k in KS] + ["map"]
HEADS = ["P@3", "P@5", "P@10", "nDCG@3", "nDCG@5", "nDCG@10", "MAP"]

# Tang and Wang 2018, Tables 2 and 4, on their Gowalla (a third party's transcription).
PAPER = {
    "caser-t": (0.1408, 0.1149, 0.0856, 0.1546, 0.1376, 0.1251, 0.0958),
    "caser-rd": (0.1458, 0.1183, 0.0878, 0.1603, 0.1423, 0.1283, 0.0969),
    "caser-s": (0.1333, 0.1094, 0.0818, 0.1456, 0.1304, 0.1188, 0.0919),
    "uniform": (None, None, 0.0843, None, None, 0.1198, 0.0925),
    "position": (None, None, 0.0850, None, None, 0.1230, 0.0945),
    "discrepancy": (None, None, 0.0851, None, None, 0.1227, 0.0937),
}
PAPER_PARAMETERS = {"caser-t": "5.58M", "caser-rd": "2.79M"}


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, and the flags that its command adds to the data set's."""

    name: str
    title: str
    size: str  # "teacher" or "student": which d it has
    distilled: bool = False
    flags: tuple = ()
    teacher_flags: tuple = ()  # what its teacher has besides


ROWS = {
    row.name: row
    for row in (
        Row("caser-t", "Caser-T", "teacher"),
        Row("caser-s", "Caser-S", "student"),
        Row("caser-rd", "Caser-RD", "student", True),
        Row("uniform", "w = 1/K", "student", True, ("--weights", "uniform")),
        Row("position", "position importance only", "student", True, ("--weights", "position")),
        Row("discrepancy", "ranking discrepancy only", "student", True,
            ("--weights", "discrepancy")),
        Row("rd-normalized", "Caser-RD, normalized", "student", True,
            ("--hybrid_weight", "normalized")),
        Row("rd-observed", "Caser-RD, observed out", "student", True,
            ("--teacher_exclude", "observed")),
        Row("rd-paper", "Caser-RD, both: the paper's formulas", "student", True,
            ("--hybrid_weight", "normalized", "--teacher_exclude", "observed")),
    )
}  # fmt: skip
TABLES = {
    "1": (),
    "2": ("caser-t", "caser-s", "caser-rd"),
    "3": ("caser-t", "caser-rd"),
    "4": ("uniform", "position", "discrepancy", "caser-rd"),
    "readings": ("caser-rd", "rd-normalized", "rd-observed", "rd-paper"),
}
# d of teacher and student, the most epochs of each, and the flags that all rows share.
DEFAULTS = {"teacher": (100, 50), "student": (50, 50), "flags": ()}
SETTINGS = {
    "ml-100k": {"teacher": (100, 30), "student": (20, 60), "flags": ()},
    "ml-1m": {"teacher": (50, 20), "student": (10, 40),
              "flags": ("--T", "3", "--nv", "4", "--ac_conv", "relu", "--ac_fc", "relu")},
}  # fmt: skip


def code_version():
    """A hash of what the code does: comments, docstrings and layout don't count."""
    digest = hashlib.sha256()
    for name in SOURCES:
        tree = ast.parse((ROOT / f"{name}.py").read_text("utf-8"))
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- the runs


class Study:
    """The runs of one data set: what they are, which are finished, and what they gave."""

    def __init__(self, args):
        self.dataset, self.seeds, self.eval_every = args.dataset, args.seeds, args.eval_every
        self.settings = SETTINGS.get(args.dataset, DEFAULTS)
        self.folder = Path(args.results_dir, args.dataset)
        files = {split: find_files(args.dataset, split)[1:] for split in ("validation", "test")}
        data = {split: [fingerprint_file(path) for path in paths] for split, paths in files.items()}
        self.key = {"code": code_version(), "data": data}
        self._dataset = None

    def data(self):
        """The DataSet of the test split."""
        if self._dataset is None:
            flags = dict(zip(*[iter(self.settings["flags"])] * 2, strict=True))
            L, T = int(flags.get("--L", 5)), int(flags.get("--T", 1))
            self._dataset = DataSet.load(*find_files(self.dataset, "test"), L, T)
        return self._dataset

    def runs(self, row, teaches=False):
        """Every Run that the row needs, in an order in which they can be done."""
        needed = self.runs(teacher_of(row), teaches=True) if row.distilled else []
        needed.append(Run(self, row, "validation", self.seed(0), final=False))
        if teaches:  # the student's search has a teacher that knows no test row either
            needed.append(Run(self, row, "validation", self.seed(0)))
        return needed + [Run(self, row, "test", self.seed(n)) for n in range(self.seeds)]

    @staticmethod
    def seed(n):
        """The n-th seed: the authors' 1234, then 1, 2, ..."""
        return n or 1234

    def finals(self, row):
        """The finished test runs of a row."""
        runs = [Run(self, row, "test", self.seed(n)) for n in range(self.seeds)]
        return [run for run in runs if run.finished()]


def teacher_of(row):
    """The row whose runs teach ``row``."""
    return with_flags(ROWS["caser-t"], *row.teacher_flags)


def with_flags(row, *flags):
    """``row`` with more flags, (flag, value) or none, and a name that tells them."""
    name = "-".join((row.name, *("=".join(flags).lstrip("-") for _ in flags[:1])))
    return replace(row, name=name, flags=row.flags + flags)


def fingerprint_file(path):
    try:
        return fingerprint(np.fromfile(path, dtype=np.uint8))[:16]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


@dataclass(frozen=True)
class Run:
    """One training run. final: for the chosen number of epochs; else for the most, to choose."""

    study: Study
    row: Row
    split: str
    seed: int
    final: bool = True

    @property
    def name(self):
        return f"{self.row.name}-{self.split}{'' if self.final else '-search'}-seed={self.seed}"

    @property
    def search(self):
        """The run that chooses the epochs for this one."""
        return replace(self, split="validation", seed=self.study.seed(0), final=False)

    def is_its_search(self):
        """Whether it would only repeat its search, which went on for as many epochs."""
        same = self == replace(self.search, final=True) and self.search.finished()
        return same and self.epochs() == self.most_epochs()

    @property
    def teacher(self):
        """The run that teaches this one, where it distils."""
        run = Run(self.study, teacher_of(self.row), self.split, self.seed)
        return run.search if run.is_its_search() else run

    @property
    def folder(self):
        return self.study.folder / self.name

    @property
    def d(self):
        flags = list(self.row.flags)
        return (
            int(flags[flags.index("--d") + 1])
            if "--d" in flags
            else self.study.settings[self.row.size][0]
        )

    def most_epochs(self):
        return self.study.settings[self.row.size][1]

    def epochs(self):
        """How many epochs it trains, or None while the search is not finished."""
        if not self.final:
            return self.most_epochs()
        if not self.search.finished():
            return None
        scored = [record for record in self.search.records() if "map" in record]
        return max(scored, key=lambda record: record["map"])["epoch"]

    def command(self):
        """The command line, as a list of words from the script on."""
        epochs = self.epochs()
        every = self.study.eval_every if not self.final else 1_000_000
        words = ["distill_caser.py" if self.row.distilled else "train_caser.py"]
        words += ["--dataset", self.study.dataset, "--split", self.split]
        words += ["--d", str(self.d)] if "--d" not in self.row.flags else []
        words += ["--seed", str(self.seed), "--n_iter", str(epochs) if epochs else "<chosen>"]
        words += ["--eval_every", str(every), "--save_every", "5", "--output_dir", str(self.folder)]
        if self.row.distilled:
            words += ["--teacher_model_path", str(self.teacher.checkpoint)]
        return [*words, *self.study.settings["flags"], *self.row.flags]

    @property
    def checkpoint(self):
        name = self.study.dataset + ("-validation" if self.split == "validation" else "")
        suffix = "-rd" if self.row.distilled else ""
        return self.folder / f"{name}-caser-dim={self.d}{suffix}.pth.tar"

    def identity(self):
        """What makes a result this run's: command, code, data, and the teacher's own identity."""
        teacher = self.teacher.identity() if self.row.distilled else None
        return {"command": self.command(), "teacher": teacher} | self.study.key

    def finished(self):
        if self.is_its_search():
            return True
        done = _read_json(self.folder / "finished.json")
        return done is not None and done.get("identity") == self.identity()

    def records(self):
        text = Path(str(self.checkpoint).removesuffix(".pth.tar") + ".jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()][1:]

    def result(self):
        """The test metrics of a finished run: {"map": ..., ...}."""
        return next(record for record in reversed(self.records()) if "map" in record)

    def _set_aside(self):
        """Rename what another code, data or command left in the folder."""
        if self.folder.exists():
            numbers = itertools.count(1)
            places = (self.folder.with_name(f"{self.name}.old{n}") for n in numbers)
            aside = next(place for place in places if not place.exists())
            self.folder.rename(aside)
            print(f"{self.folder}: from other code, data or flags; kept as {aside.name}")

    def execute(self):
        """Start the run, or resume it where an interrupted one of the same identity lies."""
        begun = _read_json(self.folder / "begun.json")
        if begun != self.identity():
            self._set_aside()
            self.folder.mkdir(parents=True)
            with atomic_write(self.folder / "begun.json", "w") as file:
                json.dump(self.identity(), file)
        words = self.command()
        if self.checkpoint.exists():
            words = [words[0], "--checkpoint", str(self.checkpoint)]
        started = time.perf_counter()
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            status = subprocess.run(
                [sys.executable, ROOT / words[0], *words[1:]], stdout=log
            ).returncode
        if status:
            sys.exit(status)  # the command has said why
        with atomic_write(self.folder / "finished.json", "w") as file:
            seconds = time.perf_counter() - started
            json.dump(
                {"identity": self.identity(), "seconds": seconds, "versions": versions()}, file
            )


def _read_json(path):
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None


def execute_all(runs):
    """Do the runs that are not finished, telling what runs, what is left and about how long."""
    left = [run for run in dict.fromkeys(runs) if not run.finished()]
    seconds = epochs_done = 0
    for place, run in enumerate(left):
        if run.finished():  # its search, finished meanwhile, stands for it
            continue
        guess = ""
        if epochs_done:
            rest = sum(later.epochs() or later.most_epochs() for later in left[place:])
            guess = f", about {rest * seconds / epochs_done / 60:.0f} min left"
        print(f"[{place + 1}/{len(left)}] {run.name}: {run.epochs()} epochs{guess}", flush=True)
        started = time.perf_counter()
        run.execute()
        seconds += time.perf_counter() - started
        epochs_done += run.epochs()


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


def table_1(study):
    """The data set: users, items, rows."""
    counts = study.data().counts
    rows = counts["train_rows"] + counts["test_rows"]
    density = rows / counts["users"] / counts["items"]
    return table(
        ["", "users", "items", "rows", "rows per user", "density"],
        [[study.dataset, counts["users"], counts["items"], rows, f"{rows / counts['users']:.2f}",
          f"{density:.4%}"]],
    )  # fmt: skip


def table_of_metrics(study, names):
    """Tables 2, 4 and the readings: a line per row, and the paper's above it on its Gowalla."""
    lines = []
    for row in (ROWS[name] for name in names):
        if study.dataset == "gowalla" and row.name in PAPER:
            paper = ["" if value is None else f"{value:.4f}" for value in PAPER[row.name]]
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


@functools.cache  # the student alone is compared with every distilled row
def average_precision(run):
    """(users,) float64: each user's average precision, from the checkpoint of a finished run."""
    data = run.study.data()
    checkpoint = read_checkpoint(run.checkpoint)
    data.check(checkpoint)
    return evaluate_ranking(restore_network(checkpoint), data.train, data.test)["map"]


def paired_test(study, *rows):
    """A line on whether users are served better by one row than by the other, of the seeds that
    both have; none where there are none."""
    runs = [{run.seed: run for run in study.finals(row)} for row in rows]
    seeds = [seed for seed in runs[0] if seed in runs[1]]
    if not seeds:
        return []
    first, second = (np.mean([average_precision(by_seed[s]) for s in seeds], 0) for by_seed in runs)
    if (first == second).all():
        return [f"{rows[0].title} and {rows[1].title} rank alike for every user."]
    p = scipy.stats.wilcoxon(first, second).pvalue
    up, down = (first > second).mean(), (first < second).mean()
    return [
        f"{rows[0].title} against {rows[1].title}, average precision per user averaged over"
        f" {len(seeds)} seed(s), Wilcoxon's signed-rank test over {len(first)} users:"
        f" mean difference {(first - second).mean():+.4f}, better for {up:.0%}, worse for"
        f" {down:.0%}, p = {p:.2g}."
    ]


@torch.inference_mode()
def ranking_seconds(net, train, users, at_once):
    """How long it takes to rank all items for users (n,), ``at_once`` of them together."""
    device = next(net.parameters()).device
    windows = torch.from_numpy(train.test_sequences.sequences[users]).to(device)
    users = torch.from_numpy(users).to(device)
    started = time.perf_counter()
    for first in range(0, len(users), at_once):
        part = slice(first, first + at_once)
        net.score_all(windows[part], users[part]).topk(10)
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
        net = restore_network(read_checkpoint(runs[0].checkpoint)).eval()
        sizes[row.size] = sum(parameter.numel() for parameter in net.parameters())
        ratio = f"{sizes[row.size] / sizes['teacher']:.1%}" if "teacher" in sizes else ""
        times = [
            statistics.median(
                ranking_seconds(net.to(device), data.train, users, n) for _ in range(3)
            )
            for device in devices
            for n in (256, 1)
        ]
        paper = PAPER_PARAMETERS[row.name] if study.dataset == "gowalla" else ""
        megabytes = runs[0].checkpoint.stat().st_size / 1e6
        cells = [f"{sizes[row.size]:,}", paper, ratio, f"{megabytes:.1f}"]
        lines.append([row.title, *cells, *(f"{seconds:.2f}" for seconds in times)])
    heads = ["", "parameters", "paper", "ratio", "checkpoint MB"]
    heads += [f"{device} s, {n}" for device in devices for n in ("256 users at once", "one by one")]
    threads = f"{len(users)} users, {torch.get_num_threads()} threads, medians of 3."
    return [*table(heads, lines), "", threads]


def report(study, number):
    """The Markdown lines of one table."""
    names = TABLES[number]
    title = "Readings" if number == "readings" else f"Table {number}"
    protocol = (
        "Test split, all items ranked, the user's train items and padding out, nDCG as in the"
        " paper; epochs chosen by MAP on the validation split with the first seed."
    )
    if number == "1":
        body = table_1(study)
    elif number == "3":
        body = table_3(study, names)
    else:
        body = [*table_of_metrics(study, names), "", protocol, *every_seed(study, names)]
        for row in (ROWS[name] for name in names):
            if row.distilled:
                body += paired_test(study, row, ROWS["caser-s"])
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
    "d": ("d", (10, 20, 50, 100), TRIO, "dimension d of the student"),
    "epochs": (None, (), TRIO, "epoch"),
    "balance": ("teach_alpha", (0.1, 0.25, 0.5, 1, 2, 4, 9), ("caser-rd",), "balance alpha"),
    "K": ("K", (1, 5, 10, 20, 50), ("caser-rd",), "length K of the teacher's list"),
    "instances": ("train_fraction", (0.2, 0.4, 0.6, 0.8, 1.0), TRIO, "share of training instances"),
}


def figure_runs(study, name):
    """The Runs that a figure needs."""
    flag, values, names, _ = FIGURES[name]
    rows = [ROWS[n] for n in names]
    if flag:
        rows = [varied(row, flag, value) for value in values for row in rows]
    return [run for row in rows for run in study.runs(row)]


def figure_points(study, name):
    """The points, for ``draw``, of a figure's finished runs."""
    flag, values, names, _ = FIGURES[name]
    for row in (ROWS[n] for n in names):
        if not flag:  # the searches on the validation split have the whole curve
            search = Run(study, row, "validation", study.seed(0), final=False)
            for record in search.records() if search.finished() else ():
                if "map" in record:
                    yield row.title, record["epoch"], {"MAP": record["map"]}
        for value in values:
            runs = study.finals(varied(row, flag, value))
            if runs:
                x = value / (1 + value) if name == "balance" else value
                yield row.title, x, {"MAP": statistics.mean(r.result()["map"] for r in runs)}


def draw_figure(study, name):
    """Draw a figure from those of its runs that are finished."""
    points = list(figure_points(study, name))
    if not points:
        raise UserError(f"--figure {name}: none of its runs is finished")
    split = "validation" if name == "epochs" else "test"
    label = FIGURES[name][3]
    title = f"MAP against {label}\n{study.dataset}, {split} split"
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
    parser.add_argument(
        "--plot",
        nargs="+",
        type=Path,
        metavar="FILE.jsonl",
        help="draw loss and MAP against epochs from the records of runs",
    )
    parser.add_argument("--list", action="store_true", help="list tables, rows and figures")
    parser.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    parser.add_argument(
        "--report", action="store_true", help="print all finished results, run nothing"
    )
    path_flag(parser, "--results_dir", "where runs and figures go", "results", "DIR")
    return parser


def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if args.list:
        for number, names in TABLES.items():
            print(f"--table {number}: {', '.join(names) or 'statistics of the data set'}")
        for row in ROWS.values():
            print(f"--row {row.name}: {row.title}")
        for name, (_, values, _, label) in FIGURES.items():
            print(f"--figure {name}: MAP against {label} {values or ''}")
        return 0
    if args.plot:
        path = Path(args.results_dir, "plot")
        draw(points_of_runs(args.plot), path, "epoch", ["loss", "MAP"], "Training runs")
        return 0
    study = Study(args)
    tables = (
        list(TABLES) if args.table == "all" or args.report else [args.table] if args.table else []
    )
    figures = list(FIGURES) if args.figure == "all" else [args.figure] if args.figure else []
    rows = [args.row] if args.row else []
    if not (tables or figures or rows):
        tables = ["2"]
    runs = [run for name in rows for run in study.runs(ROWS[name])]
    runs += [run for number in tables for name in TABLES[number] for run in study.runs(ROWS[name])]
    runs += [run for name in figures for run in figure_runs(study, name)]
    if args.dry_run:
        for run in dict.fromkeys(runs):
            state = "  # finished" if run.finished() else ""
            print(f"python {shlex.join(run.command())}{state}")
        return 0
    if not args.report:
        execute_all(runs)
    for number in tables:
        print("\n".join(report(study, number)))
    if rows:
        print("\n".join([*table_of_metrics(study, rows), *every_seed(study, rows)]))
    for name in figures:
        draw_figure(study, name)
    return 0


if __name__ == "__main__":
    run_command(main)
