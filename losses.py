"""The ranking losses, the weights of the distillation loss, and later distillation losses: one pure
function an equation.

B batch, T targets, N negatives, K length of the teacher's list, S dynamic samples. Equation
numbers are those of Tang and Wang, "Ranking Distillation", KDD 2018. Everything is written with
log-sigmoids, log-sums and the like, so it is finite for any finite score.
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


# ------------------------------------------------------------- losses that came after the paper

LOWEST = -1e30  # stands for a score of -inf, whose differences and gradients would be NaN


def relaxed_ranking_loss(candidate, negative):
    """L_RRD of Kang et al., "DE-RRD", CIKM 2020: the Plackett-Luce likelihood of the teacher's
    order, all of it above the negatives, among which there is no order:

        - sum_{k=1..K} [ s_k - log(sum_{i=k..K} exp s_i + sum_{j=1..N} exp n_j) ]

    candidate: (B, K) the student's scores s of the teacher's list, the teacher's best first.
    negative: (B, N) its scores n of items that are not in the list. An item with a score of -inf
    weighs nothing. Returns a scalar: the sum over the list, the mean over instances.
    """
    listed = candidate > -torch.inf
    candidate, negative = candidate.clamp(min=LOWEST), negative.clamp(min=LOWEST)
    not_above = candidate.flip(1).logcumsumexp(1).flip(1)  # (B, K): of the k-th and those behind
    total = torch.logaddexp(not_above, negative.logsumexp(1, keepdim=True))
    return ((total - candidate) * listed).sum(1).mean()


def listwise_loss(candidate, teacher, temperature):
    """The list-wise cross-entropy (Cao et al., "ListNet", ICML 2007) of the student's scores s
    against the teacher's t, both softened as in Hinton et al. 2015 (arXiv 1503.02531):

        - sum_i softmax(t / temperature)_i log softmax(s / temperature)_i

    candidate: (B, K) the student's scores of the teacher's list, teacher: (B, K) the teacher's. An
    item to which both give -inf weighs nothing. temperature: above 0. Returns a scalar: the sum
    over the list, the mean over instances.
    """
    listed = teacher > -torch.inf
    candidate, teacher = candidate.clamp(min=LOWEST), teacher.clamp(min=LOWEST)
    wanted = torch.softmax(teacher / temperature, 1) * listed
    return -(wanted * torch.log_softmax(candidate / temperature, 1)).sum(1).mean()


def soft_label_loss(score, teacher, scale, shift):
    """L_CD of Lee et al., "Collaborative Distillation", ICDM 2019: binary cross-entropy against
    q = sigmoid((t + shift) / scale) of the teacher's scores t,

        - sum_i q_i log sigmoid(s_i) + (1 - q_i) log(1 - sigmoid(s_i))

    score: (B, n) the student's scores s, teacher: (B, n) the teacher's of the same items. scale:
    above 0. Returns a scalar: the sum over an instance's items, the mean over instances.
    """
    label = torch.sigmoid((teacher + shift) / scale)
    return F.binary_cross_entropy_with_logits(score, label, reduction="sum") / len(score)
