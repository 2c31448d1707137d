"""Other processes: keeping them apart, and running one to its end."""

import contextlib
import os
import platform
import signal
import subprocess

from utils import UserError

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


class Busy(UserError):
    """Another process, ``holder`` in words, is at what was to be kept to this one."""

    def __init__(self, what, holder):
        super().__init__(
            f"{what}: {holder} is writing it; let that end first, or use another --output_dir"
        )
        self.holder = holder


@contextlib.contextmanager
def locked(path, what):
    """Keep other processes out of ``what`` inside a ``with`` block, by a lock on the file ``path``.

    Gives the descriptors that a child has to inherit to go on keeping others out; says so where
    the system has no locks. Raises Busy, naming who holds it, where another process has it.
    """
    file = _locked_file(path, what)
    if file is None:
        print(f"note: this file system has no locks; nothing keeps a second run from {what}")
        yield ()
        return
    with file:
        file.truncate(0)
        file.write(f"process {os.getpid()} of {platform.node()}")
        file.flush()
        try:
            yield (file.fileno(),)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)


def _locked_file(path, what):
    """The open file ``path`` with a lock on it; None where there are no locks."""
    while fcntl:
        file = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            file.close()
            raise Busy(what, holder) from None
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # who had it has removed it
    return None


@contextlib.contextmanager
def stopped_together():
    """Gives a list for the processes of a ``with`` block; where an exception leaves the block,
    those in it are asked to stop, and get the time to."""
    processes = []
    try:
        yield processes
    except BaseException as reason:
        if getattr(reason, "number", None) == signal.SIGINT:  # which a terminal sends to all
            for process in processes:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=5)
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
        raise
