"""Recommenders without a sequence, for comparison.

python baselines.py --method itemcf --dataset ml-100k --similarity cosine
"""

import time
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from bpr import BPR
from interactions import csr_indices
from losses import pairwise_loss
from recommender import NETWORKS, Recommender, train_by
from support.checkpoint import records_path, write_records
from support.command_line import (
    data_flags,
    load_data,
    print_evaluation,
    read_command,
    training_parser,
    weight_flags,
)
from support.run import describe_run
from support.torchrun import is_first, join, one_run
from utils import Parser, numeric_flag, path_flag, require_writable, run_command

SCRIPT = "baselines.py"
DESCRIPTION = "Recommenders without a sequence: POP and ItemCF, which only count, and BPR."
SIMILARITIES = {  # of the users that two items share, and of those that each has
    "cosine": lambda shared, one, other: shared / np.sqrt(one * other),
    "count": lambda shared, one, other: shared,
    "jaccard": lambda shared, one, other: shared / (one + other - shared),
}


class CountedScores(torch.nn.Module):
    """Scores all items by the product of two tables, as a network does for an evaluation.

    Parameters
    ----------
    users: (num_users, n), an array or CSR.
    items: (n, num_items), an array or CSR.
    """

    def __init__(self, users, items):
        super().__init__()
        self.users, self.items = users, items
        self.place = torch.nn.Parameter(torch.empty(0))  # of which an evaluation asks the device

    def score_all(self, sequences, users, history=None):
        """Scores (B, num_items) float32, laid out item by item. users: (B,) int64."""
        scores = self.users[users.numpy()] @ self.items
        if sp.issparse(scores):
            scores = scores.toarray()
        return torch.from_numpy(np.asfortranarray(scores, dtype=np.float32))


def popularity(seen):
    """POP: an item's score is the number of its users in ``seen``, CSR (num_users, num_items)."""
    return CountedScores(np.ones((seen.shape[0], 1)), np.asarray(seen.sum(0)))


def item_similarity(seen, similarity="cosine", neighbours=None):
    """Item-based collaborative filtering (Sarwar et al., WWW 2001; Deshpande and Karypis, TOIS
    2004): an item's score is the sum of its similarities to the user's items.

    seen: bool CSR (num_users, num_items). similarity: one of SIMILARITIES. neighbours: how many
    items, the most similar, each of the user's items speaks for; None for all. Of equally similar
    ones those come first that came first in the training rows.
    """
    seen = seen.astype(np.float64)  # sums that are equal stay so when they are cut to float32
    owners = np.asarray(seen.sum(0)).ravel()
    table = seen.T @ seen - sp.diags(owners)  # an item is no neighbour of its own
    table.sort_indices()
    rows, columns = csr_indices(table)
    table.data = SIMILARITIES[similarity](table.data, owners[rows], owners[columns])
    if neighbours:
        order = np.lexsort((-table.data, rows))  # row after row still, each best first
        best = order[np.arange(table.nnz) - table.indptr[rows] < neighbours]
        table = sp.csr_matrix((table.data[best], (rows[best], columns[best])), table.shape)
    if table.nnz > np.prod(table.shape) / 2:  # hardly larger as an array, and twice as fast
        table = table.toarray()
    return CountedScores(seen, table)


class PairwiseRecommender(Recommender):
    """A Recommender by the loss of BPR."""

    def ranking_loss(self, positive, negative):
        return pairwise_loss(positive, negative)


def baseline_parser(method):
    """The flags of a method, "pop", "itemcf" or "bpr"."""
    if method == BPR.name:
        parser = training_parser(DESCRIPTION, BPR, d=50)
        parser.set_defaults(neg_samples=1)
    else:
        parser = Parser(description=DESCRIPTION)
        data_flags(parser)
        path_flag(parser, "--output_dir", "where the records go", "checkpoints", "DIR")
        # Every row counts, as for BPR; nothing is drawn, and nothing is saved to go on from.
        parser.set_defaults(L=0, T=1, seed="none", device="cpu", use_cuda=None, checkpoint=None,
                            evaluate=False)  # fmt: skip
    group = parser.add_argument_group("method")
    method_flag(group)
    if method == "itemcf":
        group.add_argument("--similarity", default="cosine", choices=SIMILARITIES,
                           help="of two items, by the users that they share")  # fmt: skip
        numeric_flag(group, "--neighbours", None, int, "[1, 1e9]",
                     "the most similar items alone, of each item (default: all)")  # fmt: skip
    return parser


def method_flag(group):
    group.add_argument("--method", default="bpr", choices=["pop", "itemcf", "bpr"],
                       help="each has flags of its own: --method NAME --help")  # fmt: skip


def counted_name(args):
    """What the records of POP or ItemCF are named after, behind the data."""
    parts = [args.method]
    if args.method == "itemcf":
        parts.append(args.similarity)
        parts += [f"neighbours={args.neighbours}"] * bool(args.neighbours)
    return "-".join(parts)


def count(method, argv):
    """Evaluate POP or ItemCF, and write its records."""
    args, _ = read_command(baseline_parser(method), SCRIPT, NETWORKS, argv)
    join(args.device)
    data = load_data(args)
    path = Path(args.output_dir, f"{data.name}-{counted_name(args)}")
    require_writable(records_path(path))
    started = time.perf_counter()
    seen = data.train.tocsr()
    net = (
        popularity(seen)
        if method == "pop"
        else item_similarity(seen, args.similarity, args.neighbours)
    )
    record = {"epoch": 1, "train_seconds": round(time.perf_counter() - started, 4)}
    record |= print_evaluation(net, data)
    identity = describe_run(SCRIPT, method, weight_flags(args), data, None, args.device)
    if is_first():
        write_records(path, identity, [record])
    print(f"saved {records_path(path)}")
    return 0


@one_run
def main(argv=None):
    """Do what the command line ``argv`` (default: this process's) asks for; the exit status."""
    first = Parser(add_help=False)
    method_flag(first)
    method = first.parse_known_args(argv)[0].method
    if method != "bpr":
        return count(method, argv)
    return train_by(baseline_parser(method), BPR, SCRIPT, argv, PairwiseRecommender)


if __name__ == "__main__":
    run_command(main)
