"""Several processes at one run, as torchrun starts them; without torchrun, this one alone."""

import contextlib
import os
import sys
from datetime import timedelta

import torch
import torch.distributed as dist

from utils import UserError

PATIENCE = timedelta(days=1)  # with a process that reads, saves or evaluates for the others


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
    return ["torchrun", f"--nproc_per_node={os.environ['LOCAL_WORLD_SIZE']}", "--"]


@contextlib.contextmanager
def one_run():
    """Within, of several processes the first alone prints, and the one that fails first says why;
    the others end quietly."""
    number, count = launched()
    with open(os.devnull, "w") as nowhere, contextlib.ExitStack() as stack:
        if number:
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            yield
        except Exception:
            if count > 1 and not _fails_first():
                sys.exit(1)
            raise
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _fails_first():
    """Whether no other process has asked this; True as well where there is nobody to ask."""
    try:
        store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]),
                              is_master=False, timeout=timedelta(seconds=10))  # fmt: skip
        return store.add(f"failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT')}", 1) == 1
    except RuntimeError:
        return True


def join(device):
    """Meet the other processes, each on a device of its own; UserError where there is none."""
    if launched()[1] == 1:
        return
    if device == "cuda":
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            raise UserError(f"torchrun: process {local + 1} of this machine has no GPU; start as"
                            f" many as there are, --nproc_per_node={there}")  # fmt: skip
        torch.cuda.set_device(local)
    elif device != "cpu":
        raise UserError(f"--device {device}: several processes need cpu or cuda")
    with _peers():
        dist.init_process_group("nccl" if device == "cuda" else "gloo", timeout=PATIENCE)


@contextlib.contextmanager
def _peers():
    """Turn what torch says where another process is gone into a UserError."""
    try:
        yield
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"another process of this run is gone, see torchrun's report; go on with --checkpoint"
            f" ({reason})"
        ) from None


def _place():
    """(number, how many) of the processes that have met."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


# ------------------------------------------------------------------- what is shared


def own_share(batch):
    """This process's part of a tensor's rows, which may be empty."""
    number, count = _place()
    return batch.tensor_split(count)[number]


def dealt(parts, do):
    """Yield do(part) of each of a list's parts, in their order. Of n processes each does every
    n-th, and gets what the others made of theirs."""
    number, count = _place()
    for first in range(0, len(parts), count):
        turn = parts[first : first + count]
        done = do(turn[number]) if number < len(turn) else None
        if count == 1:
            yield done
            continue
        of_all = [None] * count
        with _peers():
            dist.all_gather_object(of_all, done)
        yield from of_all[: len(turn)]


def sum_over_processes(tensor):
    """Replace a tensor by its sum over the processes; returns it."""
    if _place()[1] > 1:
        with _peers():
            dist.all_reduce(tensor)
    return tensor


def sum_gradients(parameters):
    """Replace the gradients of a list of parameters by their sums over the processes."""
    if _place()[1] == 1:
        return
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    flat = sum_over_processes(torch.cat([gradient.flatten() for gradient in gradients]))
    parts = flat.split([p.numel() for p in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)


@torch.no_grad()
def copy_from_first(tensors):
    """Give every process the first one's values, in place."""
    for tensor in tensors if _place()[1] > 1 else ():
        with _peers():
            dist.broadcast(tensor, 0)
