"""The training runs behind the paper's tables and figures: what each is, and doing them.

How many epochs a row gets is chosen once, with the first seed, by MAP on the validation split;
then it is trained on the test split's training rows for as many, and the test rows are read once.
"""

import ast
import glob
import hashlib
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from distillation import check_K, distillation_parser
from recommender import NETWORKS
from reproduction.rows import DEFAULTS, METRICS, SETTINGS, Row, teacher_of
from support.checkpoint import fingerprint_weights, read_checkpoint, records_path
from support.command_line import checkpoint_name
from support.data_set import DataSet, find_files
from support.processes import locked, run_to_its_end
from utils import DAMAGE, UserError, atomic_write, fingerprint, first_free

ROOT = Path(__file__).resolve().parent.parent
# What a training run's code is; docs and tables are not.
SOURCES = ("train_*.py", "distill_*.py", "caser.py", "kernels.py", "interactions.py", "losses.py",
           "recommender.py", "distillation.py", "evaluation.py", "utils.py",
           "support/*.py")  # fmt: skip


def code_version():
    """A hash of what the code does: comments, docstrings and layout don't count. Python 3.12 writes
    trees in other words than 3.11 and so gives another hash."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in SOURCES for path in ROOT.glob(pattern)):
        text = path.read_text("utf-8")
        try:
            tree = ast.parse(text)
        except SyntaxError:  # half edited
            digest.update(text.encode())
            continue
        for node in ast.walk(tree):
            body = getattr(node, "body", None)
            first = body[0] if isinstance(body, list) and body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                first.value.value = ""
        digest.update(ast.unparse(tree).encode())
    return digest.hexdigest()[:16]


# ------------------------------------------------------------------------------- the runs


class Study:
    """The runs of one data set: what they are, which are finished, and what they gave.

    args: ``dataset``, ``seeds``, ``eval_every`` and ``results_dir``. ml-100k is prepared where it
    is missing, but for a ``look`` alone, to which nothing is finished then.
    """

    def __init__(self, args, look=False):
        self.dataset, self.seeds, self.eval_every = args.dataset, args.seeds, args.eval_every
        self.settings = SETTINGS.get(args.dataset, DEFAULTS)
        self.folder = Path(args.results_dir, args.dataset)
        self.key = {"code": code_version(), "data": None}
        if not look or Path("datasets", args.dataset).is_dir():
            self.key = self._present_key()
        self._data = {}

    def _present_key(self):
        """What ties results to the code and to the data, as both are on disk now."""
        files = {split: find_files(self.dataset, split)[1:] for split in ("validation", "test")}
        data = {split: [fingerprint_file(path) for path in files[split]] for split in files}
        return {"code": code_version(), "data": data}

    def check_unchanged(self):
        """UserError where code or data are no longer what this study began with."""
        present = self._present_key()
        for what in self.key:
            if present[what] != self.key[what]:
                raise UserError(
                    f"the {what} changed while the study of {self.dataset} ran; what was trained"
                    " meanwhile does not count: run the same command again"
                )

    def data(self, split="test"):
        """The DataSet of a split."""
        if split not in self._data:
            args = _parsed(NETWORKS[0], self.settings["flags"])
            self._data[split] = DataSet.load(*find_files(self.dataset, split), args.L, args.T)
        return self._data[split]

    def runs(self, row, teaches=False):
        """Every Run that the row needs, in an order in which they can be done."""
        needed = self.runs(teacher_of(row), teaches=True) if row.distilled else []
        needed.append(self.search(row))
        if teaches:  # the student's search has a teacher that knows no test row either
            needed.append(Run(self, row, "validation", self.seed(0)))
        return needed + [Run(self, row, "test", self.seed(n)) for n in range(self.seeds)]

    def search(self, row):
        """The run that chooses how many epochs the row gets."""
        return Run(self, row, "validation", self.seed(0), final=False)

    @staticmethod
    def seed(n):
        """The n-th seed: the authors' 1234, then 1, 2, ..."""
        return n or 1234

    def finished_runs(self, row):
        """The finished test runs of a row, of all seeds that there are."""
        folders = self.folder.glob(f"{glob.escape(row.name)}-test-seed=*")
        seeds = (folder.name.rpartition("=")[2] for folder in folders)
        numbers = sorted({int(seed) for seed in seeds if seed.isdecimal()}, key=self._place)
        runs = [Run(self, row, "test", seed) for seed in numbers]
        return [run for run in runs if run.finished()]

    def _place(self, seed):
        return 0 if seed == self.seed(0) else seed


def _parsed(network, flags):
    """The values that flags of a training script give."""
    return distillation_parser("", network, 1).parse_args(list(flags))


def fingerprint_file(path):
    try:
        return fingerprint(np.fromfile(path, dtype=np.uint8))[:16]
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; see datasets/README.md") from None


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
        return self.study.search(self.row)

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

    def flags(self):
        """What makes this run, as the words of a command line."""
        epochs = self.epochs()
        words = ["--dataset", self.study.dataset, "--split", self.split]
        words += ["--d", str(self.d)] if "--d" not in self.row.flags else []
        words += ["--seed", str(self.seed), "--n_iter", str(epochs) if epochs else "<chosen>"]
        words += [] if self.final else ["--eval_every", str(self.study.eval_every)]
        return [*words, *self.study.settings["flags"], *self.row.flags]

    def check(self):
        """UserError where no teacher of the data could give the run its lists."""
        if self.row.distilled:
            args = _parsed(self.row.network, self.row.flags)
            try:
                check_K(args.K, self.study.data(self.split).train, args.teacher_exclude)
            except UserError as error:
                raise UserError(f"{self.name} can't be run: {error}") from None

    def paths(self):
        """The flags that say where it reads and writes."""
        words = ["--output_dir", str(self.folder)]
        if self.row.distilled:
            words += ["--teacher_model_path", str(self.teacher.checkpoint)]
        return words

    def command(self):
        """The command line, as a list of words from the script on."""
        last_only = ["--eval_every", "1000000"] if self.final else []
        return [self.row.script, *self.flags(), *last_only, "--save_every", "5", *self.paths()]

    @property
    def checkpoint(self):
        name = self.study.dataset + ("-validation" if self.split == "validation" else "")
        suffix = "-rd" if self.row.distilled else ""
        return self.folder / checkpoint_name(name, self.row.network, self.d, suffix)

    def identity(self):
        """What makes a result this run's: flags, code, data, and which teacher it had."""
        teacher = None
        if self.row.distilled:
            done = _read_json(self.teacher.folder / "finished.json") or {}
            teacher = self.teacher.identity() | {"weights": done.get("weights")}
        return {"run": [self.row.script, *self.flags()], "teacher": teacher} | self.study.key

    def finished(self):
        if self.is_its_search():
            return True
        done = _read_json(self.folder / "finished.json")
        return done is not None and done.get("identity") == self.identity()

    def records(self):
        """What a finished run has recorded: a header, and a dict per epoch."""
        path = records_path(self.checkpoint)
        try:
            records = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
            header, *epochs = records
            scored = [record for record in epochs if "map" in record]
            numbers = [record["map"] for record in scored] + [scored[-1][name] for name in METRICS]
            if not (
                {"device", "threads"} <= header.keys()
                and isinstance(header["versions"], dict)
                and all(isinstance(number, float) for number in numbers)
                and [record["epoch"] for record in epochs] == list(range(1, self.epochs() + 1))
            ):
                raise ValueError
        except (OSError, *DAMAGE):
            raise self._not_as_left(path) from None
        return records

    def trained(self):
        """The checkpoint of a finished run, as ``read_checkpoint`` gives it; UserError where it is
        not the one that the run left."""
        checkpoint = self._read()
        noted = (_read_json(self.folder / "finished.json") or {}).get("weights")
        other = noted is not None and noted != fingerprint_weights(checkpoint)
        if other or checkpoint["epoch_num"] != self.epochs():
            raise self._not_as_left(self.checkpoint)
        return checkpoint

    def _read(self):
        try:
            return read_checkpoint(self.checkpoint, NETWORKS)
        except UserError as error:
            raise UserError(f"{error}; delete {self.folder} to run it again") from None

    def _not_as_left(self, path):
        return UserError(
            f"{path}: damaged, or not what the run of {self.epochs()} epochs left; delete"
            f" {self.folder} to run it again"
        )

    def result(self):
        """The test metrics of a finished run: {"map": ..., ...}."""
        return next(record for record in reversed(self.records()) if "map" in record)

    def setting(self):
        """Device, threads and versions that a finished run had last, in words."""
        header = self.records()[0]
        software = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
        return f"{header['device']} ({header['threads']} thread(s)) with {software}"

    def _set_aside(self):
        """Rename what another code, data or command left in the folder."""
        if self.folder.exists():
            aside = first_free(lambda number: self.folder.with_name(f"{self.name}.old{number}"))
            self.folder.rename(aside)
            print(f"{self.folder}: from other code, data, flags or teacher; kept as {aside.name}")

    def _last_epoch(self):
        """The last epoch in the records, of a run that need not be finished; 0 without any."""
        try:
            lines = records_path(self.checkpoint).read_text("utf-8").splitlines()
            return json.loads(lines[-1]).get("epoch", 0)
        except (OSError, *DAMAGE):
            return 0

    def execute(self):
        """Start the run, or resume it where an interrupted one of the same identity lies, or wait
        for another process that is at it. Returns the number of epochs trained here."""
        self.study.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.study.folder / f".{self.name}.lock", self.name) as lock:
            return 0 if self.finished() else self._execute(lock)

    def _execute(self, lock):
        self.study.check_unchanged()
        if self.row.distilled:
            self.teacher.trained()
        identity = self.identity()
        if _read_json(self.folder / "begun.json") != identity:
            self._set_aside()
            self.folder.mkdir()
            with atomic_write(self.folder / "begun.json", "w") as file:
                json.dump(identity, file)
        words, before = self.command(), self._last_epoch()
        if self.checkpoint.exists():
            self._read()
            words = [self.row.script, "--checkpoint", str(self.checkpoint), *self.paths()]
        started = time.perf_counter()
        with open(self.folder / "log.txt", "a", encoding="utf-8") as log:
            status = run_to_its_end([sys.executable, ROOT / words[0], *words[1:]], log, lock)
        if status < 0:
            raise UserError(
                f"{self.name}: killed by signal {-status} (9: often for lack of memory); the same"
                " command goes on with it"
            )
        if status:
            sys.exit(status)  # the command has said why
        self.study.check_unchanged()
        if self.identity() != identity:  # by a study of another --eval_every, say
            raise UserError(
                f"{self.name}: its search or its teacher changed while it was trained; run the"
                " same command again"
            )
        weights = fingerprint_weights(self.trained())
        seconds = time.perf_counter() - started
        done = {"identity": identity, "weights": weights, "seconds": seconds}
        with atomic_write(self.folder / "finished.json", "w") as file:
            json.dump(done, file)
        return self._last_epoch() - before


def _read_json(path):
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, *DAMAGE):
        return None
    return content if isinstance(content, dict) else None


def execute_all(runs):
    """Do the runs that are not finished, telling what runs, what is left and about how long."""
    waiting = [run for run in dict.fromkeys(runs) if not run.finished()]
    for run in waiting:
        run.check()
    seconds = epochs_done = 0  # of the runs done here, to guess how long the rest takes
    for place, run in enumerate(waiting):
        if run.finished():  # its search, finished meanwhile, stands for it
            continue
        guess = ""
        if epochs_done:
            rest = sum(later.epochs() or later.most_epochs() for later in waiting[place:])
            guess = f", about {rest * seconds / epochs_done / 60:.0f} min left"
        print(f"[{place + 1}/{len(waiting)}] {run.name}: {run.epochs()} epochs{guess}", flush=True)
        started = time.perf_counter()
        if trained := run.execute():
            seconds += time.perf_counter() - started
            epochs_done += trained
