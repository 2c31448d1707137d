"""Recommend items by a trained model: to the users of its data, or after histories of your own.

python recommend.py --checkpoint checkpoints/ml-100k-caser-dim=20-rd.pth.tar --output recs.tsv
"""

import itertools
import os
import sys
from string import whitespace  # what divides a data set's columns: ids may end in other spaces

import numpy as np
import pandas as pd
from tqdm import tqdm

from evaluation import best_items, device_of, scoring_blocks
from interactions import PADDING, History, SequenceInteractions, csr_indices
from recommender import NETWORKS
from support.checkpoint import (
    add_mean_user,
    original_ids,
    read_checkpoint,
    records_path,
    restore_network,
)
from support.data_set import SPLITS, find_files, read_interactions
from support.output import check_output, open_output
from utils import (
    Parser,
    UserError,
    device_flag,
    numeric_flag,
    path_flag,
    pick_device,
    require_writable,
    run_command,
)

DESCRIPTION = "Recommend items by a trained model: to its users, or after histories of your own."
NAMES_SHOWN = 20  # of unknown ids, before the rest is counted
ROWS_AT_ONCE = 1 << 16  # made and written together


class TrainedModel:
    """A checkpoint's network, distilled or not, and the original ids; needs none of its data.

    Parameters
    ----------
    path: a checkpoint of this project's.
    device: where the network runs.

    Attributes
    ----------
    net: the network, in eval mode, with one user more: the mean of all, who stands for users that
        the model does not know.
    user_map, item_map: dict of original id (str) to number.
    checkpoint: what ``checkpoint.read_checkpoint`` gave.

    Raises UserError where ``path`` is no checkpoint, or does not tell its ids, as the authors'.
    """

    def __init__(self, path, device="cpu"):
        self.checkpoint = checkpoint = read_checkpoint(path, NETWORKS)
        self.user_map, self.item_map = (original_ids(checkpoint, kind) for kind in ("user", "item"))
        self.net = restore_network(checkpoint)
        add_mean_user(self.net)
        self.net.to(pick_device(device)).eval()

    def recommend(self, sequences, users=None, top=10, include_seen=False):
        """The best items after histories.

        sequences: for each history its items' original ids, oldest first. users: for each the
        original id of its user; None, or an id that the model does not know, is the mean user.
        top: how many items. include_seen: whether items of the history itself may come.

        Returns for each history a list of (original item id, score), best first. Items that the
        model does not know are dropped; raises UserError where a history has no other, and where
        an argument is not as described.
        """
        users = [None] * len(sequences) if users is None else users
        if any(isinstance(x, str) for x in (sequences, users, *sequences)):
            raise UserError("sequences: a list of lists of item ids, users: a list of ids")
        if len(users) != len(sequences):
            raise UserError(f"{len(users)} users for {len(sequences)} sequences; give one for each")
        if not isinstance(top, int) or isinstance(top, bool) or top < 1:
            raise UserError(f"top={top!r}: how many items? Give a whole number from 1 on")
        ids = [None, *self.item_map]
        return [
            [(ids[item], score) for item, score in zip(*row, strict=True) if item != PADDING]
            for best in self.rank(sequences, users, top, include_seen)
            for row in zip(*(part.tolist() for part in best), strict=True)
        ]

    def rank(self, sequences, users, top, include_seen):
        """As ``recommend``, but yields, for blocks of b histories in turn, numbers: items (b, k)
        int64 and their scores (b, k) float32, k = top or the number of items."""
        mean = len(self.user_map)
        for block in scoring_blocks(len(sequences), len(self.item_map) + 1):
            known = [
                [self.item_map[item] for item in map(str, sequence) if item in self.item_map]
                for sequence in sequences[block]
            ]
            if [] in known:
                number = block.start + known.index([])
                raise UserError(f"sequence {number}: no item in it that the model knows")
            lengths = np.array(list(map(len, known)))
            ends = lengths.cumsum()
            history = History(np.concatenate(known), ends - lengths, ends)
            numbers = [
                mean if user is None else self.user_map.get(str(user), mean)
                for user in users[block]
            ]
            seen = [
                (row, item) for row, items in enumerate(known) for item in items if not include_seen
            ]
            rows, items = np.array(seen, dtype=np.int64).reshape(-1, 2).T
            last = history.last(self.net.architecture["L"])
            windows = SequenceInteractions(np.array(numbers), last, None, history)
            inputs = windows.inputs(device_of(self.net))
            yield best_items(self.net, inputs, (rows, items), min(top, len(self.item_map)))


# ---------------------------------------------------------------- whom to recommend to


def ranked_users(model, train, users, top, include_seen):
    """Yield (user ids, items, scores) for blocks of ``users``, numbers of the training data."""
    train.to_sequence(model.net.architecture["L"])
    inputs = train.test_sequences.inputs(device_of(model.net))
    seen, ids = train.tocsr(), list(model.user_map)
    for place in scoring_blocks(len(users), train.num_items):
        block = users[place]
        out = csr_indices(seen[block[:0] if include_seen else block])  # nothing, or what they had
        best = best_items(model.net, [part[block] for part in inputs], out, top)
        yield [ids[user] for user in block], *best


def ranked_histories(model, histories, top, include_seen):
    """Yield (user ids, items, scores) for blocks of ``histories``, {user id or None: item ids}."""
    users, sequences = list(histories), list(histories.values())
    rest = iter(users)
    for items, scores in model.rank(sequences, users, top, include_seen):
        yield list(itertools.islice(rest, len(items))), items, scores


def read_histories(path):
    """{user id: item ids, oldest first} of a file of ``user item`` lines."""
    rows, notes = read_interactions(path)
    tell(notes)
    users, items = list(rows.user_map), [None, *rows.item_map]
    histories = {user: [] for user in users}
    for user, item in zip(rows.user_ids.tolist(), rows.item_ids.tolist(), strict=True):
        histories[users[user]].append(items[item])
    return histories


def known_histories(model, histories, source):
    """The histories that hold an item that the model knows; tells which items and histories are
    dropped and which users are the mean user. UserError where none of ``source`` is left."""
    cold = [
        user for user, items in histories.items() if not any(i in model.item_map for i in items)
    ]
    if len(cold) == len(histories):
        raise UserError(f"{source}: no item that the model knows; name some of its data's")
    for user in cold:
        tell([f"{source}, user {user!r}: no item that the model knows; nothing is recommended"])
    items = dict.fromkeys(i for items in histories.values() for i in items)
    users = [user for user in histories if user is not None and model.net.user_table]
    for what, names, known, so in (
        ("item", items, model.item_map, "dropped"),
        ("user", users, model.user_map, "the mean user embedding stands for them"),
    ):
        strange = [name for name in names if name not in known]
        rest = f" and {len(strange) - NAMES_SHOWN} more" if len(strange) > NAMES_SHOWN else ""
        if strange:
            listed = ", ".join(strange[:NAMES_SHOWN])
            tell([f"{len(strange)} {what}(s) that the model does not know, {so}: {listed}{rest}"])
    return {user: items for user, items in histories.items() if user not in cold}


def one_history(args, model):
    """{user id or None: item ids} of ``--sequence``, whose user ``--users`` may name."""
    user = args.users
    if user and user not in model.user_map and ("," in user or os.path.isfile(user)):
        raise UserError(f"--users {user}: --sequence has one user; name one, or use --history")
    items = [item for name in args.sequence.split(",") if (item := name.strip(whitespace))]
    if not items:
        raise UserError("--sequence: names no item; give one or more, the oldest first")
    return {user: items}


def named_users(text, model):
    """The numbers of the users that ``--users`` names: a file of ids, one a line, or id,id."""
    if text in model.user_map:  # though it may hold a comma, or a file be called so
        lines = [("--users", text)]
    elif os.path.isfile(text):
        with open(text, encoding="utf-8-sig") as file:
            try:
                lines = [(f"{text}, line {number}", line) for number, line in enumerate(file, 1)]
            except UnicodeDecodeError:
                raise UserError(f"{text}: not UTF-8; save the file as UTF-8") from None
    else:
        lines = [("--users", name) for name in text.split(",")]
    wanted = {name: place for place, line in lines if (name := line.strip(whitespace))}
    if not wanted:
        raise UserError(f"--users {text}: names nobody; give ids, or leave the flag out for all")
    for name, place in wanted.items():
        if name not in model.user_map:
            raise UserError(
                f"{place}: the model does not know user {name!r}; give what they had by --history"
                " (ids that hold a comma: one a line, in a file)"
            )
    return np.array([model.user_map[name] for name in wanted])


# ------------------------------------------------------------------------------- output


def tables(blocks, model, tells_embedding):
    """Yield (number of users, DataFrame), some users at a time: user, item, rank from 1, score,
    and which embedding."""
    ids = np.array([None, *model.item_map], dtype=object)
    for users, items, scores in blocks:
        k = items.shape[1]
        size = max(1, ROWS_AT_ONCE // k)
        for first in range(0, len(users), size):
            part = slice(first, first + size)
            names = ["sequence" if user is None else user for user in users[part]]
            table = pd.DataFrame(
                {
                    "user": np.repeat(np.array(names, dtype=object), k),
                    "item": ids[items[part].ravel()],
                    "rank": np.tile(np.arange(1, k + 1), len(names)),
                    "score": [float(f"{score:.6g}") for score in scores[part].ravel().tolist()],
                }
            )
            if tells_embedding and model.net.user_table:
                known = ["own" if user in model.user_map else "mean" for user in users[part]]
                table["embedding"] = np.repeat(np.array(known, dtype=object), k)
            yield len(names), table[items[part].ravel() != PADDING]


def refuse_to_replace(output, *inputs):
    """UserError where the file ``output`` (None for none) is one of the ``inputs``."""
    for name in filter(None, inputs if output else ()):
        if os.path.exists(output) and os.path.exists(name) and os.path.samefile(output, name):
            raise UserError(f"--output {output}: is of the model or the data; name another file")


# -------------------------------------------------------------------------- command line


def get_args_parser():
    parser = Parser(description=DESCRIPTION)
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
    device_flag(parser)
    return parser


def training_rows(model, args):
    """The Interactions that the model was trained on; UserError where they are others now."""
    saved, path = model.checkpoint["config"], model.checkpoint["path"]
    if args.train_root or args.dataset:
        root, dataset = args.train_root, args.dataset
    else:
        root, dataset = saved.get("train_root"), saved.get("dataset") or ""
    _, train_path, _ = find_files(dataset, args.split or saved.get("split") or "test", root)
    refuse_to_replace(args.output, train_path)
    train, notes = read_interactions(train_path, model.user_map, model.item_map)
    tell(notes)
    theirs = model.checkpoint["data"].get("train_rows")
    ours = train.fingerprint_by_id()
    if theirs is None:  # of an older version
        theirs, ours = model.checkpoint["data"].get("fingerprint"), train.fingerprint()
    if theirs != ours or train.unknown_users or train.unknown_items:
        raise UserError(
            f"{train_path}: not the rows that {path} was trained on; name those by --train_root,"
            " or give these as --history"
        )
    return train


def tell(notes):
    for note in notes:
        print(f"note: {note}", file=sys.stderr)


def main(argv=None):
    args = get_args_parser().parse_args(argv)
    if not args.checkpoint:
        raise UserError("--checkpoint: which model? Name a file that a training script has saved")
    if args.history and (args.sequence or args.users):
        raise UserError("--history goes without --sequence and --users: it has its own users")
    own = bool(args.history or args.sequence)
    if own and (args.dataset or args.split or args.train_root):
        raise UserError("--dataset, --split and --train_root: a history of your own needs none")
    if args.train_root and (args.dataset or args.split):
        raise UserError("give --dataset and --split, or --train_root, not both")
    if args.output:
        check_output(args.output)
    records = records_path(args.checkpoint)
    refuse_to_replace(args.output, args.checkpoint, records, args.history, args.users)
    model = TrainedModel(args.checkpoint, args.device)
    top = args.top
    if top > len(model.item_map):
        raise UserError(f"--top {top}: the model has {len(model.item_map)} items; ask for fewer")
    if own:
        histories = read_histories(args.history) if args.history else one_history(args, model)
        histories = known_histories(model, histories, args.history or "--sequence")
        blocks, total = ranked_histories(model, histories, top, args.include_seen), len(histories)
    else:
        train = training_rows(model, args)
        users = named_users(args.users, model) if args.users else np.arange(train.num_users)
        blocks, total = ranked_users(model, train, users, top, args.include_seen), len(users)
    if args.output:
        require_writable(args.output)
    with (
        open_output(args.output) as write,
        tqdm(total=total, desc="users", leave=False, disable=None) as bar,
    ):
        short = without = 0
        for count, table in tables(blocks, model, own):
            write(table)
            bar.update(count)
            given = table["user"].value_counts()
            short += (given < top).sum()
            without += count - len(given)
    if short or without:
        tell([f"{short} user(s) got fewer than {top} items and {without} none: the others stand in"
              " what they had, which --include_seen lets come"])  # fmt: skip
    if args.output:
        print(f"saved the top {top} for {total} users in {args.output}")
    return 0


if __name__ == "__main__":
    run_command(main)
