"""What two or more files share, and nothing about recommenders: errors, flags, files."""

import argparse
import contextlib
import glob
import hashlib
import itertools
import os
import platform
import shutil
import signal
import stat
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import scipy
import torch

# What using the content of a damaged file may raise.
DAMAGE = (ArithmeticError, AttributeError, LookupError, NameError, RuntimeError, TypeError,
          ValueError)  # fmt: skip


class UserError(Exception):
    """Something the person at the keyboard can mend: printed as one line, exit status 2."""


class Stopped(KeyboardInterrupt):
    """Ctrl-C, SIGTERM or SIGHUP came; ``number`` is the signal's."""

    def __init__(self, number):
        super().__init__(number)
        self.number = number


def run_command(main):
    """Run ``main()`` as a command and exit: a UserError or a failing file is one line, status 2;
    Ctrl-C, SIGTERM and SIGHUP, unless they are ignored (nohup), are a Stopped."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):  # closed, as by >&-
        with contextlib.suppress(OSError):  # keep other files from taking its number
            os.fstat(descriptor) if getattr(sys, name) else os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # none there, or a stand-in
            stream.reconfigure(errors="backslashreplace")
    before = {}

    def stop(number, _):
        for name, handler in before.items():  # a second signal does what it always does
            signal.signal(name, handler)
        raise Stopped(number)

    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)  # Windows has no SIGHUP
        with contextlib.suppress(ValueError):  # only the main thread may
            if number and signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, stop)
    try:
        status = main()
    except KeyboardInterrupt as reason:
        number = getattr(reason, "number", signal.SIGINT)
        status = _complain("interrupted", 128 + number)
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
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    sys.exit(status)


def _complain(message, status=2):
    with contextlib.suppress(OSError):  # a disk that is full takes no complaint
        print(f"{Path(sys.argv[0]).name}: error: {' '.join(str(message).split())}", file=sys.stderr)
        sys.stderr.flush()
    return status


# ---------------------------------------------------------------------------------- flags


class Parser(argparse.ArgumentParser):
    """An argument parser without abbreviations, whose help shows defaults and whose errors are
    one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, formatter_class=_Help, **options)

    def error(self, message):
        raise UserError(f"{' '.join(message.split())} (see --help)")

    def settle(self, args):
        """What all that is parsed becomes; replaced where one flag decides which others there
        are."""
        return args

    def parse_args(self, args=None, namespace=None):
        return self.settle(super().parse_args(args, namespace))

    def parse(self, argv=None):
        """Parse ``argv``; return (values, which are not settled, the set of names given in it)."""
        values = vars(super().parse_args([]))
        unset = object()
        unset_values = argparse.Namespace(**dict.fromkeys(values, unset))
        given = vars(super().parse_args(argv, unset_values))
        given = {name: value for name, value in given.items() if value is not unset}
        return argparse.Namespace(**(values | given)), set(given)


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        # "(default: None)" and the like explain nothing; such flags say what happens in words.
        silent = action.default is None or isinstance(action.default, bool)
        return action.help if silent else super()._get_help_string(action)


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


def device_flag(group):
    """Add the flag for where the network runs."""
    group.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                       help="auto is cuda where there is one, else cpu")  # fmt: skip


def versions():
    """What a run depends on: {"python": version, "torch": ..., "numpy": ..., ...}."""
    modules = {"torch": torch, "numpy": np, "scipy": scipy, "pandas": pd}
    found = {name: str(module.__version__) for name, module in modules.items()}
    return {"python": platform.python_version()} | found


# ---------------------------------------------------------------------------------- files


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a file that appears at ``path`` whole, when the block ends, or not at all."""
    path = Path(os.path.realpath(path))  # replace what a link points at, not the link
    _refuse_what_stays(path)
    temporary = temporary_beside(path)
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # a new one has what the process gives
            os.chmod(temporary, stat.S_IMODE(path.stat().st_mode))
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno is None:  # numpy's
            raise UserError(f"{path}: could not be written; is the disk full? ({error})") from None
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def temporary_beside(path):
    """Where this process writes what is to become ``path``; what killed processes of this machine
    left in its folder is removed."""
    path = Path(path)
    start = f".{path.name}.{platform.node()}."
    for leftover in path.parent.glob(f".*.{glob.escape(platform.node())}.*.tmp"):
        if not _is_running(leftover.name.split(".")[-2]):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)  # another may be at it too
            else:
                leftover.unlink(missing_ok=True)
    return path.with_name(f"{start}{os.getpid()}.tmp")


def _refuse_what_stays(path):
    """UserError for what is not to be replaced: a device or a pipe, or a file without any write
    bit, since whoever took it away, root too, meant it."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise UserError(f"{path}: is no regular file; name another")
    if path.is_file() and not path.stat().st_mode & 0o222:
        raise UserError(f"{path}: is read-only; make it writable (chmod +w) or name another file")


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
    _refuse_what_stays(path)
    probe = temporary_beside(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"{path.parent}: cannot write there ({error.strerror})") from None


def first_free(path_of, second_of=lambda path: path):
    """The first of the paths path_of(1), path_of(2), ... at which, and at whose second path, there
    is nothing."""
    paths = map(path_of, itertools.count(1))
    return next(path for path in paths if not (path.exists() or second_of(path).exists()))


def fingerprint(*arrays):
    """SHA-256, in hex, of the dtypes, shapes and bytes of numpy arrays."""
    digest = hashlib.sha256()
    for array in arrays:
        array = np.ascontiguousarray(array)
        digest.update(f"{array.dtype.str}{array.shape}".encode())
        digest.update(array)
    return digest.hexdigest()
