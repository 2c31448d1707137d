"""Recall of popular and other targets, and catalogue coverage, against a version by loops."""

import numpy as np
import pytest
from test_evaluation import FixedScores, interactions

import evaluation
from reproduction.popularity import by_popularity, popular_items


def test_the_popular_items_have_half_of_the_rows():
    """Items 1 to 4, numbered as they first occur, with 2, 3, 2 and 1 rows."""
    rows = [(0, "a"), (0, "b"), (1, "c"), (1, "b"), (2, "b"), (2, "d"), (3, "a"), (3, "c")]
    train, _ = interactions(rows, rows)
    assert popular_items(train).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("block", [1 << 24, 300])
def test_equals_the_slow_version(monkeypatch, block):
    monkeypatch.setattr(evaluation, "BLOCK", block)
    rng = np.random.default_rng(0)
    train, test = [], []
    for user in range(30):
        train += [(user, item) for item in rng.integers(0, rng.integers(1, 60), 15)]
        test += [(user, item) for item in rng.integers(0, 70, rng.integers(0, 12))]
    train, test = interactions(train, test)
    scores = rng.permuted(np.arange(30 * train.num_items)).reshape(30, -1)
    popular = {*np.flatnonzero(popular_items(train))}
    assert 0 < len(popular) < train.num_items // 2
    recalls, recommended = {True: [], False: []}, set()
    for user in range(30):
        seen, targets = ({*rows.tocsr()[user].indices} for rows in (train, test))
        left = [item for item in range(1, train.num_items) if item not in seen]
        best = {*sorted(left, key=lambda item: -scores[user, item])[:10]}
        recommended |= best if targets else set()
        for kind, of_users in recalls.items():
            some = {item for item in targets if (item in popular) == kind}
            of_users += [len(some & best) / len(some)] if some else []
    assert by_popularity(FixedScores(scores), train, test) == pytest.approx({
        "recall_popular": np.mean(recalls[True]),
        "recall_other": np.mean(recalls[False]),
        "coverage": len(recommended) / (train.num_items - 1),
    })  # fmt: skip
