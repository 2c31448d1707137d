"""The ranking losses and the weights of the distillation loss: one pure function an equation.

B batch, T targets, N negatives, K length of the teacher's list, S dynamic samples. Equation
numbers are those of Tang and Wang, "Ranking Distillation", KDD 2018. Everything is written with
log-sigmoids, so it is finite for any finite score.
"""

import torch
import torch.nn.functional as F


def pointwise_loss(positive, negative):
    """L^R: binary cross-entropy, the observed items against the sampled ones.

    positive: (B, T) scores, negative: (B, N) scores. Returns a scalar: the sum over an
    instance's items, the mean over instances, as in the authors' code.
    """
    per_instance = F.logsigmoid(positive).sum(1) + F.logsigmoid(-negative).sum(1)
    return -per_instance.mean()


def pairwise_loss(positive, negative):
    """BPR-Opt of Rendle et al., "BPR", UAI 2009, without its regularization, which is the
    optimizer's: the observed items against the sampled ones, in pairs.

    positive: (B, T) scores, negative: (B, N) scores. Returns a scalar: the sum over an
    instance's pairs, the mean over instances.
    """
    difference = positive[:, :, None] - negative[:, None, :]  # (B, T, N)
    return -F.logsigmoid(difference).sum((1, 2)).mean()


def distillation_loss(candidate, weight):
    """L^D: the items of the teacher's list as weighted positives.

    candidate: (B, K) the student's scores of them, weight: (B, K) or (K,). Returns a scalar:
    the sum over the list, the mean over instances. The caller multiplies it by teach_alpha.
    """
    return -(weight * F.logsigmoid(candidate)).sum(1).mean()


def position_importance_weight(K, lamda):
    """Eq. 8: w^a_r proportional to exp(-r / lamda) for r = 1..K, summing to 1.

    Returns (K,) float32. Stable for every lamda > 0: only differences of r matter.
    """
    r = torch.arange(K, dtype=torch.float64)
    return torch.softmax(-r / lamda, dim=0).float()


def estimated_rank(candidate, sample, num_items, same=None):
    """The student's own rank of each candidate, estimated from sampled items.

    candidate: (B, K) scores, sample: (B, S) scores, num_items: with padding counted.
    same: (B, K, S) bool, where a sample is the candidate itself; it never counts as above.
    Returns (B, K) in candidate's dtype: floor((num_items - 1) n / S), with n the number of
    samples scoring strictly above. 0 is the top, as in the authors' code.
    """
    above = sample[:, None, :] > candidate[:, :, None]  # (B, K, S)
    if same is not None:
        above &= ~same
    # In whole numbers: a float quotient may fall just short of the integer it should be.
    rank = above.sum(-1) * (num_items - 1) // sample.shape[1]
    return rank.to(candidate.dtype)


def ranking_discrepancy_weight(rank, mu):
    """Eq. 9: w^b_r = tanh(max(mu (rank of item r - r), 0)), both counted from 0.

    rank: (B, K) from ``estimated_rank``, column r the teacher's r-th item. Returns (B, K).
    """
    position = torch.arange(rank.shape[1], dtype=rank.dtype, device=rank.device)
    return torch.tanh((mu * (rank - position)).clamp(min=0))


def normalized(weight):
    """``weight`` (B, K) divided by its sum over r; 0 where that sum is 0."""
    total = weight.sum(1, keepdim=True)
    return weight / total.where(total > 0, 1)
