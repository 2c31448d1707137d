"""Other processes: keeping them apart, and running one to its end."""

import contextlib
import subprocess

try:
    import fcntl
except ImportError:  # on Windows, where two studies at once are not kept apart
    fcntl = None


@contextlib.contextmanager
def locked(path, what):
    """Keep other processes out of ``what`` inside a ``with`` block, after waiting for one that is
    there. Gives the descriptors that a child has to inherit to go on keeping them out."""
    if fcntl is None:
        yield ()
        return
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"{what}: another process is at it; waiting for that", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            pass
        yield (file.fileno(),)


def run_to_its_end(command, stdout, descriptors=()):
    """Run a command and return its exit status; where this process is stopped meanwhile, the
    command is asked to stop as well, and gets the time to save."""
    process = subprocess.Popen(command, stdout=stdout, pass_fds=descriptors)
    try:
        return process.wait()
    except BaseException as reason:
        if not isinstance(reason, KeyboardInterrupt):  # which the terminal sends to both
            process.terminate()
        process.wait()
        raise
