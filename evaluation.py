"""Ranking metrics over all items.

Protocol of the paper: every item is ranked, none sampled; the user's train items and padding
are out; targets are all of the user's distinct test items, and the mean goes over the users who
have any. A target that can't be ranked (it is in train, or unknown) is never hit and still
counts as a target.
"""

import numpy as np
import torch

from interactions import PADDING, csr_indices
from kernels import count_below, topk
from support.torchrun import dealt
from utils import UserError

KS = (3, 5, 10)
BLOCK = 1 << 22  # scores held at a time: bounds the memory of an evaluation
CACHE = 1 << 19  # comparisons held at a time on a CPU


@torch.inference_mode()
def evaluate_ranking(net, train, test, ks=KS):
    """Rank all items for every user who has test items, and measure.

    Parameters
    ----------
    net: a network with ``score_all(sequences, users, history) -> (B, num_items)``; put in eval
        mode.
    train: Interactions after ``to_sequence``: its test sequences are the input, its items out.
    test: Interactions made with train's maps.
    ks: cut-offs.

    Returns
    -------
    dict of name to (users with test items,) float64: ``user`` (their numbers), ``map`` (average
    precision over the whole ranking, divided by the number of targets), and for every k
    ``precision@k`` (hits / k), ``recall@k``, ``ndcg@k`` (the standard one) and ``ndcg_paper@k``
    (the paper's: k is first cut to the number of targets, for both DCG and ideal DCG).

    Raises UserError where a target's score is NaN or +inf.
    """
    net.eval()
    seen, wanted = train.tocsr(), test.tocsr()
    num_targets = np.diff(wanted.indptr)
    known = wanted[:, : train.num_items]
    num_known = np.diff(known.indptr)
    # Sorted by how many targets they have, users of a block make a table of targets without holes.
    users = np.argsort(num_known, kind="stable")
    users = users[np.searchsorted(num_known[users], 1) :]
    inputs = train.test_sequences.inputs(device_of(net))
    parts = [(users[:0], users[:0])]  # of nobody, where no target can be ranked

    def ranks(place):
        block = users[place]
        some = [part[block] for part in inputs]
        return _target_ranks(net, some, block, seen[block], known[block])

    parts += dealt(scoring_blocks(len(users), train.num_items), ranks)
    user, rank = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((rank, user))
    users = np.flatnonzero(num_targets)
    row = np.searchsorted(users, user[order])
    return {"user": users} | metrics(row, rank[order], num_targets[users], ks)


def _target_ranks(net, inputs, users, seen, wanted):
    """The rankable targets of users (b,): their user (m,) and their rank from 0 (m,), int64.

    inputs: what ``net`` sees of them. seen, wanted: CSR (b, N), the users' rows, none of ``wanted``
    empty. Ties are broken against the target: it ranks behind everything it ties with, so that
    equal scores never flatter. Targets that tie with each other still take distinct ranks.
    """
    scores = _scores_without(net, inputs, csr_indices(seen))
    device = scores.device
    num_targets = np.diff(wanted.indptr)
    table = np.full((len(users), num_targets.max()), PADDING)  # padding: never rankable
    table[np.arange(table.shape[1]) < num_targets[:, None]] = wanted.indices
    items = torch.from_numpy(table).to(device)
    target, _ = scores.gather(1, items).sort(1, descending=True)  # (b, J)
    _refuse_unless_finite(target)
    scores.scatter_(1, items, -torch.inf)
    at_once = CACHE if device.type == "cpu" else BLOCK
    above = scores.shape[1] - count_below(scores, target, num_targets, at_once)
    ranks = above + torch.arange(target.shape[1], device=device)  # and the targets before it
    row, column = (target > -torch.inf).nonzero().T.cpu().numpy()
    return users[row], ranks.cpu().numpy()[row, column]


def scoring_blocks(rows, num_items):
    """Slices of 0..rows: those rows that are scored against all items at once."""
    size = max(1, BLOCK // num_items)
    return [slice(first, first + size) for first in range(0, rows, size)]


@torch.inference_mode()
def best_items(net, inputs, out, k):
    """The k items that ``net`` (in eval mode) scores highest, padding never among them.

    inputs: what ``net`` sees of b windows (``SequenceInteractions.inputs``).
    out: (rows, items), two int arrays: which items are left out in which row.

    Returns items (b, k) int64 and scores (b, k) float32 as arrays, best first; where fewer than k
    are left, the rest is padding with a score of -inf. Raises UserError where a best score is NaN
    or +inf.
    """
    best, items = topk(_scores_without(net, inputs, out), k)
    _refuse_unless_finite(best[:, :1])
    return items.where(best > -torch.inf, PADDING).cpu().numpy(), best.cpu().numpy()


def device_of(net):
    """Where a network is."""
    return next(net.parameters()).device


def _refuse_unless_finite(scores):
    """UserError for NaN and +inf; -inf is what is left out."""
    if not (scores < torch.inf).all():
        raise UserError("a score is not a finite number; the model's weights are damaged")


def _scores_without(net, inputs, out):
    """Scores (b, N) of all items, a tensor; padding and what is ``out`` have -inf."""
    scores = net.score_all(*inputs)
    scores[out] = -torch.inf
    scores[:, PADDING] = -torch.inf
    return scores


def metrics(row, rank, num_targets, ks):
    """Per-user metrics from the ranks of the targets.

    row: (m,) int, the user of each rankable target, ascending. rank: (m,) int from 0, ascending
    within a user. num_targets: (users,) int, at least 1, counting the targets without a rank.
    Returns a dict of (users,) float64 arrays, named as in ``evaluate_ranking``.
    """
    users = len(num_targets)

    def total(values):
        return np.bincount(row, weights=values, minlength=users)

    nth = np.arange(len(row)) - np.searchsorted(row, row)
    result = {"map": total((nth + 1) / (rank + 1)) / num_targets}
    gain = 1 / np.log2(rank + 2)
    ideal = np.concatenate([[0], np.cumsum(1 / np.log2(np.arange(max(ks)) + 2))])
    for k in ks:
        hits = total(rank < k)
        result[f"precision@{k}"] = hits / k
        result[f"recall@{k}"] = hits / num_targets
        cut = np.minimum(k, num_targets)
        result[f"ndcg@{k}"] = total(gain * (rank < k)) / ideal[cut]
        result[f"ndcg_paper@{k}"] = total(gain * (rank < cut[row])) / ideal[cut]
    return result


def mean_metrics(per_user):
    """The means over users, as plain floats: {"map": ..., "precision@3": ..., ...}."""
    return {name: float(values.mean()) for name, values in per_user.items() if name != "user"}


def metrics_line(means, ks=KS, standard=False):
    """The authors' log format: ``map=…, precisions=…,…,…, recalls=…, ndcgs=…``.

    ndcgs is the paper's variant; standard: whether to add the standard one.
    """
    lists = {"precisions": "precision", "recalls": "recall", "ndcgs": "ndcg_paper"}
    lists |= {"standard ndcgs": "ndcg"} if standard else {}
    values = [f"map={means['map']:.4f}"] + [
        f"{label}=" + ",".join(f"{means[f'{name}@{k}']:.4f}" for k in ks)
        for label, name in lists.items()
    ]
    return ", ".join(values)
