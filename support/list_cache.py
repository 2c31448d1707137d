"""The teacher's lists on disk: used again only where they were made from the same things."""

import json
import os
import time
from pathlib import Path

import numpy as np

from interactions import PADDING
from support.torchrun import is_first, of_all
from utils import DAMAGE, UserError, atomic_write, fingerprint, require_writable


def load_or_build_lists(path, named, made_from, shape, num_items, build):
    """The cached lists at ``path``, or those that ``build()`` gives, written there.

    named: whether the person named the path. A file there is then refused unless it was made
    from the same things, and never overwritten; the authors' bare .npy is accepted. At the
    default path a stale one is rebuilt. Returns (lists, made_from).
    """
    cached = None
    if path.exists():
        try:
            cached = _read_cache(path, made_from, shape, num_items, bare_allowed=named)
        except UserError as error:
            if named:
                raise
            print(f"{error}; rebuilding it", flush=True)
    if all(of_all(cached is not None)):  # of several processes, none has seen another state
        return cached
    description = _description(path)
    require_writable(path)
    require_writable(description)
    if named and description.exists():
        _read_description(description)  # not to overwrite what is somebody else's
    started = time.perf_counter()
    lists = build()
    if not is_first():  # of several processes, the one that writes
        return lists, made_from
    told = {"content": fingerprint(lists), "seconds": round(time.perf_counter() - started, 4)}
    # The description goes first: lists without one could pass for the authors'.
    with atomic_write(description, "w") as file:
        json.dump(made_from | told, file, indent=1)
    with atomic_write(path) as file:
        np.save(file, lists)
    print(f"saved the teacher's top-{shape[1]} lists in {path}", flush=True)
    return lists, made_from


def is_bare(path):
    """Whether there are lists at ``path`` of which nothing tells what they were made from."""
    return os.path.exists(path) and not _description(path).exists()


def _description(path):
    """Where it says what the lists at ``path`` were made from."""
    return Path(f"{path}.json")


def making_seconds(path):
    """How long the lists at ``path`` took to make; None where that is not told."""
    return json.loads(_description(path).read_text("utf-8")).get("seconds")


def _read_description(description):
    try:
        made_from = json.loads(description.read_text("utf-8"))
        made_from.pop("seconds", None)
        return made_from, made_from.pop("content")
    except (OSError, *DAMAGE):
        raise UserError(f"{description}: tells of no top-K lists; move it away") from None


def _read_cache(path, made_from, shape, num_items, bare_allowed):
    try:
        # Copy-on-write: pages are read when they are used, and torch takes no read-only array.
        lists = np.lib.format.open_memmap(path, mode="c")
    except Exception:  # whatever numpy's parser says of bytes that are no header
        raise UserError(f"{path}: not a top-K cache (.npy of integers), or a damaged one") from None
    if lists.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {lists.dtype}, not integers; not a top-K cache")
    if lists.shape != shape:
        raise UserError(f"{path}: its shape is {lists.shape}, this data and K need {shape}")
    if lists.size and not (lists.min() >= 0 and lists.max() < num_items):
        raise UserError(f"{path}: holds items outside 0..{num_items - 1}; made from other data")
    description = _description(path)
    if not description.exists() and bare_allowed:
        padded = int((lists == PADDING).any(1).sum())
        print(
            f"note: {path}: nothing tells what it was made from; only its shape and item range were"
            f" checked. {padded} of its lists hold padding, which gets weight 0"
        )
        return lists.astype(np.int32), {"content": fingerprint(lists)}
    theirs, content = _read_description(description)
    if difference := _difference(theirs, made_from):
        raise UserError(f"{path}: made with {difference}")
    if content != fingerprint(lists):
        raise UserError(f"{path}: not the lists that {description.name} describes")
    return lists, made_from


def _difference(theirs, ours):
    """The first thing that differs between what two lists were made from, in words, or None.

    The teacher's weights tell it; its run, which an older version did not keep, is for readers.
    """
    theirs, ours = (
        {key: value for key, value in x.items() if key not in {"teacher_run", "teacher_epochs"}}
        for x in (theirs, ours)
    )
    if theirs.keys() != ours.keys():
        return "lists of another origin than this run's"
    for key, value in ours.items():
        if theirs[key] != value:
            if key in {"teacher", "data", "content"}:  # hashes say nothing to a reader
                return f"another {key} than this run's"
            return f"{key} {theirs[key]}, this run has {value}"
    return None


def require_same_lists(checkpoint, made_from):
    """UserError where a student to resume began with other lists than ``made_from`` tells."""
    theirs = checkpoint.get("run", {}).get("lists") or checkpoint.get("made_from")
    if theirs is None:
        print(f"note: {checkpoint['path']}: does not tell which lists it learned from")
    elif difference := _difference(theirs, made_from):
        raise UserError(
            f"{checkpoint['path']}: began with {difference}; name the files it began with by"
            " --teacher_model_path and --teacher_topk_path"
        )
