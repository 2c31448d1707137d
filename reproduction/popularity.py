"""Whether a model serves the popular items only."""

import numpy as np
import torch

from evaluation import best_items, device_of, scoring_blocks
from interactions import PADDING, csr_indices


def popular_items(train):
    """(num_items,) bool: the most popular items, as few as have half of the rows of ``train``,
    Interactions; of equally popular ones those with the lower number."""
    counts = np.bincount(train.item_ids, minlength=train.num_items)
    order = np.argsort(-counts, kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    popular = np.zeros(train.num_items, dtype=bool)
    popular[order[before < len(train) / 2]] = True
    return popular


@torch.inference_mode()
def by_popularity(net, train, test, k=10):
    """{"recall_popular", "recall_other", "coverage"} of a network's k best items, floats.

    The recalls are over the targets that are popular and over the others, those among them that
    are not in train, and means over the users who have such a target; NaN where nobody has.
    Coverage is the share of all items that are among somebody's k best. train, test: as for
    ``evaluate_ranking``.
    """
    net.eval()
    seen, wanted = train.tocsr(), test.tocsr()
    users = np.flatnonzero(np.diff(wanted.indptr))
    inputs = train.test_sequences.inputs(device_of(net))
    best = []
    for place in scoring_blocks(len(users), train.num_items):
        block = users[place]
        some = [part[block] for part in inputs]
        best.append(best_items(net, some, csr_indices(seen[block]), min(k, train.num_items))[0])
    best = np.concatenate(best)
    row, item = csr_indices(wanted[users])
    hit = (best[row] == item[:, None]).any(1)
    popular = np.append(popular_items(train), False)[np.minimum(item, train.num_items)]
    found = {}
    for name, of_kind in (("recall_popular", popular), ("recall_other", ~popular)):
        targets = np.bincount(row[of_kind], minlength=len(users))
        hits = np.bincount(row[of_kind], weights=hit[of_kind], minlength=len(users))
        some = targets > 0
        found[name] = float((hits[some] / targets[some]).mean()) if some.any() else np.nan
    recommended = np.setdiff1d(best, [PADDING])
    return found | {"coverage": len(recommended) / (train.num_items - 1)}
