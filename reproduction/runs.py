"""The training runs behind the paper's tables and figures: what each is, and which are finished.

How many epochs a row gets is chosen once, with the first seed, by MAP on the validation split;
then it is trained on the test split's training rows for as many, and the test rows are read once.
A run is finished where its records say that they are of this run, and hold all its epochs.
"""

import functools
import glob
import json
from dataclasses import dataclass, replace
from pathlib import Path

from baselines import baseline_parser, counted_name
from distillation import check_K, distillation_parser, student_suffix
from recommender import NETWORKS
from reproduction.published import Numbers
from reproduction.rows import METRICS, ROWS, Row, flag_pairs, setting_of, teacher_of
from support.checkpoint import fingerprint_weights, read_checkpoint, records_path
from support.command_line import checkpoint_name, training_parser, weight_flags
from support.data_set import DataSet, find_files
from support.run import commit, data_fingerprints
from utils import DAMAGE, UserError


class Study:
    """The runs of one data set: what they are, which are finished, and what they gave.

    args: ``dataset``, ``seeds``, ``eval_every``, ``results_dir``, ``again`` and ``missing``.
    ml-100k is prepared where it is missing, but for a ``look`` alone, to which nothing is finished
    then.
    """

    def __init__(self, args, look=False):
        self.dataset, self.seeds, self.eval_every = args.dataset, args.seeds, args.eval_every
        self.again, self.missing = args.again, args.missing
        self.published = Numbers.read()
        self.folder = Path(args.results_dir, args.dataset)
        self.has_data = not look or Path("datasets", args.dataset).is_dir()
        self._data = {}

    def data(self, split="test", row=None):
        """The DataSet of a split, with the windows of a row (default: Caser-T)."""
        row = row or ROWS["caser-t"]
        flags = setting_of(self.dataset, row).flags if row.network else ()
        args = parsed(row, (*flags, *row.flags))
        key = split, args.L, args.T
        if key not in self._data:
            self._data[key] = DataSet.load(*find_files(self.dataset, split), args.L, args.T)
        return self._data[key]

    def runs(self, row):
        """The Runs that the row is made of, but for what ``unpublished`` leaves out: its search,
        and a test run a seed."""
        search = filter(None, [self.search(row)])
        return self.unpublished([*search, *self.test_runs(row, map(self.seed, range(self.seeds)))])

    def test_runs(self, row, seeds):
        """A test run of each seed; one alone of a row that only counts."""
        if not row.network:
            return [CountedRun(self, row, "test", "none")]
        return [Run(self, row, "test", seed) for seed in seeds]

    def unpublished(self, runs):
        """``runs``, with ``missing`` those alone that are not published."""
        return [run for run in runs if not (self.missing and self.published.hold(run))]

    def search(self, row):
        """The run that chooses how many epochs the row gets, where it has any."""
        return Run(self, row, "validation", self.seed(0), final=False) if row.network else None

    @staticmethod
    def seed(n):
        """The n-th seed: the authors' 1234, then 1, 2, ..."""
        return n or 1234

    def keep_times(self, lines):
        """Keep what Table 3 has measured, as ``numbers_of`` finds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        Numbers.of_lines(times=lines).write(self.folder, ["times"])

    def finished_runs(self, row):
        """The finished test runs of a row, of all seeds that there are."""
        folders = self.folder.glob(f"{glob.escape(row.name)}-test-seed=*")
        seeds = (folder.name.rpartition("=")[2] for folder in folders)
        numbers = sorted({int(seed) for seed in seeds if seed.isdecimal()}, key=self._place)
        return [run for run in self.test_runs(row, numbers) if run.finished()]

    def _place(self, seed):
        return 0 if seed == self.seed(0) else seed


@functools.cache
def parsed(row, flags):
    """The values that flags (a tuple) of a row's script give; not to be changed."""
    return _parser(row.network, row.method, row.distilled).parse_args(list(flags))


@functools.cache
def _parser(network, method, distilled):
    if method:
        return baseline_parser(method)
    return (distillation_parser if distilled else training_parser)("", network, 1)


@functools.cache
def weights_at(path, modified):
    """The fingerprint of the weights at ``path`` as they were at that time."""
    return fingerprint_weights(read_checkpoint(path, NETWORKS))


@functools.cache
def records_at(path, modified, size):
    """(identity, a dict per epoch) of the records at ``path`` as they were at that time; one of
    DAMAGE where they are not such."""
    identity, *epochs = map(json.loads, path.read_text("utf-8").splitlines())
    if not {"commit", "device", "threads"} <= identity.keys():
        raise ValueError
    identity["versions"].items()
    if [record["epoch"] for record in epochs] != list(range(1, len(epochs) + 1)):
        raise ValueError
    for record in epochs:
        if "map" in record and not all(isinstance(record[name], float) for name in METRICS):
            raise ValueError
    return identity, epochs


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
    def network_name(self):
        """What its records call the network."""
        return self.row.network.name

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

    def needs(self):
        """The runs that have to be finished before this one."""
        search = [self.search] if self.final and not self.epochs() else []
        return search + [self.teacher] * self.row.distilled

    @property
    def folder(self):
        return self.study.folder / self.name

    def most_epochs(self):
        return self.row.most_epochs or setting_of(self.study.dataset, self.row).epochs

    def epochs(self):
        """How many epochs it trains, or None while the search is not finished."""
        if not self.final:
            return self.most_epochs()
        if not self.search.finished():
            return self.study.published.epochs(self) if self.study.missing else None
        scored = [record for record in self.search.records() if "map" in record]
        return max(scored, key=lambda record: record["map"])["epoch"]

    def flags(self):
        """What makes this run, as the words of a command line."""
        epochs = self.epochs()
        words = ["--dataset", self.study.dataset, "--split", self.split]
        words += ["--seed", str(self.seed), "--n_iter", str(epochs) if epochs else "<chosen>"]
        words += [] if self.final else ["--eval_every", str(self.study.eval_every)]
        return [*words, *self.model_flags()]

    def model_flags(self):
        """What makes the row, on this data set."""
        setting = setting_of(self.study.dataset, self.row)
        flags = {"--d": str(setting.d)} | dict(flag_pairs((*setting.flags, *self.row.flags)))
        return [word for pair in flags.items() for word in pair]

    def check(self):
        """UserError where no teacher of the data could give the run its lists."""
        args = parsed(self.row, self.row.flags)
        if "K" in args:  # not every method has lists
            data = self.study.data(self.split, self.row)
            try:
                check_K(args.K, data.train, args.teacher_exclude)
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
        return [self.row.script, *self.flags(), *last_only, *self.paths()]

    @property
    def _data_name(self):
        """What its files are named after, in front."""
        return self.study.dataset + ("-validation" if self.split == "validation" else "")

    @property
    def checkpoint(self):
        row = self.row
        args, suffix = parsed(row, tuple(self.model_flags())), ""
        if row.distilled:
            suffix = student_suffix(args.distillation, row.network, teacher_of(row).network)
        return self.folder / checkpoint_name(self._data_name, row.network, args.d, suffix)

    def is_described_by(self, identity):
        """Whether ``identity``, the first line of some records, describes this run."""
        described = {
            "script": self.row.script,
            "network": self.network_name,
            "flags": weight_flags(parsed(self.row, tuple(self.flags()))),
            "data": data_fingerprints(self.study.data(self.split)),
        }
        if {part: identity.get(part) for part in described} != described:
            return False
        if self.study.again and identity["commit"] != commit():
            return False
        if not self.row.distilled:
            return True
        path = self.teacher.checkpoint
        try:
            return identity["lists"]["teacher"] == weights_at(path, path.stat().st_mtime_ns)
        except (OSError, UserError):  # it can't be told which teacher this was
            return False

    def has_looks(self, epochs):
        """Whether some epochs' records were evaluated where this run evaluates."""
        last = self.epochs()
        every = last if self.final else self.study.eval_every
        looks = [record["epoch"] for record in epochs if "map" in record]
        return looks == [n for n in range(1, len(epochs) + 1) if n % every == 0 or n == last]

    def recorded(self):
        """(identity, a dict per epoch) of the records, of whichever run they are; None where there
        are none. UserError where they are damaged."""
        path = records_path(self.checkpoint)
        if not self.study.has_data or not path.exists():
            return None
        try:
            status = path.stat()
            identity, epochs = records_at(path, status.st_mtime_ns, status.st_size)
            self.is_described_by(identity)
            return identity, epochs
        except (OSError, *DAMAGE):
            raise self._not_as_left(path) from None

    def finished(self):
        """Whether it has been done; by another commit, with --again, does not count."""
        if self.is_its_search():
            return True
        if not self.epochs() or not (found := self.recorded()):
            return False
        identity, epochs = found
        same = len(epochs) == self.epochs() and self.is_described_by(identity)
        return same and self.has_looks(epochs)

    def begun(self):
        """How many epochs an interrupted run has done that can go on here; 0 without one."""
        found = self.recorded()
        if not found or not self.is_described_by(found[0]) or not self.has_looks(found[1]):
            return 0
        data = self.study.data(self.split).identity
        try:
            checkpoint = read_checkpoint(self.checkpoint, NETWORKS)
            same_rows = checkpoint["data"]["fingerprint"] == data["fingerprint"]
        except (UserError, *DAMAGE):
            return 0
        return checkpoint["epoch_num"] if same_rows else 0

    def records(self):
        """A dict per epoch of a finished run."""
        return self.recorded()[1]

    def trained(self):
        """The checkpoint of a finished run, as ``read_checkpoint`` gives it; UserError where it is
        not the one that the run left."""
        try:
            checkpoint = read_checkpoint(self.checkpoint, NETWORKS)
        except UserError as error:
            raise UserError(f"{error}; delete {self.folder} to run it again") from None
        if checkpoint.get("run") != self.recorded()[0] or checkpoint["epoch_num"] != self.epochs():
            raise self._not_as_left(self.checkpoint)
        return checkpoint

    def _not_as_left(self, path):
        return UserError(
            f"{path}: damaged, or not what the run of {self.epochs()} epochs left; delete"
            f" {self.folder} to run it again"
        )

    @property
    def commit(self):
        """The commit that a finished run was done by."""
        return self.recorded()[0]["commit"]


class CountedRun(Run):
    """The run of a row that only counts: without a seed, epochs to choose, or a checkpoint."""

    network_name = property(lambda self: self.row.method)

    @property
    def checkpoint(self):
        """Where its records would have one beside them."""
        stem = counted_name(parsed(self.row, self.row.flags))
        return self.folder / f"{self._data_name}-{stem}.pth.tar"

    def is_its_search(self):
        return False

    def epochs(self):
        return 1

    def flags(self):
        return ["--dataset", self.study.dataset, "--split", self.split, *self.model_flags()]

    def model_flags(self):
        return list(self.row.flags)

    def command(self):
        return [self.row.script, *self.flags(), *self.paths()]
