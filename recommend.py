"""Recommend items by a trained model: to the users of its data, or after histories of your own.

python recommend.py --checkpoint checkpoints/ml-100k-caser-dim=20-rd.pth.tar --output recs.tsv
"""

import contextlib
import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from caser import read_checkpoint, restore_network
from evaluation import BLOCK, best_items, stored
from interactions import PADDING, SPLITS, Interactions, find_files
from utils import (
    Parser,
    UserError,
    atomic_write,
    numeric_flag,
    path_flag,
    pick_device,
    require_writable,
    run_command,
)

NAMES_SHOWN = 20  # of unknown ids, before the rest is counted


class TrainedModel:
    """A checkpoint's network, distilled or not, and the original ids; needs none of its data.

    Parameters
    ----------
    path: a checkpoint of this project's. device: where the network runs.

    Attributes
    ----------
    net: the network, in eval mode, with one user more: the mean of all user embeddings, who
    stands for users that the model does not know. user_map, item_map: dict of original id (str)
    to number. checkpoint: what ``caser.read_checkpoint`` gave.

    Raises UserError where ``path`` is no checkpoint, or does not tell its ids, as the authors'.
    """

    def __init__(self, path, device="cpu"):
        self.checkpoint = checkpoint = read_checkpoint(path)
        users, items = (
            str(checkpoint.get("data", {}).get(f"{kind}_ids")).split("\n")
            for kind in ("user", "item")
        )
        if (len(users), len(items) + 1) != (checkpoint["num_users"], checkpoint["num_items"]):
            raise UserError(
                f"{path}: does not tell the ids of its users and items; recommend by a checkpoint"
                " that this project's scripts have trained"
            )
        self.user_map = {name: number for number, name in enumerate(users)}
        self.item_map = {name: number for number, name in enumerate(items, PADDING + 1)}
        self.net = restore_network(checkpoint)
        embeddings = self.net.user_embeddings.weight.detach()
        embeddings = torch.cat([embeddings, embeddings.mean(0, keepdim=True)])
        self.net.user_embeddings = torch.nn.Embedding.from_pretrained(embeddings)
        self.net.to(device).eval()

    def recommend(self, sequences, users=None, top=10, include_seen=False):
        """The best items after histories.

        sequences: for each history its items' original ids, oldest first. users: for each the
        original id of its user; None, or an id that the model does not know, is the mean user.
        top: how many items. include_seen: whether items of the history itself may come.

        Returns for each history a list of (original item id, score), best first. Items that the
        model does not know are dropped; raises UserError where a history has no other.
        """
        users = [None] * len(sequences) if users is None else users
        best = self.rank(sequences, users, top, include_seen)
        ids = [None, *self.item_map]
        return [
            [(ids[item], score) for item, score in zip(*row, strict=True) if item != PADDING]
            for row in zip(*(part.tolist() for part in best), strict=True)
        ]

    def known_items(self, sequence, user):
        """The numbers of a history's items; UserError, naming the user, where none is known."""
        known = [self.item_map[item] for item in map(str, sequence) if item in self.item_map]
        if not known:
            raise UserError(f"the history of user {user!r}: no item in it that the model knows")
        return known

    def rank(self, sequences, users, top, include_seen):
        """As ``recommend``, but returns numbers: items (b, top) int64, scores (b, top) float32."""
        known = [self.known_items(*pair) for pair in zip(sequences, users, strict=True)]
        windows = np.full((len(known), self.net.architecture["L"]), PADDING)
        for window, items in zip(windows, known, strict=True):
            last = items[-len(window) :]
            window[len(window) - len(last) :] = last
        mean = len(self.user_map)
        numbers = [self.user_map.get(str(user), mean) for user in users]
        seen = [
            (row, item) for row, items in enumerate(known) for item in items if not include_seen
        ]
        rows, items = np.array(seen, dtype=np.int64).reshape(-1, 2).T
        return best_items(self.net, windows, np.array(numbers, dtype=np.int64), (rows, items),
                          min(top, len(self.item_map)))  # fmt: skip


# ---------------------------------------------------------------- whom to recommend to


def ranked_users(model, train, users, top, include_seen):
    """Yield (user ids, items, scores) for blocks of ``users``, numbers of the training data."""
    train.to_sequence(model.net.architecture["L"])
    windows, seen, ids = train.test_sequences.sequences, train.tocsr(), list(model.user_map)
    size = max(1, BLOCK // train.num_items)
    for first in range(0, len(users), size):
        block = users[first : first + size]
        out = stored(seen[block[:0]] if include_seen else seen[block])
        best = best_items(model.net, windows[block], block, out, top)
        yield [ids[user] for user in block], *best


def ranked_histories(model, histories, top, include_seen):
    """Yield (user ids, items, scores) for blocks of ``histories``, {user id: item ids}."""
    users = list(histories)
    size = max(1, BLOCK // (len(model.item_map) + 1))
    for first in range(0, len(users), size):
        block = users[first : first + size]
        sequences = [histories[user] for user in block]
        yield block, *model.rank(sequences, block, top, include_seen)


def read_histories(path):
    """{user id: item ids, oldest first} of a file of ``user item`` lines."""
    rows = Interactions(path)
    say(rows.notes)
    users, items = list(rows.user_map), [None, *rows.item_map]
    histories = {user: [] for user in users}
    for user, item in zip(rows.user_ids.tolist(), rows.item_ids.tolist(), strict=True):
        histories[users[user]].append(items[item])
    return histories


def say_what_is_unknown(model, histories):
    """Tell which items are dropped and which users are the mean user; UserError where nothing is
    left of a history."""
    items = dict.fromkeys(i for items in histories.values() for i in items)
    for what, names, known, so in (
        ("item", items, model.item_map, "dropped"),
        ("user", histories, model.user_map, "the mean user embedding stands for them"),
    ):
        strange = [name for name in names if name not in known]
        rest = f" and {len(strange) - NAMES_SHOWN} more" if len(strange) > NAMES_SHOWN else ""
        if strange:
            listed = ", ".join(strange[:NAMES_SHOWN])
            say([f"{len(strange)} {what}(s) that the model does not know, {so}: {listed}{rest}"])
    for user, items in histories.items():
        model.known_items(items, user)


def chosen_users(text, model):
    """The numbers of the users that ``--users`` names: a file of ids, one a line, or id,id."""
    if os.path.exists(text):
        with open(text, encoding="utf-8-sig") as file:
            try:
                lines = [(f"{text}, line {n}", line.strip()) for n, line in enumerate(file, 1)]
            except UnicodeDecodeError:
                raise UserError(f"{text}: not UTF-8; save the file as UTF-8") from None
    else:
        lines = [("--users", name.strip()) for name in text.split(",")]
    wanted = [(place, name) for place, name in lines if name]
    if not wanted:
        raise UserError(f"--users {text}: names nobody; give ids, or leave the flag out for all")
    for place, name in wanted:
        if name not in model.user_map:
            raise UserError(
                f"{place}: the model does not know user {name!r}; give what they had by --history"
            )
    return np.array([model.user_map[name] for _, name in wanted])


# ------------------------------------------------------------------------------- output


def rows_of(blocks, model, tells_embedding):
    """Yield, block by block, lists of rows: user, item, rank from 1, score, and which embedding."""
    ids = [None, *model.item_map]
    for users, items, scores in blocks:
        yield len(users), [
            [user, ids[item], rank, float(f"{score:.6g}")]
            + (["own" if user in model.user_map else "mean"] if tells_embedding else [])
            for user, best in zip(users, zip(items.tolist(), scores.tolist(), strict=True),
                                  strict=True)
            for rank, (item, score) in enumerate(zip(*best, strict=True), 1)
            if item != PADDING
        ]  # fmt: skip


class DelimitedText:
    """Writes rows as TSV or CSV with a header."""

    def __init__(self, file, columns, delimiter):
        self.rows = csv.writer(file, delimiter=delimiter, lineterminator="\n")
        self.rows.writerow(columns)

    def write(self, rows):
        self.rows.writerows(rows)


class JsonLines:
    """Writes rows as a JSON object each."""

    def __init__(self, file, columns):
        self.file, self.columns = file, columns

    def write(self, rows):
        for row in rows:
            self.file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")


class Parquet:
    """Writes rows as Parquet, through pyarrow."""

    def __init__(self, file, columns):
        import pyarrow
        import pyarrow.parquet

        kinds = {"rank": pyarrow.int32(), "score": pyarrow.float32()}
        fields = [(column, kinds.get(column, pyarrow.string())) for column in columns]
        self.schema, self.table = pyarrow.schema(fields), pyarrow.Table.from_pylist
        self.file = pyarrow.parquet.ParquetWriter(file, self.schema)

    def write(self, rows):
        rows = [dict(zip(self.schema.names, row, strict=True)) for row in rows]
        self.file.write_table(self.table(rows, schema=self.schema))

    def close(self):
        self.file.close()


FORMATS = {
    ".tsv": lambda file, columns: DelimitedText(file, columns, "\t"),
    ".csv": lambda file, columns: DelimitedText(file, columns, ","),
    ".jsonl": JsonLines,
    ".parquet": Parquet,
}


@contextlib.contextmanager
def open_output(path, columns):
    """Something to ``write`` rows to: the file ``path`` in the format of its ending, which appears
    whole or not at all; standard output, as TSV, where ``path`` is None."""
    ending = Path(path).suffix.lower() if path else ".tsv"
    binary = ending == ".parquet"
    whole = atomic_write(path, "wb" if binary else "w") if path else contextlib.nullcontext()
    with whole as file:
        output = FORMATS[ending](file or sys.stdout, columns)
        with contextlib.closing(output) if binary else contextlib.nullcontext():
            yield output


def check_output(path):
    """UserError where nothing could be written to ``path`` in the format of its ending."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"--output {path}: end it in one of {', '.join(FORMATS)}")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(f"--output {path}: needs pyarrow; pip install pyarrow") from None
    require_writable(path)


# -------------------------------------------------------------------------- command line


def get_args_parser():
    parser = Parser(description=__doc__.split("\n")[0])
    path_flag(parser, "--checkpoint", "the model")
    numeric_flag(parser, "--top", 10, int, "[1, 1e9]", "items per user")
    path_flag(parser, "--output", "where they go, as .tsv, .csv, .jsonl or .parquet (default: TSV "
              "on standard output)")  # fmt: skip
    parser.add_argument("--include_seen", action="store_true",
                        help="recommend items of the user's history too")  # fmt: skip
    group = parser.add_argument_group("for whom (default: every user of the checkpoint's data)")
    path_flag(group, "--users", "these alone: a file with an id a line, or ids", None, "FILE|ID,ID")
    path_flag(group, "--history", "histories to go on from: lines `user item`, oldest first")
    path_flag(group, "--sequence", "one history, oldest first; --users may name its user", None,
              "ITEM,ITEM")  # fmt: skip
    group = parser.add_argument_group("the checkpoint's data, where it has moved")
    path_flag(group, "--dataset", "datasets/NAME/SPLIT/train.txt", None, "NAME")
    group.add_argument("--split", choices=SPLITS, help="of --dataset")
    path_flag(group, "--train_root", "the training rows, in place of --dataset's")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                        help="auto is cuda where there is one, else cpu")  # fmt: skip
    return parser


def training_rows(model, args):
    """The Interactions that the model was trained on; UserError where they are others now."""
    saved, path = model.checkpoint["config"], model.checkpoint["path"]
    if args.train_root or args.dataset:
        root, dataset = args.train_root, args.dataset
    else:
        root, dataset = saved.get("train_root"), saved.get("dataset", "")
    _, train_path, _ = find_files(dataset, args.split or saved.get("split", "test"), root)
    train = Interactions(train_path)
    say(train.notes)
    if train.fingerprint() != model.checkpoint["data"].get("fingerprint"):
        raise UserError(
            f"{train_path}: not the rows that {path} was trained on; name those by --train_root,"
            " or give these as --history"
        )
    return train


def say(notes):
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not args.checkpoint:
        raise UserError("--checkpoint: which model? Name a file that a training script has saved")
    if args.history and (args.sequence or args.users):
        raise UserError("--history goes without --sequence and --users: it has its own users")
    if args.output:
        check_output(args.output)
    model = TrainedModel(args.checkpoint, pick_device(args.device))
    top = args.top
    if top > len(model.item_map):
        raise UserError(f"--top {top}: the model has {len(model.item_map)} items; ask for fewer")
    columns = ["user", "item", "rank", "score"]
    own = bool(args.history or args.sequence)
    if own:
        if args.history:
            histories = read_histories(args.history)
        else:
            items = [item.strip() for item in args.sequence.split(",")]
            histories = {args.users or "sequence": [item for item in items if item]}
        say_what_is_unknown(model, histories)
        columns.append("embedding")
        blocks, total = ranked_histories(model, histories, top, args.include_seen), len(histories)
    else:
        train = training_rows(model, args)
        users = chosen_users(args.users, model) if args.users else np.arange(train.num_users)
        blocks, total = ranked_users(model, train, users, top, args.include_seen), len(users)
    with (
        open_output(args.output, columns) as output,
        tqdm(total=total, desc="users", leave=False, disable=None) as bar,
    ):
        for count, rows in rows_of(blocks, model, own):
            output.write(rows)
            bar.update(count)
    if args.output:
        print(f"saved the top {top} for {total} users in {args.output}")
    return 0


if __name__ == "__main__":
    run_command(main)
