"""Ranking metrics over all items.

Protocol of the paper: every item is ranked, none sampled; the user's train items and padding
are out; targets are all of the user's distinct test items, and the mean goes over the users who
have any. A target that can't be ranked (it is in train, or unknown) is never hit and still
counts as a target.
"""

import numpy as np
import torch

from utils import UserError

KS = (3, 5, 10)
BLOCK = 1 << 24  # scores held at a time: bounds the memory of an evaluation


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

    Raises UserError where a target's score is not finite.
    """
    net.eval()
    seen, wanted = train.tocsr(), test.tocsr()
    users = np.flatnonzero(np.diff(wanted.indptr))
    device = next(net.parameters()).device
    size = max(1, BLOCK // train.num_items)
    ranks = [
        _target_ranks(net, train.test_sequences.sequences, seen, wanted, block, device)
        for block in np.split(users, range(size, len(users), size))
    ]
    row, rank = (np.concatenate(parts) for parts in zip(*ranks, strict=True))
    num_targets = np.diff(wanted.indptr)[users]
    return {"user": users} | metrics(np.searchsorted(users, row), rank, num_targets, ks)


def _target_ranks(net, sequences, seen, wanted, users, device):
    """The rankable targets of some users: their users (m,) and ranks (m,), from 0, both int64.

    Ties are broken against the target: it ranks behind everything it ties with, so that equal
    scores never flatter. Targets that tie with each other still take distinct ranks.
    """
    block = torch.from_numpy(users).to(device)
    scores = net.score_all(torch.from_numpy(sequences[users]).to(device), block)  # (b, N)
    seen, wanted = seen[users], wanted[users]
    seen_row = np.repeat(np.arange(len(users)), np.diff(seen.indptr))
    scores[seen_row, seen.indices] = -torch.inf
    scores[:, 0] = -torch.inf

    row = np.repeat(np.arange(len(users)), np.diff(wanted.indptr))
    known = wanted.indices < scores.shape[1]
    row = torch.from_numpy(row[known]).to(device)
    item = torch.from_numpy(wanted.indices[known].astype(np.int64)).to(device)
    score = scores[row, item]
    rankable = score > -torch.inf
    if score.isnan().any() or (score == torch.inf).any():
        raise UserError("a score is not a finite number; the model's weights are damaged")
    row, item, score = row[rankable], item[rankable], score[rankable]

    # Best target of a user first; then the ranks among others and among targets add up.
    order = torch.argsort(score, descending=True, stable=True)
    order = order[torch.argsort(row[order], stable=True)]
    row, item, score = row[order], item[order], score[order]
    start = torch.searchsorted(row, row)
    among_targets = torch.arange(len(row), device=device) - start
    scores[row, item] = -torch.inf
    among_others = torch.empty_like(row)
    step = max(1, BLOCK // scores.shape[1])
    for first in range(0, len(row), step):
        part = slice(first, first + step)
        below = scores[row[part]] < score[part, None]
        among_others[part] = scores.shape[1] - below.sum(1)
    return users[row.cpu().numpy()], (among_others + among_targets).cpu().numpy()


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
