import math
import tracemalloc

import numpy as np
import pytest
import torch

import evaluation
from evaluation import best_items, evaluate_ranking, mean_metrics, metrics_line
from interactions import Interactions
from utils import UserError


class FixedScores(torch.nn.Module):
    """Gives a user the same scores whatever the sequence, laid out as Caser's."""

    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.as_tensor(scores, dtype=torch.float32))

    def score_all(self, sequences, users, history=None):
        assert not self.training, "dropout would be in the scores"
        return self.scores[users].T.contiguous().T


def slow_metrics(scores, seen, wanted, ks):
    """One user: sort, look, count. Behind every tie, but targets that tie have distinct ranks."""
    items = [i for i in range(1, len(scores)) if i not in seen]
    ranking = sorted(items, key=lambda i: (-scores[i], i in wanted))
    hits = [item in wanted for item in ranking]
    result = {
        "map": sum(sum(hits[: r + 1]) / (r + 1) for r, hit in enumerate(hits) if hit) / len(wanted)
    }
    for k in ks:
        result[f"precision@{k}"] = sum(hits[:k]) / k
        result[f"recall@{k}"] = sum(hits[:k]) / len(wanted)
        ideal = sum(1 / math.log2(r + 2) for r in range(min(k, len(wanted))))
        for name, cut in (("ndcg", k), ("ndcg_paper", min(k, len(wanted)))):
            dcg = sum(hit / math.log2(r + 2) for r, hit in enumerate(hits[:cut]))
            result[f"{name}@{k}"] = dcg / ideal
    return result


def interactions(train, test):
    """Both as Interactions, from rows (user, item)."""
    train = Interactions(*zip(*train, strict=True))
    train.to_sequence(2, 1)
    return train, Interactions(*zip(*test, strict=True), train.user_map, train.item_map)


@pytest.mark.parametrize("block", [1 << 24, 500, 50])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_equals_the_slow_version(monkeypatch, levels, block):
    monkeypatch.setattr(evaluation, "BLOCK", block)
    monkeypatch.setattr(evaluation, "CACHE", block // 2)
    rng = np.random.default_rng(levels)
    train, test = [], []
    for user in range(30):
        train += [(user, item) for item in rng.integers(0, 40, rng.integers(2, 20))]
        test += [(user, item) for item in rng.integers(0, 50, rng.integers(0, 12))]
    train, test = interactions(train, test)
    scores = rng.integers(0, levels, (train.num_users, train.num_items)).astype(float)
    scores[:, 0] = 2000  # padding may score as it likes
    ks = (1, 3, 10, 45)
    ours = evaluate_ranking(FixedScores(scores), train, test, ks)
    seen, wanted = train.tocsr(), test.tocsr()
    users = [user for user in range(train.num_users) if wanted[user].nnz]
    assert ours.pop("user").tolist() == users
    for place, user in enumerate(users):
        parts = (set(rows[user].indices) for rows in (seen, wanted))
        expected = slow_metrics(scores[user], *parts, ks)
        assert {name: values[place] for name, values in ours.items()} == pytest.approx(expected)


def test_targets_that_train_does_not_hold_take_no_memory(monkeypatch):
    """Nor do comparisons, whatever a user has."""
    sizes = []

    def lt(scores, target, out):
        sizes.append(out.numel())
        return less(scores, target, out=out)

    less = torch.lt
    monkeypatch.setattr(torch, "lt", lt)
    monkeypatch.setattr(evaluation, "CACHE", 300)
    train, test = interactions(
        [(user, item) for user in range(300) for item in (user, 300)],
        [(user, item) for user in range(300) for item in range(5 if user else 10_000)],
    )
    scores = torch.arange(300 * train.num_items).view(300, -1)
    tracemalloc.start()
    result = evaluate_ranking(FixedScores(scores), train, test)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert max(sizes) <= 300
    assert peak < 300 * 10_000  # bytes: less than one for each pair of a user and a target
    assert result["recall@10"][0] == pytest.approx(10 / 10_000)


# ------------------------------------------------------------------------- the best items


@pytest.mark.parametrize("k", [1, 12, 25])
def test_best_items_are_without_padding_and_what_is_out(k):
    scores = torch.randint(1000, (7, 1607), generator=torch.Generator().manual_seed(k)).float()
    scores[:, 0] = 1000  # padding may score as it likes
    scores[6, k // 2 :] = -torch.inf  # fewer than k are left
    out = np.array([0, 0, 0, 5]), np.array([9, 8, 1606, 3])
    scores[0, [9, 8, 1606]] = scores[5, 3] = 1000
    allowed = scores.clone()
    allowed[:, 0] = allowed[out] = -torch.inf
    expected, items = allowed.topk(k, dim=1)
    net = FixedScores(scores).eval()
    found, best = best_items(net, (None, torch.arange(7)), out, k)
    assert (best == expected.numpy()).all()
    assert (found == items.where(expected > -torch.inf, 0).numpy()).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_best_items_refuses_scores_that_are_not_finite(value):
    scores = torch.zeros(2, 2000)
    scores[1, 1234] = value
    with pytest.raises(UserError, match="finite"):
        best_items(FixedScores(scores).eval(), (None, torch.arange(2)), ([], []), 3)


# ------------------------------------------------------------------------------- by hand


def one_user(scores, targets, ks=(10,)):
    """A user who has seen i1 and is tested on ``targets`` among items i1..iN."""
    train = [("u", 1), *(("v", n) for n in range(1, len(scores) - 1)), ("w", len(scores) - 1)]
    train, test = interactions(train, [("u", n) for n in targets])
    return evaluate_ranking(FixedScores([scores] * 3), train, test, ks)


def test_one_target_at_rank_two():
    result = one_user([9, 9, 3, 2, 1], [3])
    assert result["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert result["ndcg_paper@10"] == 0  # k is cut to the one target
    assert result["map"] == pytest.approx(0.5)


def test_precision_divides_by_k_with_fewer_candidates():
    assert one_user([9, 9, 3, 2], [2, 3])["precision@10"] == pytest.approx(0.2)


def test_a_target_that_was_seen_or_unknown_is_never_hit_but_counts():
    result = one_user([9, 9, 3, 2], [2, 1, 77])
    assert result["recall@10"] == pytest.approx(1 / 3)
    assert result["map"] == pytest.approx(1 / 3)
    assert one_user([9, 9, 3, 2], [77, 78])["map"].tolist() == [0]


def test_equal_scores_never_flatter():
    result = one_user([0, 0, 0, 0, 0, 0], [3], ks=(3, 4))
    assert (result["precision@3"], result["precision@4"]) == (0, 0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_target_whose_score_is_not_finite_is_refused(value):
    with pytest.raises(UserError, match="finite"):
        one_user([0, 0, 1, value], [3])


def test_nan_elsewhere_does_not_flatter():
    assert one_user([0, 0, math.nan, 1], [3])["map"] == pytest.approx(0.5)


def test_log_line_is_the_authors():
    assert metrics_line(mean_metrics(one_user([9, 9, 3, 2, 1], [3], ks=(3, 5, 10)))) == (
        "map=0.5000, precisions=0.3333,0.2000,0.1000, recalls=1.0000,1.0000,1.0000,"
        " ndcgs=0.0000,0.0000,0.0000"
    )
