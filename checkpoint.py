"""Checkpoints: writing them and their records, and reading this project's and the authors'.

What is in them: checkpoints/README.md.
"""

import json
from pathlib import Path

import torch

from caser import Caser
from utils import UserError, atomic_write, fingerprint, load_tensors, versions

CHECKPOINT_KINDS = {
    dict: ("state_dict", "optimizer", "architecture", "config", "data", "metrics", "made_from",
           "epoch_random", "step_random"),
    int: ("epoch_num", "step"), float: ("step_seconds",), str: ("script",), list: ("records",),
    torch.Tensor: ("step_losses",),
}  # fmt: skip


def read_checkpoint(path):
    """A checkpoint of this project's or of the authors' as a dict, without running its code.

    Its ``path``, ``num_users`` and ``num_items`` are added; its ``architecture`` holds what the
    weights' shapes tell, and drop, ac_conv and ac_fc where the file has them (the authors' has
    not, nor ``script`` and ``data``). Raises UserError where it is no checkpoint.
    """
    checkpoint = load_tensors(path)
    try:
        return checkpoint | _verified(checkpoint) | {"path": str(path)}
    except (LookupError, ValueError, TypeError, AttributeError, RuntimeError, NameError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: no checkpoint of this project's or of the authors' ({reason})"
        ) from None


def _verified(checkpoint):
    """The parts of a checkpoint that others rely on; some error where they are not as expected."""
    for key in ("state_dict", "epoch_num", "optimizer"):
        if key not in checkpoint:
            raise ValueError(f"it has no {key}")
    for kind, keys in CHECKPOINT_KINDS.items():
        for key in checkpoint.keys() & keys:
            if not isinstance(checkpoint[key], kind):
                raise ValueError(f"its {key} is no {kind.__name__}")
    if checkpoint["epoch_num"] < 0:
        raise ValueError("its epoch_num is negative")
    config = checkpoint.get("config")
    if config is None:  # the authors': what its optimizer tells of the flags
        group = checkpoint["optimizer"]["param_groups"][0]
        config = {"learning_rate": float(group["lr"]), "l2": float(group["weight_decay"])}
    flat = [config, *(checkpoint.get(key, {}) for key in ("data", "made_from", "metrics"))]
    for values in (*flat, *checkpoint.get("records", [])):
        if not all(isinstance(value, str | int | float | None) for value in values.values()):
            raise ValueError("it holds more than plain values")

    for name in ("dataset", "split", "train_root", "test_root"):
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"its {name} is no text")

    weights = {name: value.detach() for name, value in checkpoint["state_dict"].items()}
    for value in weights.values():
        if value.dtype != torch.float32 or value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError("its weights are no plain float32")
    saved = checkpoint.get("architecture", {})
    saved = {name: saved[name] for name in ("drop", "ac_conv", "ac_fc") if name in saved}
    architecture = Caser.architecture_of(weights) | saved
    if architecture["L"] < 1 or architecture["d"] < 1:
        raise ValueError("its weights are empty")
    sizes = [len(weights[f"{table}_embeddings.weight"]) for table in ("user", "item")]
    with torch.device("meta"):  # shapes without memory
        shapes = {name: v.shape for name, v in Caser(*sizes, **architecture).state_dict().items()}
    known = {name: v.shape for name, v in weights.items() if name in shapes}
    if any(shapes[name] != shape for name, shape in known.items()):
        raise ValueError("the shapes of its weights do not fit together")
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError("its weights are not finite")
    return {
        "config": config,
        "state_dict": weights,
        "architecture": architecture,
        "num_users": sizes[0],
        "num_items": sizes[1],
    }


def fingerprint_weights(checkpoint):
    """What tells the weights of a checkpoint, as ``read_checkpoint`` gives it, from others."""
    return fingerprint(*(value.numpy() for value in checkpoint["state_dict"].values()))


def load_weights(net, checkpoint):
    """Put the checkpoint's weights into ``net``; UserError where they do not fit."""
    try:
        net.load_state_dict(checkpoint["state_dict"], strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{checkpoint['path']}: its weights do not fit: {reason}") from None


def restore_network(checkpoint, settings=None):
    """The Caser of a checkpoint; what its file does not tell comes from ``settings``."""
    sizes = checkpoint["num_users"], checkpoint["num_items"]
    net = Caser(*sizes, **(settings or {}) | checkpoint["architecture"])
    load_weights(net, checkpoint)
    return net


def save_run(path, model, args, data):
    """Write the records and then the checkpoint ``path``, each of them atomically.

    In that order, since a resumed run drops records past its checkpoint and can't make up missing
    ones.
    """
    config = dict(vars(args))
    header = {
        "script": model.script,
        "config": config,
        "seed": args.seed,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data": {"name": data.name} | data.counts,
    }
    with atomic_write(records_path(path), "w") as file:
        for record in (header, *model.records):
            file.write(json.dumps(record) + "\n")
    with atomic_write(path) as file:
        torch.save(model.state() | {"config": config, "data": data.identity}, file)


def records_path(path):
    """The records beside a checkpoint: the same name with .jsonl for .pth.tar."""
    return Path(str(path).removesuffix(".pth.tar") + ".jsonl")
