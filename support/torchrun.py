"""Several processes at one run, as torchrun starts them; without torchrun, this one alone."""

import contextlib
import functools
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils import UserError

PATIENCE = timedelta(hours=2)  # with a process that reads, saves or evaluates for the others


def launched():
    """(the number of this process, from 0, and how many there are), by torchrun; else (0, 1)."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return 0, 1
    return int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def is_first():
    """Whether this is the process that prints and writes."""
    return launched()[0] == 0


def launcher():
    """The words of a command line that stand before the script."""
    if launched()[1] == 1:
        return ["python"]
    hosts, local = (os.environ.get(f"{of}_WORLD_SIZE", "1") for of in ("GROUP", "LOCAL"))
    several = [f"--nnodes={hosts}"] * (hosts != "1")
    return ["torchrun", *several, f"--nproc_per_node={local}", "--"]


def one_run(command):
    """Make a function that gives an exit status one of a run of several processes: the first alone
    prints, the one that fails first says why, and the others end quietly."""

    @functools.wraps(command)
    def run(*arguments, **options):
        number, count = launched()
        if count == 1:
            return command(*arguments, **options)
        with open(os.devnull, "w") as nowhere:
            try:
                with contextlib.redirect_stdout(nowhere if number else sys.stdout):
                    status = command(*arguments, **options)
            except (Exception, SystemExit) as error:
                if getattr(error, "code", 1) and not _fails_first():  # --help exits with 0
                    sys.exit(1)
                raise
        if status == 0 and place()[1] > 1:
            dist.destroy_process_group()
        return status

    return run


@functools.cache
def _fails_first():
    """Whether no other process has asked this; True as well where there is nobody to ask."""
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                              is_master=False, timeout=timedelta(seconds=10))  # fmt: skip
        return store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:
        return True


@one_run
def refuse_several():
    """UserError where torchrun has started what is for one process."""
    if launched()[1] > 1:
        raise UserError("is for one process; start it with python, without torchrun")
    return 0


def join(device):
    """Meet the other processes, each on a device of its own; UserError where there is none."""
    if launched()[1] == 1 or place()[1] > 1:
        return
    if device == "cuda":
        wanted, there = int(os.environ["LOCAL_WORLD_SIZE"]), torch.cuda.device_count()
        if wanted > there:
            raise UserError(f"torchrun: {wanted} processes on a machine with {there} GPU(s); each"
                            f" needs one: --nproc_per_node={there}")  # fmt: skip
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    elif device != "cpu":
        raise UserError(f"--device {device}: several processes need cpu or cuda")
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise UserError(f"torchrun: the processes can't meet ({_short(error)})") from None


def place():
    """(the number of this process, how many there are) of those that have met by ``join``."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


@contextlib.contextmanager
def _peers():
    """Turn what torch says where another process is gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError("another process of this run is gone, see torchrun's report; go on with"
                        f" --checkpoint ({_short(error)})") from None  # fmt: skip


def _short(error):
    return " ".join(str(error).split())[:200]


# ------------------------------------------------------------------- what is shared


def own_share(batch):
    """This process's part of a tensor's rows, which may be empty."""
    number, count = place()
    return batch.tensor_split(count)[number]


def of_all(value):
    """The plain values of all processes, a list."""
    values = [value] * place()[1]
    if len(values) > 1:
        with _peers():
            dist.all_gather_object(values, value)
    return values


def dealt(parts, do):
    """Yield do(part) of each of a list's parts, in their order. Of n processes each does every
    n-th, and gets what the others made of theirs."""
    number, count = place()
    for first in range(0, len(parts), count):
        turn = parts[first : first + count]
        yield from of_all(do(turn[number]) if number < len(turn) else None)[: len(turn)]


def by_first(do):
    """What ``do()`` gives in the first process, for all."""
    return next(dealt([None], lambda _: do()))


def require_alike(what, value):
    """UserError where the processes do not have the same value."""
    if any(other != value for other in of_all(value)):
        raise UserError(f"{what}: changed while the processes of this run read it, or is not the"
                        " same on all hosts; start again")  # fmt: skip


def sum_over_processes(tensor):
    """Replace a tensor by its sum over the processes; returns it."""
    if place()[1] > 1:
        with _peers():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters):
    """Replace the gradients of some parameters by their sums over the processes."""
    if place()[1] == 1:
        return
    parameters = list(parameters)
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = sum_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


@torch.no_grad()
def copy_from_first(tensors):
    """Give every process the first one's values, in place."""
    for tensor in tensors if place()[1] > 1 else ():
        with _peers():
            dist.broadcast(tensor, 0)
