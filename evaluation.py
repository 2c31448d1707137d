"""Ranking metrics over all items.

Protocol of the paper: every item is ranked, none sampled; the user's train items and padding
are out; targets are all of the user's distinct test items, and the mean goes over the users who
have any. A target that can't be ranked (it is in train, or unknown) is never hit and still
counts as a target.
"""

import numpy as np
import torch

from interactions import PADDING
from utils import UserError

KS = (3, 5, 10)
BLOCK = 1 << 22  # scores held at a time: bounds the memory of an evaluation
CACHE = 1 << 19  # comparisons held at a time
FOLD = 16  # items in a group of ``topk``


@torch.inference_mode()
def evaluate_ranking(net, train, test, ks=KS):
    """Rank all items for every user who has test items, and measure.

    Parameters
    ----------
    net: a network with ``score_all(sequences, users) -> (B, num_items)``; put in eval mode.
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
    # Users with equally many targets share a block, so that the targets' table is dense.
    users = np.argsort(num_known, kind="stable")
    users = users[np.searchsorted(num_known[users], 1) :]
    size = max(1, BLOCK // train.num_items)
    sequences = train.test_sequences.sequences
    parts = [(users[:0], users[:0])]  # of nobody, where no target can be ranked
    for first in range(0, len(users), size):
        block = users[first : first + size]
        parts.append(_target_ranks(net, sequences[block], block, seen[block], known[block]))
    user, rank = (np.concatenate(part) for part in zip(*parts, strict=True))
    order = np.lexsort((rank, user))
    users = np.flatnonzero(num_targets)
    row = np.searchsorted(users, user[order])
    return {"user": users} | metrics(row, rank[order], num_targets[users], ks)


def _target_ranks(net, sequences, users, seen, wanted):
    """The rankable targets of users (b,): their user (m,) and their rank from 0 (m,), int64.

    sequences: (b, L). seen, wanted: CSR (b, N), the users' rows, none of ``wanted`` empty. Ties
    are broken against the target: it ranks behind everything it ties with, so that equal scores
    never flatter. Targets that tie with each other still take distinct ranks.
    """
    scores = _scores_without(net, sequences, users, stored(seen))
    device = scores.device
    num_targets = np.diff(wanted.indptr)
    table = np.full((len(users), num_targets.max()), PADDING)  # padding: never rankable
    table[np.arange(table.shape[1]) < num_targets[:, None]] = wanted.indices
    items = torch.from_numpy(table).to(device)
    target, _ = scores.gather(1, items).sort(1, descending=True)  # (b, J)
    _refuse_unless_finite(target)
    scores.scatter_(1, items, -torch.inf)
    above = scores.shape[1] - _count_below(scores, target, num_targets)
    ranks = above + torch.arange(target.shape[1], device=device)  # and the targets before it
    row, column = (target > -torch.inf).nonzero().T.cpu().numpy()
    return users[row], ranks.cpu().numpy()[row, column]


def _count_below(scores, target, num_targets):
    """How many of a row's scores (b, N) are below each of its targets (b, J): (b, J) int64.

    num_targets: (b,) int, ascending; columns from there on mean nothing. Comparisons are written
    as floats, in pieces that stay in the cache: their sum is several times faster than that of
    booleans, and exact up to 2^24 items.
    """
    by_item, target = scores.T, target.T.contiguous()  # (N, b), (J, b)
    counts = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
    limit = CACHE if target.device.type == "cpu" else BLOCK
    first = 0
    while first < len(target):  # a few targets at once, of those users who have them
        user = int(np.searchsorted(num_targets, first, side="right"))
        last = max(int(num_targets[user]), 2 * first)
        last = min(len(target), last, first + max(1, limit // (len(scores) - user)))
        piece = target[first:last, user:]
        for some in by_item[:, None, user:].split(max(1, limit // piece.numel())):
            below = torch.empty(len(some), *piece.shape, device=target.device)
            counts[first:last, user:] += torch.lt(some, piece, out=below).sum(0).long()
        first = last
    return counts.T


@torch.inference_mode()
def best_items(net, sequences, users, out, k):
    """The k items that ``net`` (in eval mode) scores highest, padding never among them.

    sequences: (b, L) int64 and users: (b,) int64 arrays. out: (rows, items), two int arrays: which
    items are left out in which row. Returns items (b, k) int64 and scores (b, k) float32 as arrays,
    best first; where fewer than k are left, the rest is padding with a score of -inf. Raises
    UserError where a best score is NaN or +inf.
    """
    best, items = topk(_scores_without(net, sequences, users, out), k)
    _refuse_unless_finite(best[:, :1])
    return items.where(best > -torch.inf, PADDING).cpu().numpy(), best.cpu().numpy()


def topk(scores, k):
    """``scores.topk(k, dim=1)`` of scores (b, N), faster for small k where they lie item by item.

    FOLD items make a group: the k + 1 best are in the k + 1 groups with the best maxima, or among
    the few items that no group has. In rows with a tie torch itself decides which come first.
    """
    b, N = scores.shape
    groups = N // FOLD
    if scores.stride(1) == 1 or k >= groups // 8:
        return scores.topk(k, dim=1)
    items = torch.arange(N, device=scores.device)
    grouped, rest = items[: groups * FOLD].view(FOLD, groups).T, items[groups * FOLD :]
    maxima = scores.T[: groups * FOLD].reshape(FOLD, groups, b).amax(0).T  # (b, groups)
    members = grouped[maxima.topk(k + 1, dim=1).indices].flatten(1)  # (b, (k + 1) * FOLD)
    candidates = torch.cat([members, rest.expand(b, -1)], 1)
    best, place = scores.gather(1, candidates).topk(k + 1, dim=1)
    chosen = candidates.gather(1, place)[:, :k]
    tied = (best[:, 1:] == best[:, :-1]).any(1).nonzero().flatten()
    if len(tied):
        chosen[tied] = scores[tied].topk(k, dim=1).indices
    return best[:, :k], chosen


def _refuse_unless_finite(scores):
    """UserError for NaN and +inf; -inf is what is left out."""
    if not (scores < torch.inf).all():
        raise UserError("a score is not a finite number; the model's weights are damaged")


def _scores_without(net, sequences, users, out):
    """Scores (b, N) of all items, a tensor; padding and what is ``out`` have -inf."""
    device = next(net.parameters()).device
    scores = net.score_all(
        torch.from_numpy(sequences).to(device), torch.from_numpy(users).to(device)
    )
    scores[out] = -torch.inf
    scores[:, PADDING] = -torch.inf
    return scores


def stored(rows):
    """Where a CSR matrix has its elements: (rows, columns), two int arrays."""
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.indices


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


def metrics_line(means, ks=KS):
    """The authors' log format: ``map=…, precisions=…,…,…, recalls=…, ndcgs=…``.

    ndcgs is the paper's variant.
    """
    lists = {"precisions": "precision", "recalls": "recall", "ndcgs": "ndcg_paper"}
    values = [f"map={means['map']:.4f}"] + [
        f"{label}=" + ",".join(f"{means[f'{name}@{k}']:.4f}" for k in ks)
        for label, name in lists.items()
    ]
    return ", ".join(values)
