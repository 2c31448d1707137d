"""A data set: its files, its training and test rows, and what a reader of results should know."""

import os
import stat
import subprocess
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from interactions import PADDING, Interactions
from support.checkpoint import add_mean_user, original_ids, restore_network
from support.rows import read_rows
from utils import UserError

SPLITS = ("test", "validation")


def find_files(dataset, split, train_root=None, test_root=None):
    """(name, training file, file to predict) of datasets/<dataset>/<split>/, or of given files.

    ml-100k is prepared where it is missing. The name is that of the folder above test/ or
    validation/; UserError where there is no such data set.
    """
    if train_root:
        folder = Path(os.path.abspath(train_root)).parent
        name = (folder.parent if folder.name in SPLITS else folder).name or "data"
        paths = train_root, test_root
    else:
        name, folder = dataset, Path("datasets", dataset)
        if name != folder.name:
            raise UserError(f"--dataset {name!r}: give a folder's name, or use --train_root")
        if not folder.is_dir():
            if name != "ml-100k":
                raise UserError(f"{folder}: no such data set; see datasets/README.md")
            prepare = Path(__file__).parent.with_name("datasets") / "prepare.py"
            command = [sys.executable, prepare, name, "--output_dir", folder.parent]
            if status := subprocess.run(command, stdout=2).returncode:  # 2: stderr
                sys.exit(status)  # it has said why
        paths = (str(folder / split / f"{part}.txt") for part in ("train", "test"))
    return name + "-validation" * (split == "validation"), *paths


def read_interactions(path, user_map=None, item_map=None):
    """The Interactions of a training file ``user item [rating [time]]``, and notes on it.

    user_map, item_map: as for Interactions. Raises UserError, naming file and line, where the file
    can't be read as such.
    """
    try:
        with open(path, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UserError(f"{path}: is no regular file")
            rows, notes = read_rows(file, path)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return Interactions(rows["user"], rows["item"], user_map, item_map), notes


@dataclass
class DataSet:
    """A training file and the file to predict, ready for use.

    name: what files made from it are named after; it ends in "-validation" for that split.
    train: Interactions after ``to_sequence``.
    test: Interactions with train's maps.
    train_path, test_path: their files.
    counts: dict of str to int.
    notes: one-line str each, what a reader of results should know.
    """

    name: str
    train: Interactions
    test: Interactions
    train_path: str
    test_path: str
    counts: dict
    notes: list

    @classmethod
    def load(cls, name, train_path, test_path, L, T):
        """Read both files; UserError where nothing could be trained or evaluated."""
        train, notes = read_interactions(train_path)
        train.to_sequence(L, T)
        test, more_notes = read_interactions(test_path, train.user_map, train.item_map)
        data = cls(name, train, test, train_path, test_path, _counts(train, test), notes)
        data.notes += more_notes + data._surprises()
        return data

    def headline(self):
        """One line of counts."""
        windows = self.train.sequences
        L, T = windows.sequences.shape[1], windows.targets.shape[1]
        line = (
            "{0}: {users} users, {items} items, {train_rows} train rows, {windows} windows"
            " (L={1}, T={2}), {test_rows} test rows of {test_users} users"
        )
        return line.format(self.name, L, T, **self.counts)

    @cached_property
    def identity(self):
        """What a checkpoint keeps of its data: plain values, ids of one kind in one string."""
        return {
            "name": self.name,
            "user_ids": "\n".join(self.train.user_map),
            "item_ids": "\n".join(self.train.item_map),
            "fingerprint": self.train.fingerprint(),
            "train_rows": self.train.fingerprint_by_id(),
            "test_rows": self.test.fingerprint_by_id(),
        }

    def check(self, checkpoint, allow_other_data=False):
        """Hold a checkpoint (``checkpoint.read_checkpoint``) against this data, by original ids.

        Returns (notes, numbers): what could not be verified; and the model's numbers of this
        data's users (num_users,) and items (num_items,), int64, -1 where it has none, or None
        where all are numbered alike. Raises UserError where the model was trained on other rows or
        does not know a user or an item, unless ``allow_other_data``.
        """
        path, theirs = checkpoint["path"], checkpoint.get("data")
        sizes = checkpoint["num_users"], checkpoint["num_items"] - 1
        ours = self.train.num_users, self.train.num_items - 1
        both = (
            f"{path}: the checkpoint has {sizes[0]} users and {sizes[1]} items, {self.train_path}"
            f" has {ours[0]} and {ours[1]}"
        )
        if theirs is None and sizes != ours:
            raise UserError(f"{both}; it was trained on other data")
        if theirs is None:
            flags = (name for name, *_ in checkpoint["network"].flags)
            untold = [name for name in flags if name not in checkpoint["architecture"]]
            what = ", ".join(["its data", *untold[:-1]]) + "".join(f" and {x}" for x in untold[-1:])
            return [
                f"{path}: tells nothing of {what}; only the numbers of users and items could be"
                " compared, and flags or their defaults give the rest"
            ], None
        notes = []
        if not self.has_rows_of(checkpoint):
            notes.append(
                f"{path}: trained on {theirs.get('name')!r}, whose rows are not those of"
                f" {self.train_path} (the targets of this split may be among them)"
            )
        numbers = []
        for kind, map_, first in (("user", self.train.user_map, 0),
                                  ("item", self.train.item_map, PADDING + 1)):  # fmt: skip
            places = original_ids(checkpoint, kind)
            unknown = [name for name in map_ if name not in places]
            if unknown:
                notes.append(f"{both}, of which it does not know {len(unknown)} {kind}(s), e.g."
                             f" {unknown[0]!r}")  # fmt: skip
            numbers.append(np.array([-1] * first + [places.get(name, -1) for name in map_]))
        if notes and not allow_other_data:
            raise UserError(f"{notes[-1]}; --allow_other_data accepts it all the same")
        alike = all(theirs[kind] == self.identity[kind] for kind in ("user_ids", "item_ids"))
        return notes, None if alike else numbers

    def has_rows_of(self, checkpoint):
        """Whether a checkpoint's model was trained on these rows."""
        theirs = checkpoint.get("data", {})
        key = "train_rows" if "train_rows" in theirs else "fingerprint"  # of an older version
        return theirs.get(key) == self.identity[key]

    def check_resumable(self, checkpoint):
        """UserError where a run to resume had other rows, or numbered them otherwise; returns
        notes: what could not be verified."""
        theirs, ours = checkpoint.get("data"), self.identity
        if theirs is None:
            return self.check(checkpoint)[0]
        if theirs.get("fingerprint") != ours["fingerprint"]:
            raise UserError(
                f"{checkpoint['path']}: a run goes on with the rows that it began with, in their"
                f" order, and {self.train_path} has other ones or another order"
            )
        if theirs.get("test_rows", ours["test_rows"]) != ours["test_rows"]:
            return [f"{self.test_path}: not the rows that earlier epochs were evaluated on"]
        return []

    def network(self, checkpoint, settings=None, allow_other_data=False):
        """The network of a checkpoint, numbering users and items as this data does, and notes.

        settings: what its file does not tell. UserError as for ``check``.
        """
        notes, numbers = self.check(checkpoint, allow_other_data)
        net = restore_network(checkpoint, settings)
        return (Renumbered(net, *numbers) if numbers else net), notes

    def _surprises(self):
        """Notes on what can't be learned or hit; UserError where nothing can."""
        train, test, counts = self.train, self.test, self.counts
        notes = []
        if counts["unknown_test_users"]:
            notes.append(
                "{unknown_test_users} test user(s), e.g. {0!r}, with {unknown_test_user_rows}"
                " row(s) are not in train: skipped".format(test.unknown_users[0], **counts)
            )
        if counts["unknown_item_targets"]:
            strange = next(n for n in test.tocsr().indices if n >= train.num_items)
            notes.append(
                "{unknown_item_targets} test target(s) are of {unknown_test_items} item(s), e.g."
                " {0!r}, not in train: never hit, still counted"
                .format(test.unknown_items[strange - train.num_items], **counts)
            )  # fmt: skip
        if counts["repeated_targets"]:
            note = (
                "{repeated_targets} test target(s) are also in the user's train rows: never hit,"
                " still counted".format(**counts)
            )
            if counts["repeated_targets"] > counts["test_targets"] / 10:
                note += "; datasets/prepare.py keeps one row of a pair by --keep first or last"
            notes.append(note)
        owned = ""
        if counts["owners_of_everything"]:
            name = list(train.user_map)[_owners_of_everything(train)[0]]
            owned = (
                f"{counts['owners_of_everything']} user(s), e.g. {name!r}, have every item in"
                " train: no negatives exist, so nothing is trained on their windows"
            )
            notes.append(owned)
        if not counts["windows"]:
            why = f"; {owned}" if owned else ""
            raise UserError(
                f"{self.train_path}: no training windows; no user has more than T rows{why}"
            )
        if not counts["test_users"]:
            raise UserError(
                f"{self.test_path}: none of its users is in {self.train_path}; nothing to evaluate"
            )
        return notes


class Renumbered(torch.nn.Module):
    """A network as it is seen from data that numbers users and items otherwise.

    Parameters
    ----------
    net: the network.
    users, items: the network's numbers of the data's users (num_users,) and items (num_items,),
        int64; -1 where it has none: the mean user, an item that is never ranked.
    """

    def __init__(self, net, users, items):
        super().__init__()
        self.net, self.name, self.architecture = net, net.name, net.architecture
        mean_user = add_mean_user(net)
        users, items = torch.from_numpy(users), torch.from_numpy(items)
        self.register_buffer("users", users.where(users >= 0, mean_user))
        self.register_buffer("items", items.where(items >= 0, PADDING))
        self.register_buffer("unknown", items < 0)

    def represent(self, sequences, users, history):
        """What the network's ``represent`` gives, of the data's numbers."""
        return self.net.represent(*self._renumbered(sequences, users, history))

    def score(self, x, items):
        """Scores (B, N) of the data's items (B, N); -inf of padding and the unknown."""
        scores = self.net.score(x, self.items[items])
        return scores.masked_fill(self.unknown[items], -torch.inf)

    def score_all(self, sequences, users, history):
        """Scores (B, num_items) of the data's items; -inf of padding and the unknown."""
        scores = self.net.score_all(*self._renumbered(sequences, users, history))[:, self.items]
        return scores.masked_fill(self.unknown, -torch.inf)

    def _renumbered(self, sequences, users, history):
        return self.items[sequences], self.users[users], history.renumbered(self.items)


def _owners_of_everything(train):
    """The users, from 0, who have every item."""
    return np.flatnonzero(np.diff(train.tocsr().indptr) == train.num_items - 1)


def _counts(train, test):
    """What a DataSet holds, dict of str to int."""
    seen, wanted = train.tocsr(), test.tocsr()
    seen.resize(wanted.shape)
    owners = _owners_of_everything(train)
    strange = wanted.indices[wanted.indices >= train.num_items]
    return {
        "users": train.num_users,
        "items": train.num_items - 1,
        "train_rows": len(train),
        "windows": int((~np.isin(train.sequences.user_ids, owners)).sum()),
        "test_rows": len(test),
        "test_users": int((np.diff(wanted.indptr) > 0).sum()),
        "test_targets": wanted.nnz,
        "unknown_test_users": len(test.unknown_users),
        "unknown_test_user_rows": test.num_unknown_user_rows,
        "unknown_test_items": len(np.unique(strange)),
        "unknown_item_targets": len(strange),
        "repeated_targets": seen.multiply(wanted).nnz,
        "owners_of_everything": len(owners),
    }
