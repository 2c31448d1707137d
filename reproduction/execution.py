"""Doing the runs behind the tables: several at once, each after those that it needs."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import time

import torch
from tqdm import tqdm

from support.checkpoint import records_path
from support.processes import Busy, locked, stopped_together
from support.run import ROOT
from utils import UserError, first_free

LOOK_SECONDS = 0.3  # between two looks at the runs that go on


def in_order(runs):
    """``runs`` and those that they need, each once, in an order in which they can be done."""
    ordered = {}

    def add(run):
        for needed in run.needs():
            add(needed)
        ordered.setdefault(run)

    for run in runs:
        add(run)
    return list(ordered)


def execute_all(runs, jobs=1):
    """Do the runs that are not finished, ``jobs`` at once, telling how far each is.

    Raises UserError where one fails. The others are stopped then, as all are where this process
    is; the same call goes on with them.
    """
    waiting = [run for run in in_order(runs) if not run.finished()]
    for run in waiting:
        run.check()
    count, free, going = Countdown(waiting), list(range(jobs)), []
    with contextlib.ExitStack() as files, stopped_together() as processes:
        while waiting or going:
            begun = begin_next(waiting, free[0], jobs, count) if free else None
            if begun:
                free.remove(begun.slot)
                files.push(begun.files)
                going.append(begun)
                processes.append(begun.process)
            else:
                time.sleep(LOOK_SECONDS)
            for execution in going:
                execution.show()
            for ended in [one for one in going if one.process.poll() is not None]:
                processes.remove(ended.process)
                going.remove(ended)
                free.append(ended.slot)
                count.epochs_done += ended.finish()


def begin_next(waiting, slot, jobs, count):
    """Begin the first run of ``waiting`` that can be, taking it out of there; None without one."""
    for run in list(waiting):
        if run.finished():  # by another process, or its search stands for it
            waiting.remove(run)
        elif all(needed.finished() for needed in run.needs()):
            try:
                begun = Execution(run, slot, jobs, count.line(run, waiting))
            except Busy as busy:
                tell_once(f"{run.name}: {busy.holder} is at it; waiting")
                continue
            waiting.remove(run)
            return begun
    return None


def tell(line):
    """Print a line, above the lines of the runs on a terminal."""
    tqdm.write(line)
    sys.stdout.flush()


tell_once = functools.cache(tell)


class Countdown:
    """How many runs are left, and about how long they take."""

    def __init__(self, runs):
        self.total, self.epochs_done, self.started = len(runs), 0, time.perf_counter()

    def line(self, run, waiting):
        """What is said when one of those ``waiting`` begins."""
        place = self.total - len(waiting) + 1
        epochs = run.epochs()
        line = f"[{place}/{self.total}] {run.name}: {epochs} epoch{'s' * (epochs > 1)}"
        if self.epochs_done:
            epochs = sum(later.epochs() or later.most_epochs() for later in waiting)
            pace = (time.perf_counter() - self.started) / self.epochs_done
            line += f", about {epochs * pace / 60:.0f} min left"
        return line


class Execution:
    """A run that goes on: its process, its lock, and its line on a terminal.

    run: the Run, which is not finished. slot: which of the ``jobs`` at once it is. line: what is
    said of it. Raises Busy where another process is at the run.
    """

    def __init__(self, run, slot, jobs, line):
        self.run, self.slot = run, slot
        run.study.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as files:
            lock = files.enter_context(locked(run.study.folder / f".{run.name}.lock", run.name))
            if run.row.distilled:
                run.teacher.trained()  # or is said to be damaged
            tell(line)
            words, self.begun = self._command()
            run.folder.mkdir(exist_ok=True)
            log = files.enter_context(open(self.log, "a", encoding="utf-8"))
            self.started = time.perf_counter()
            self.process = start(words, log, lock, environment(slot, jobs))
            self.bar = files.enter_context(
                tqdm(desc=run.name, total=run.epochs(), initial=self.begun, position=slot,
                     unit="epoch", leave=False, disable=None)
            )  # fmt: skip
            self.files = files.pop_all()  # to be closed when the process ends

    @property
    def log(self):
        """The file that holds what the run's command says."""
        return self.run.folder / "log.txt"

    def _command(self):
        """The words of the command, and how many epochs an interrupted run had done; what lies
        there of another run is moved aside."""
        run = self.run
        begun = run.begun()
        if 0 < begun <= run.epochs():
            words = [run.row.script, "--checkpoint", str(run.checkpoint), *run.paths(),
                     "--n_iter", str(run.epochs())]  # fmt: skip
            return words, begun
        if run.checkpoint.exists() or records_path(run.checkpoint).exists():
            aside = first_free(lambda number: run.folder.with_name(f"{run.name}.old{number}"))
            run.folder.rename(aside)
            tell(f"{run.folder}: not of this run as it is now; kept as {aside.name}")
        return run.command(), 0

    def show(self):
        """Bring its line on a terminal up to date."""
        if self.bar.disable:
            return
        epochs, best = progress(records_path(self.run.checkpoint))
        self.bar.n = max(epochs, self.begun)
        self.bar.set_postfix_str("" if best is None else f"MAP {best:.4f}")

    def finish(self):
        """What follows the end of its process; returns how many epochs it trained here."""
        run, status = self.run, self.process.returncode
        self.files.close()
        if status < 0:
            raise UserError(
                f"{run.name}: killed by signal {-status} (9: often for lack of memory); the same"
                " command goes on with it"
            )
        if status:
            said = self.log.read_text("utf-8", errors="replace").splitlines() or [""]
            raise UserError(f"{run.name}: {said[-1].partition(': error: ')[2] or said[-1]}")
        if not run.finished():
            raise UserError(
                f"{run.name}: data, search or teacher changed while it was trained; run the same"
                " command again"
            )
        best = progress(records_path(run.checkpoint))[1]
        seconds = time.perf_counter() - self.started
        tell(f"{run.name}: MAP {best:.4f}, after {seconds:.0f} s")
        return run.epochs() - self.begun


def start(words, log, lock, environment):
    """Start a training script, which says what it says to ``log``; returns its process."""
    command = [sys.executable, ROOT / words[0], *words[1:]]
    return subprocess.Popen(command, stdout=log, stderr=log, pass_fds=lock, env=environment)


def environment(slot, jobs):
    """The environment of one of ``jobs`` processes at once: its share of the threads, and its
    GPU where there are several."""
    shared = dict(os.environ)
    if jobs > 1:
        shared["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // jobs))
        gpus = torch.cuda.device_count()
        if gpus > 1:
            named = os.environ.get("CUDA_VISIBLE_DEVICES")
            names = named.split(",") if named else list(range(gpus))
            shared["CUDA_VISIBLE_DEVICES"] = str(names[slot % gpus])
    return shared


def progress(path):
    """(epochs done, the best MAP so far or None) of the records at ``path``, as they grow."""
    epochs, best = 0, None
    with contextlib.suppress(OSError, ValueError, TypeError):
        for line in path.read_text("utf-8").splitlines():
            record = json.loads(line)
            epochs = record.get("epoch", epochs)
            if "map" in record:
                best = max(record["map"], best or 0)
    return epochs, best
