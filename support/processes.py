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


@contextlib.contextmanager
def locked(path, what, wait=True):
    """Keep other processes out of ``what`` inside a ``with`` block, by a lock on the file ``path``.

    wait: whether to wait for a process that is there; else it is named in a UserError. Gives the
    descriptors that a child has to inherit to go on keeping others out; says so where the system
    has no locks.
    """
    file = _locked_file(path, what, wait)
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


def _locked_file(path, what, wait):
    """The open file ``path`` with a lock on it; None where there are no locks."""
    while fcntl:
        file = open(path, "a+")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read() or "another process"
            if not wait:
                raise UserError(
                    f"{what}: {holder} is writing it; let that end first, or use another"
                    " --output_dir"
                ) from None
            print(f"{what}: {holder} is at it; waiting for that", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:
            return None
        with contextlib.suppress(OSError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # who had it has removed it
    return None


def run_to_its_end(command, stdout, descriptors=()):
    """Run a command and return its exit status; where this process is stopped meanwhile, the
    command is asked to stop as well, and gets the time to."""
    process = subprocess.Popen(command, stdout=stdout, pass_fds=descriptors)
    try:
        return process.wait()
    except BaseException as reason:
        if getattr(reason, "number", None) == signal.SIGINT:  # which a terminal sends to both
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=5)
        process.terminate()
        process.wait()
        raise
