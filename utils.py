"""What knows nothing of this project: errors, flags, files, random numbers."""

import argparse
import contextlib
import glob
import hashlib
import importlib.util
import itertools
import os
import pickle
import platform
import random
import signal
import sys
import warnings
import zipfile
from pathlib import Path

import numpy as np
import scipy
import torch


class UserError(Exception):
    """Something the person at the keyboard can mend: printed as one line, exit status 2."""


def run_command(main):
    """Run ``main()`` as a command and exit: a UserError or a failing file is one line, status 2."""
    if sys.stdout is None:  # closed, as by >&-
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # none there, or a stand-in
            stream.reconfigure(errors="backslashreplace")
    with contextlib.suppress(ValueError):  # only the main thread may; what it opened is closed
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        status = main()
    except KeyboardInterrupt:
        status = _complain("interrupted", 130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 1
    except UserError as error:
        status = _complain(error)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        status = _complain(f"{place}{error.strerror or error}")
    except MemoryError as error:
        status = _complain(f"out of memory: {error}")
    except RuntimeError as error:
        if "allocate" not in str(error) and "out of memory" not in str(error):
            raise
        status = _complain(f"out of memory: make the model or the batch smaller ({error})")
    sys.exit(status)


def _complain(message, status=2):
    print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
    return status


# ---------------------------------------------------------------------------------- flags


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose help shows defaults and whose errors are
    one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message):
        raise UserError(f"{' '.join(message.split())} (see --help)")

    def parse(self, argv=None):
        """Parse ``argv``; return (values, the set of names given on the command line)."""
        values = vars(self.parse_args([]))
        unset = object()
        given = vars(self.parse_args(argv, argparse.Namespace(**dict.fromkeys(values, unset))))
        given = {name: value for name, value in given.items() if value is not unset}
        return argparse.Namespace(**(values | given)), set(given)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        # "(default: None)" and the like explain nothing; such flags say what happens in words.
        silent = action.default is None or isinstance(action.default, bool)
        return action.help if silent else super()._get_help_string(action)


def boolean(text):
    """The flag value 1/0, true/false, t/f, yes/no, y/n, on/off, in any case, as a bool."""
    word = text.strip().lower()
    if word in {"1", "true", "t", "yes", "y", "on"}:
        return True
    if word in {"0", "false", "f", "no", "n", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false; give true or false")


def in_range(kind, interval):
    """A flag type: a number of ``kind`` (int or float) in ``interval``, such as "[0, 1)"."""
    low, high = (float(bound) for bound in interval[1:-1].split(","))
    noun = "a whole number" if kind is int else "a number"

    def parse(text):
        with contextlib.suppress(ValueError):
            value = kind(text)
            above = value >= low if interval[0] == "[" else value > low
            below = value <= high if interval[-1] == "]" else value < high
            if above and below:  # never true of NaN
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {noun} in {interval}")

    return parse


def numeric_flag(group, name, default, kind, interval, help, *other_names):
    """Add a flag for a number, its range in the help and in the refusal of what is outside."""
    group.add_argument(
        name,
        *other_names,
        default=default,
        type=in_range(kind, interval),
        metavar="N" if kind is int else "X",
        help=f"{help}; in {interval}",
    )


def path_flag(group, name, help, default=None, metavar="FILE"):
    """Add a flag for a path, which is not empty."""

    def parse(text):
        if not text:
            raise argparse.ArgumentTypeError("is empty; give a name or leave the flag out")
        return text

    group.add_argument(name, default=default, type=parse, metavar=metavar, help=help)


def pick_device(name):
    """The torch.device called ``name``; "auto" is CUDA where there is one, else the CPU."""
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if name == "auto":
        name = "cuda" if there["cuda"] else "cpu"
    if not there[name]:
        raise UserError(f"--device {name}: this machine or this torch has none; use --device cpu")
    return torch.device(name)


def saved_flags(settings, names):
    """Settings of an earlier run as the command line that gives them again, for ``names``."""
    return [
        f"--{name}={settings[name]}"
        for name in sorted(settings.keys() & names)
        if settings[name] is not None
    ]


def versions():
    """What a run depends on: {"python": ..., "torch": ..., "numpy": ..., "scipy": ...}."""
    modules = {"torch": torch, "numpy": np, "scipy": scipy}
    found = {name: module.__version__ for name, module in modules.items()}
    return {"python": platform.python_version()} | found


# ---------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a file that appears at ``path`` whole, when the block ends, or not at all."""
    path = Path(os.path.realpath(path))  # replace what a link points at, not the link
    temporary = _temporary(path, os.getpid())
    for left in path.parent.glob(_temporary(glob.escape(path.name), "*").name):
        if not _is_running(left.name.split(".")[-2]):  # of a process that was killed
            left.unlink(missing_ok=True)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not error.filename:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def _temporary(path, pid):
    """Where process ``pid`` of this machine writes what is to become ``path``."""
    path = Path(path)
    return path.with_name(f".{path.name}.{platform.node()}.{pid}.tmp")


def _is_running(pid):
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, ValueError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def sync_folder(folder):
    """Make a rename inside ``folder`` outlast a power cut (where the system can)."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def require_writable(path):
    """Make the folder of ``path`` and try a write there, so that the failure comes early."""
    path = Path(os.path.realpath(path))
    if path.is_dir():
        raise UserError(f"{path}: is a folder, and a file is to be written there; remove it")
    probe = _temporary(path, os.getpid())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write there ({error.strerror})") from None


def first_free(path_of):
    """The first of the paths path_of(1), path_of(2), ... at which there is nothing."""
    return next(path for path in map(path_of, itertools.count(1)) if not path.exists())


def load_tensors(path):
    """``torch.load`` of tensors and plain values only, onto the CPU; runs no code of the file.

    Raises UserError where the file is missing, truncated, holds anything else or claims to
    unpack to more than it is.
    """
    if os.path.isdir(path):
        raise UserError(f"{path}: is a folder; name the checkpoint in it")
    try:
        open(path, "rb").close()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch stores its records uncompressed
                if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                    raise ValueError("its records are compressed")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on old or odd pickles, which are then refused
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler says of bytes that are not its own
        if isinstance(error, pickle.UnpicklingError):  # its text speaks to programmers
            reason = "it holds something else than tensors and plain values"
        else:
            reason = str(error).strip().split("\n")[0][:120]
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({reason})") from None


def fingerprint(*arrays):
    """SHA-256, in hex, of the dtypes, shapes and bytes of numpy arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()


# -------------------------------------------------------------- random numbers, optimizers


def set_seed(seed):
    """Seed every generator in use: Python's, numpy's and torch's, on all devices."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def random_state(device):
    """The states of every generator that training on ``device`` draws from, as tensors."""
    state = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state, device):
    """Undo what was drawn since ``random_state(device)`` gave ``state``."""
    torch.set_rng_state(state["cpu"])
    if device.type in state and device.type != "cpu":
        getattr(torch, device.type).set_rng_state(state[device.type])


def restore_adam(optimizer, saved):
    """Take the moments out of a saved state dict of Adam's, an old torch's too; the settings stay
    those of ``optimizer``. Raises LookupError, TypeError or ValueError where they do not fit."""
    own = optimizer.state_dict()
    old_names, new_names = saved["param_groups"][0]["params"], own["param_groups"][0]["params"]
    own["state"] = {
        new: {key: saved["state"][old][key] for key in ("step", "exp_avg", "exp_avg_sq")}
        for new, old in zip(new_names, old_names, strict=True)
        if old in saved["state"]
    }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for new, parameter in zip(new_names, parameters, strict=True):
        for moment in ("exp_avg", "exp_avg_sq") if new in own["state"] else ():
            if own["state"][new][moment].shape != parameter.shape:
                raise ValueError("a moment of its optimizer does not fit its weight")
    optimizer.load_state_dict(own)
    for state in optimizer.state.values():
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if not (mean.isfinite().all() and (square >= 0).all() and state["step"] >= 0):
            raise ValueError("a moment of its optimizer is damaged")


class ComplementSampler:
    """Draws uniformly, with replacement, from 1..n without the elements of a row's set.

    With a row's elements s_0 < s_1 < ..., the number of integers outside the set and below s_j
    is s_j - 1 - j. The r-th integer outside, from 0, is therefore r + 1 + #{j: s_j - 1 - j <= r},
    and that count is one binary search in the sets of all rows, laid end to end. Memory grows
    with the elements, not with rows times n.

    Parameters
    ----------
    sets: a scipy CSR matrix (rows, at least n + 1) whose sorted indices, from 1 on, are the sets.
    n: the largest integer. device: where the draws are made.

    Attributes
    ----------
    counts: (rows,) int64 tensor, how many integers are outside each set.
    """

    def __init__(self, sets, n, device):
        starts = sets.indptr[:-1].astype(np.int64)
        lengths = np.diff(sets.indptr).astype(np.int64)
        nth = np.arange(sets.nnz) - np.repeat(starts, lengths)
        row = np.repeat(np.arange(len(lengths)), lengths)
        self.n = n
        self._keys = torch.from_numpy(row * (n + 1) + (sets.indices - 1 - nth)).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self.counts = torch.from_numpy(n - lengths).to(device)

    def draw(self, rows, size):
        """Return (B, size) int64 for rows (B,) int64, none of which has everything in its set.

        Every integer's chance is 1 / counts[row] to within n / 2^63 (63 random bits, modulo).
        """
        rows = rows[:, None]
        rank = torch.empty(len(rows), size, dtype=torch.int64, device=rows.device).random_()
        rank = rank.remainder_(self.counts[rows])
        below = torch.searchsorted(self._keys, rows * (self.n + 1) + rank, right=True)
        return rank + 1 + below - self._starts[rows]


# ------------------------------------------------------------------------------ TensorBoard


def tensorboard_folder(text):
    """A flag type: a folder for TensorBoard, whose package must be there."""
    if not importlib.util.find_spec("tensorboard"):
        raise argparse.ArgumentTypeError("needs TensorBoard: pip install tensorboard")
    return text


@contextlib.contextmanager
def tensorboard_log(folder, first_epoch):
    """Give a function that writes the numbers of {"epoch": n, name: number} for TensorBoard.

    What an earlier run left in the folder from ``first_epoch`` on is hidden. Without a folder,
    gives None.
    """
    if folder is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    with SummaryWriter(folder, purge_step=first_epoch) as writer:

        def log(record):
            for name in record.keys() - {"epoch"}:
                writer.add_scalar(name.replace("@", "_at_"), record[name], record["epoch"])
            writer.flush()

        yield log


# -------------------------------------------------------------------------------- signals


class StopRequest:
    """Turns Ctrl-C, SIGTERM and SIGHUP, unless that is ignored (nohup), inside a ``with`` block
    into ``signal_number``; the block itself decides when to stop. A second signal does what it
    always does."""

    def __enter__(self):
        self.signal_number = None
        self._handlers = {}
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
            numbers.append(signal.SIGHUP)  # which Windows has not
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            for number in numbers:
                self._handlers[number] = signal.signal(number, self._receive)
        return self

    def _receive(self, number, frame):
        self.signal_number = number
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers = {}
