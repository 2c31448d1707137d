import math

import pytest
import torch

from losses import (
    distillation_loss,
    estimated_rank,
    listwise_loss,
    normalized,
    pairwise_loss,
    pointwise_loss,
    position_importance_weight,
    ranking_discrepancy_weight,
    relaxed_ranking_loss,
    soft_label_loss,
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


# ------------------------------------------------------------------------------- later losses


def slow_relaxed_ranking_loss(candidate, negative):
    total = 0
    for s, n in zip(candidate, negative, strict=True):
        for k in range(len(s)):
            if s[k] > -math.inf:
                above = sum(s[i].exp() for i in range(k, len(s))) + sum(value.exp() for value in n)
                total = total - (s[k] - above.log())
    return total / len(candidate)


def slow_listwise_loss(candidate, teacher, temperature=1.5):
    total = 0
    for s, t in zip(candidate, teacher, strict=True):
        s, t = (row[row > -math.inf] / temperature for row in (s, t))
        for i in range(len(s)):
            wanted, given = (row[i].exp() / sum(value.exp() for value in row) for row in (t, s))
            total = total - wanted * given.log()
    return total / len(candidate)


def slow_soft_label_loss(score, teacher, scale=2.0, shift=0.7):
    total = 0
    for s, t in zip(score.flatten(), teacher.flatten(), strict=True):
        q = 1 / (1 + (-(t + shift) / scale).exp())
        total = total - q * s.sigmoid().log() - (1 - q) * (1 - s.sigmoid()).log()
    return total / len(score)


LATER = [  # the loss, its slow version, whether the second scores have a gradient
    (relaxed_ranking_loss, slow_relaxed_ranking_loss, True),
    (lambda s, t: listwise_loss(s, t, 1.5), slow_listwise_loss, False),
    (lambda s, t: soft_label_loss(s, t, 2.0, 0.7), slow_soft_label_loss, False),
]


@pytest.mark.parametrize(("fast", "slow", "both"), LATER)
def test_later_losses_and_their_gradients_equal_the_slow_form(fast, slow, both):
    torch.manual_seed(0)
    first, second = 3 * torch.randn(2, 4, 5).double()
    leaves = [first.requires_grad_(), second.requires_grad_()][: 1 + both]
    second.requires_grad_(both)
    holes = torch.zeros(4, 5, dtype=torch.bool)
    if slow is not slow_soft_label_loss:  # which sees no list, and so no padding
        holes[0, 1] = holes[1, 4] = holes[2, :] = True

    def results(loss, mask):
        value = loss(*(part.masked_fill(mask, -torch.inf) for part in (first, second)))
        return value, torch.stack(torch.autograd.grad(value, leaves))

    for mask in (holes, torch.zeros_like(holes)):
        (value, gradient), (wanted, slow_gradient) = results(fast, mask), results(slow, mask)
        assert value.item() == pytest.approx(wanted.item(), rel=1e-12)
        assert torch.allclose(gradient[:, ~mask], slow_gradient[:, ~mask], atol=1e-9)
        assert (gradient[:, mask] == 0).all()
    assert torch.autograd.gradcheck(fast, (first, second))  # finite differences


@pytest.mark.parametrize(("loss", "slow", "both"), LATER)
def test_later_losses_are_finite_for_any_score(loss, slow, both):
    extremes = torch.tensor([1e6, -1e6, 0, 5e5, -1e6, 1e6])
    nothing = torch.full((6,), -torch.inf)
    for first in (extremes, -extremes, nothing):
        for second in (extremes, -extremes, nothing):
            scores = first.expand(2, -1).clone().requires_grad_()
            value = loss(scores, second.expand(2, -1))
            value.backward()
            assert value.isfinite() or (first is nothing and slow is slow_soft_label_loss)
            assert scores.grad.isfinite().all()
