import math

import pytest
import torch

from losses import (
    distillation_loss,
    estimated_rank,
    normalized,
    pairwise_loss,
    pointwise_loss,
    position_importance_weight,
    ranking_discrepancy_weight,
)


@pytest.mark.parametrize("B", [1, 4])
def test_pointwise_loss_equals_the_naive_form(B):
    torch.manual_seed(0)
    positive, negative = (torch.randn(B, n).double() for n in (2, 3))
    naive = torch.log(positive.sigmoid()).sum(1) + torch.log(1 - negative.sigmoid()).sum(1)
    assert torch.allclose(pointwise_loss(positive, negative), -naive.mean(), atol=1e-12)


@pytest.mark.parametrize("B", [1, 4])
def test_pairwise_loss_equals_the_naive_form(B):
    torch.manual_seed(0)
    positive, negative = (torch.randn(B, n).double() for n in (2, 3))
    pairs = [(p, n) for p in positive.T for n in negative.T]
    naive = sum(torch.log((p - n).sigmoid()) for p, n in pairs)
    assert torch.allclose(pairwise_loss(positive, negative), -naive.mean(), atol=1e-12)


def test_losses_are_finite_for_any_score():
    assert pairwise_loss(torch.tensor([[-1e30]]), torch.tensor([[1e30]])).isfinite()
    positive = torch.tensor([[-110.0, -1e30]], requires_grad=True)
    negative = torch.tensor([[20.0, 1e30]], requires_grad=True)
    loss = pointwise_loss(positive, negative) + distillation_loss(positive, torch.ones(2))
    loss.backward()
    assert loss.isfinite()
    assert positive.grad.tolist() == [[-2, -2]]
    assert negative.grad.tolist() == [[1, 1]]


def test_position_importance_is_equation_8():
    K, lamda = 4, 2.0
    raw = [math.exp(-r / lamda) for r in range(1, K + 1)]
    expected = [value / sum(raw) for value in raw]
    assert position_importance_weight(K, lamda).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("lamda", [1e-320, 1e-3, 1e300])
def test_position_importance_is_finite(lamda):
    weight = position_importance_weight(10, lamda)
    assert weight.isfinite().all()
    assert weight.sum() == pytest.approx(1)


def test_estimated_rank_counts_items_without_padding():
    """floor((num_items - 1) n / S): one item too many gives 7 here and not 6."""
    candidate = torch.tensor([[0.0]])
    sample = torch.tensor([[1.0, 1, 1, 1, 1, 1, -1]])
    assert estimated_rank(candidate, sample, num_items=8 + 1).item() == 6  # floor(8 * 6 / 7)
    assert estimated_rank(candidate, sample, num_items=9 + 1).item() == 7


def test_estimated_rank_is_exact_where_floats_are_not():
    """A float quotient falls just short of some of these whole numbers."""
    n = torch.arange(101)[:, None]
    sample = torch.where(torch.arange(100) < n, 1.0, -1.0)  # n of 100 are above
    assert torch.equal(estimated_rank(torch.zeros(101, 1), sample, num_items=701), 7.0 * n)


def test_a_sample_that_ties_or_is_the_candidate_is_not_above():
    candidate = torch.tensor([[0.0, 1.0]])
    sample = torch.tensor([[0.0, 0.0]])
    assert estimated_rank(candidate, sample, num_items=11).tolist() == [[0, 0]]
    sample = torch.tensor([[1e-7, 2.0]])  # the first is candidate 0, scored by another kernel
    same = torch.tensor([[[True, False], [False, False]]])
    assert estimated_rank(candidate, sample, num_items=11, same=same).tolist() == [[5, 5]]


def test_ranking_discrepancy_is_equation_9():
    rank = torch.tensor([[0.0, 0.0, 12.0]])
    expected = [[0, 0, math.tanh(0.1 * (12 - 2))]]
    assert ranking_discrepancy_weight(rank, 0.1).tolist() == [pytest.approx(expected[0])]


def test_normalized_weight_sums_to_one_or_is_zero():
    weight = normalized(torch.tensor([[1.0, 3.0], [0.0, 0.0]]))
    assert weight.tolist() == [[0.25, 0.75], [0, 0]]
