"""Checkpoints: writing them and their records, and reading this project's and the authors'.

What is in them: checkpoints/README.md. A network is a class that is handed in; a file only names
one of those.
"""

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path

import torch

from utils import DAMAGE, UserError, atomic_write, fingerprint

KINDS = {
    dict: ("state_dict", "optimizer", "architecture", "config", "data", "metrics", "made_from",
           "run"),
    int: ("epoch_num", "step"), str: ("script", "network"), list: ("records",),
}  # fmt: skip


def read_checkpoint(path, networks):
    """A checkpoint of this project's or of the authors' as a dict, without running its code.

    networks: the classes that it may name; one that names none, as the authors', is of the first.
    Its ``network`` is the class, and its ``path``, ``num_users`` and ``num_items`` are added; its
    ``architecture`` holds what the weights' shapes tell, and the rest where the file has it (the
    authors' has not, nor ``run`` and ``data``; one of an older version has ``script`` and, of a
    distilled student, ``made_from`` for ``run``). Raises UserError where it is no checkpoint.
    """
    checkpoint = load_tensors(path)
    try:
        return checkpoint | _verified(checkpoint, networks) | {"path": str(path)}
    except DAMAGE as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{path}: no checkpoint of this project's or of the authors' ({reason})"
        ) from None


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


def _verified(checkpoint, networks):
    """The parts of a checkpoint that others rely on; some DAMAGE where they are not as expected."""
    for key in ("state_dict", "epoch_num", "optimizer"):
        if key not in checkpoint:
            raise ValueError(f"it has no {key}")
    for kind, keys in KINDS.items():
        for key in checkpoint.keys() & keys:
            if not isinstance(checkpoint[key], kind):
                raise ValueError(f"its {key} is no {kind.__name__}")
    if checkpoint["epoch_num"] < 0:
        raise ValueError("its epoch_num is negative")
    config = checkpoint.get("config")
    if config is None:  # the authors': what its optimizer tells of the flags
        group = checkpoint["optimizer"]["param_groups"][0]
        config = {"learning_rate": float(group["lr"]), "l2": float(group["weight_decay"])}
    plain = [config, *(checkpoint.get(key, {}) for key in ("data", "made_from", "metrics"))]
    for values in (*plain, *checkpoint.get("records", [])):
        if not all(isinstance(value, str | int | float | None) for value in values.values()):
            raise ValueError("it holds more than plain values")
    _require_plain(checkpoint.get("run", {}))
    for name in ("dataset", "split", "train_root", "test_root"):
        if not isinstance(config.get(name), str | None):
            raise ValueError(f"its {name} is no text")

    named = checkpoint.get("network", networks[0].name)
    network = next((network for network in networks if network.name == named), None)
    if network is None:
        raise ValueError(f"its network {named!r} is none that is known here")
    weights = {name: value.detach() for name, value in checkpoint["state_dict"].items()}
    for value in weights.values():
        if value.dtype != torch.float32 or value.device.type != "cpu" or not value.is_contiguous():
            raise ValueError("its weights are no plain float32")
    users = str(checkpoint.get("data", {}).get("user_ids")).split("\n")
    told = {"num_users": len(users)} | network.arguments_of(weights)  # where no weight tells it
    if min(told["num_users"], told["num_items"], told.get("L", 1), told["d"]) < 1:
        raise ValueError("its weights are empty")
    saved = {name: value for name, value in checkpoint.get("architecture", {}).items()
             if name in {flag for flag, *_ in network.flags}}  # fmt: skip
    arguments = saved | told
    with torch.device("meta"):  # shapes without memory
        expected = {name: v.shape for name, v in network(**arguments).state_dict().items()}
    if any(weights[name].shape != expected[name] for name in weights.keys() & expected.keys()):
        raise ValueError("the shapes of its weights do not fit together")
    if not all(value.isfinite().all() for value in weights.values()):
        raise ValueError("its weights are not finite")
    sizes = {name: arguments.pop(name) for name in ("num_users", "num_items")}
    return {
        "network": network, "config": config, "state_dict": weights, "architecture": arguments
    } | sizes  # fmt: skip


def _require_plain(value, most=10_000):
    """ValueError where nested dicts hold anything but plain values, or too many of them."""
    waiting = [value]
    for _ in range(most):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.values()
        elif not isinstance(value, str | int | float | None):
            raise ValueError("it holds more than plain values")
    raise ValueError("it holds too many values")


def original_ids(checkpoint, kind):
    """The map of original id (str) to number of a model's users or items (kind "user", "item");
    UserError where its file does not tell them, as the authors'."""
    size, first = (
        (checkpoint["num_users"], 0) if kind == "user" else (checkpoint["num_items"] - 1, 1)
    )
    names = str(checkpoint.get("data", {}).get(f"{kind}_ids")).split("\n")
    if len(set(names)) != size:
        raise UserError(
            f"{checkpoint['path']}: does not tell the ids of its users and items; take a checkpoint"
            " that this project's scripts have trained"
        )
    return {name: number for number, name in enumerate(names, first)}


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
    """The network of a checkpoint; what its file does not tell comes from ``settings``, a dict, or
    is the default."""
    sizes = checkpoint["num_users"], checkpoint["num_items"]
    arguments = {
        name: settings[name]
        for name, *_ in checkpoint["network"].flags
        if name in (settings or {}) and name not in checkpoint["architecture"]
    }
    net = checkpoint["network"](*sizes, **arguments | checkpoint["architecture"])
    load_weights(net, checkpoint)
    return net


def add_mean_user(net):
    """Give a network's user table one row more, the mean of all, for users that it does not know;
    return its number. Where it has none (None) all users are alike to it, and that is 0."""
    if net.user_table is None:
        return 0
    weight = getattr(net, net.user_table).weight.detach()
    weight = torch.cat([weight, weight.mean(0, keepdim=True)])
    setattr(net, net.user_table, torch.nn.Embedding.from_pretrained(weight))
    return len(weight) - 1


def save_run(path, model, identity, args, data):
    """Write the checkpoint ``path`` and then its records, each of them atomically.

    identity: see run.describe_run.
    """
    with atomic_write(path) as file:
        more = {"run": identity, "config": dict(vars(args)), "data": data.identity}
        try:
            torch.save(model.state() | more, file)
        except RuntimeError as error:  # what torch makes of a write that fails
            raise UserError(f"{path}: could not be written; is the disk full? ({error})") from None
    write_records(path, identity, model.records)


def write_records(path, identity, records):
    """Write the records beside a checkpoint, where they are not there already."""
    text = "".join(json.dumps(record) + "\n" for record in (identity, *records))
    path = records_path(path)
    if not path.exists() or path.read_bytes() != text.encode():
        with atomic_write(path, "w") as file:
            file.write(text)


def records_path(path):
    """The records beside a checkpoint: the same name with .jsonl for .pth.tar."""
    return Path(str(path).removesuffix(".pth.tar") + ".jsonl")
