import math

import numpy as np
import pytest
import torch
from conftest import write_rows

import evaluation
from evaluation import best_items, evaluate_ranking, mean_metrics, metrics_line
from interactions import DataSet
from utils import UserError


class FixedScores(torch.nn.Module):
    def __init__(self, scores):
        super().__init__()
        self.scores = torch.nn.Parameter(torch.as_tensor(scores, dtype=torch.float32))

    def score_all(self, sequences, users):
        return self.scores[users].clone()


class ScoresByItem(FixedScores):
    """As Caser lays them out."""

    def score_all(self, sequences, users):
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


@pytest.mark.parametrize("block", [1 << 24, 500, 50])
@pytest.mark.parametrize("levels", [1, 3, 1000])
def test_equals_the_slow_version(tmp_path, monkeypatch, levels, block):
    monkeypatch.setattr(evaluation, "BLOCK", block)
    monkeypatch.setattr(evaluation, "CACHE", block // 2)
    rng = np.random.default_rng(levels)
    train, test = [], []
    for user in range(30):
        train += [(user, item) for item in rng.integers(0, 40, rng.integers(2, 20))]
        test += [(user, item) for item in rng.integers(0, 50, rng.integers(0, 12))]
    data = DataSet.load(
        "toy", write_rows(tmp_path / "a", train), write_rows(tmp_path / "b", test), 3, 1
    )
    scores = rng.integers(0, levels, (data.train.num_users, data.train.num_items)).astype(float)
    scores[:, 0] = 2000  # padding may score as it likes
    ks = (1, 3, 10, 45)
    ours = evaluate_ranking(ScoresByItem(scores), data.train, data.test, ks)
    seen, wanted = data.train.tocsr(), data.test.tocsr()
    users = [user for user in range(data.train.num_users) if wanted[user].nnz]
    assert ours["user"].tolist() == users
    for place, user in enumerate(users):
        expected = slow_metrics(
            scores[user], set(seen[user].indices), set(wanted[user].indices), ks
        )
        assert {name: values[place] for name, values in ours.items() if name != "user"} == (
            pytest.approx(expected)
        )


def test_targets_that_train_does_not_hold_take_no_memory(tmp_path, monkeypatch):
    """Nor do comparisons, whatever a user has."""
    sizes = []

    def lt(scores, target, out):
        sizes.append(out.numel())
        return less(scores, target, out=out)

    less = torch.lt
    monkeypatch.setattr(torch, "lt", lt)
    monkeypatch.setattr(evaluation, "CACHE", 100)
    train = [(user, item) for user in range(30) for item in (user, 30)]
    test = [(0, item) for item in range(10_000)] + [(user, 0) for user in range(1, 30)]
    data = DataSet.load(
        "toy", write_rows(tmp_path / "a", train), write_rows(tmp_path / "b", test), 2, 1
    )
    scores = torch.arange(30 * data.train.num_items).view(30, -1)
    tables = []
    full = np.full
    monkeypatch.setattr(np, "full", lambda *given: tables.append(full(*given)) or tables[-1])
    result = evaluate_ranking(ScoresByItem(scores), data.train, data.test)
    assert max(sizes) <= 100
    assert max(table.size for table in tables) <= 30 * data.train.num_items
    assert result["recall@10"][0] == pytest.approx(10 / 10_000)


def test_users_whose_targets_are_all_unknown_have_zeros(tmp_path):
    assert one_user(tmp_path, [9, 9, 3, 2], [77, 78])["map"].tolist() == [0]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_best_items_refuses_scores_that_are_not_finite(value):
    scores = torch.zeros(2, 2000)
    scores[1, 1234] = value
    out = np.empty(0, np.int64), np.empty(0, np.int64)
    with pytest.raises(UserError, match="finite"):
        best_items(ScoresByItem(scores), np.zeros((2, 1), np.int64), np.arange(2), out, 3)


@pytest.mark.parametrize("levels", [1, 3, 1000, 1 << 24])
@pytest.mark.parametrize("num_items", [30, 1600, 1607])
@pytest.mark.parametrize("k", [1, 11, 12, 25])
def test_best_items_are_torchs_with_ties_in_its_order(k, num_items, levels):
    generator = torch.Generator().manual_seed(levels)
    scores = torch.randint(levels, (7, num_items), generator=generator).float()
    scores[:, 0] = levels  # padding may score as it likes
    out = np.array([0, 0, 0, 5]), np.array([9, 8, num_items - 1, 3])
    allowed = scores.clone()
    allowed[:, 0] = allowed[out] = -torch.inf
    allowed[6, k:] = scores[6, k:] = -torch.inf  # fewer than k are left
    expected, items = allowed.topk(k, dim=1)
    for net in (FixedScores(scores), ScoresByItem(scores)):
        found, best = best_items(net, np.zeros((7, 1), np.int64), np.arange(7), out, k)
        assert (best == expected.numpy()).all()
        assert (found == items.where(expected > -torch.inf, 0).numpy()).all()


def one_user(tmp_path, scores, targets, ks=(10,)):
    """A user who has seen i1 and is tested on ``targets`` among items i1..iN."""
    train = [("u", "i1")] + [("v", f"i{n}") for n in range(1, len(scores) - 1)]
    train.append(("w", f"i{len(scores) - 1}"))
    test = [("u", f"i{n}") for n in targets]
    data = DataSet.load(
        "toy", write_rows(tmp_path / "a", train), write_rows(tmp_path / "b", test), 2, 1
    )
    return evaluate_ranking(FixedScores([scores] * 3), data.train, data.test, ks)


def test_one_target_at_rank_two(tmp_path):
    result = one_user(tmp_path, [9, 9, 3, 2, 1], [3])
    assert result["ndcg@10"] == pytest.approx(1 / math.log2(3))
    assert result["ndcg_paper@10"] == 0  # k is cut to the one target
    assert result["map"] == pytest.approx(0.5)


def test_precision_divides_by_k_with_fewer_candidates(tmp_path):
    assert one_user(tmp_path, [9, 9, 3, 2], [2, 3])["precision@10"] == pytest.approx(0.2)


def test_a_target_that_was_seen_or_unknown_is_never_hit_but_counts(tmp_path):
    result = one_user(tmp_path, [9, 9, 3, 2], [2, 1, 77])
    assert result["recall@10"] == pytest.approx(1 / 3)
    assert result["map"] == pytest.approx(1 / 3)


def test_equal_scores_never_flatter(tmp_path):
    assert one_user(tmp_path, [0, 0, 0, 0, 0, 0], [3], ks=(3, 4))["precision@3"] == 0
    assert one_user(tmp_path, [0, 0, 0, 0, 0, 0], [3], ks=(3, 4))["precision@4"] == 0.25


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_refused(tmp_path, value):
    with pytest.raises(UserError, match="finite"):
        one_user(tmp_path, [0, 0, 1, value], [3])


def test_nan_elsewhere_does_not_flatter(tmp_path):
    assert one_user(tmp_path, [0, 0, math.nan, 1], [3])["map"] == pytest.approx(0.5)


def test_log_line_is_the_authors(tmp_path):
    means = mean_metrics(one_user(tmp_path, [9, 9, 3, 2, 1], [3], ks=(3, 5, 10)))
    assert metrics_line(means) == (
        "map=0.5000, precisions=0.3333,0.2000,0.1000, recalls=1.0000,1.0000,1.0000,"
        " ndcgs=0.0000,0.0000,0.0000"
    )
