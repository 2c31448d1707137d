"""Distil a small recommender from a large one, by Ranking Distillation or a loss that came after.

A method is a DistilledRecommender with two methods: which items to score for a batch, and the loss
from their scores. A fifth is one more such class, a line in METHODS, and its flags in METHOD_FLAGS
of support/teacher.py.
"""

import os
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np
import torch

from evaluation import best_items, device_of, scoring_blocks
from interactions import PADDING, csr_indices
from losses import (
    distillation_loss,
    estimated_rank,
    listwise_loss,
    normalized,
    position_importance_weight,
    ranking_discrepancy_weight,
    relaxed_ranking_loss,
    soft_label_loss,
)
from recommender import NETWORKS, Recommender
from support.command_line import training_command, training_options
from support.list_cache import load_or_build_lists, require_same_lists
from support.teacher import METHOD_FLAGS, distillation_parser, evaluated_teacher, read_teacher
from support.torchrun import dealt, require_alike
from utils import UserError


def distill(network, script, description, d, teacher_d, argv=None):
    """Distil a student by a command line; return the exit status.

    teacher_d: the default dimension of its teacher. The rest as for ``recommender.train``.
    """
    parser = distillation_parser(description, network, d, teacher_d)
    return training_command(parser, script, network, NETWORKS, argv, partial(_plan, network))


def _plan(network, args, data, path_of):
    """The student's path, and the function that makes it; UserError where no lists could be filled,
    there is no teacher, or the student would replace it."""
    method = METHODS[args.distillation]
    if method.uses_lists:
        check_K(args.K, data.train, args.teacher_exclude)
    teacher = read_teacher(args, data, network, NETWORKS, method)
    of = teacher["network"] if teacher else network
    path = path_of(student_suffix(args.distillation, network, of))
    if teacher and os.path.realpath(teacher["path"]) == os.path.realpath(path):
        raise UserError(f"{path}: is the teacher, and the student would replace it; use another"
                        " --output_dir")  # fmt: skip
    return path, partial(_make_distilled, method, teacher)


def student_suffix(method, network, teacher):
    """The end of a student's name. method: of METHODS. network, teacher: the classes of both."""
    return f"-{method}" if teacher is network else f"-{method}-from-{teacher.name}"


def _make_distilled(method, teacher, args, data, checkpoint, make_network):
    """The student that the flags describe, and what it learns from was made from."""
    net, lists, path, made_from = None, None, None, {}
    if teacher:
        net, path, made_from = evaluated_teacher(args, data, teacher, NETWORKS[0])
    named = args.teacher_topk_path
    if checkpoint and not named:
        require_same_lists(checkpoint, made_from)  # before a cache is replaced
    require_alike("the teacher", made_from)
    if method.uses_lists:
        lists, lists_made_from = load_or_build_lists(
            Path(named or path),
            named is not None,
            made_from,
            (len(data.train.sequences.user_ids), args.K),
            data.train.num_items,
            partial(teacher_lists, net, data.train, args.K, args.teacher_exclude),
        )
        made_from = (made_from if method.uses_scores else {}) | lists_made_from
    if checkpoint and named:
        require_same_lists(checkpoint, made_from)
    settings = [field.name for field in fields(method) if field.name in METHOD_FLAGS]
    options = training_options(args) | {name: getattr(args, name) for name in settings}
    teaching = {"teacher_topk": lists, "teacher": net if method.uses_scores else None}
    return method(make_network, **options, **teaching), made_from


# ---------------------------------------------------------------------------- the methods


@dataclass(eq=False, kw_only=True)
class DistilledRecommender(Recommender):
    """A Recommender that also learns from a teacher; how is a subclass's, which has ``more_items``
    and ``teaching_loss``.

    Parameters
    ----------
    make_network, options: as for Recommender.
    teach_alpha: factor of the distillation loss beside the ranking loss, a / (1 - a) for the
        paper's balance a.
    teacher_topk: (instances, K) integer array, row i for window i of ``train.sequences``, the
        teacher's best item first; None where the method uses no lists. A 0 is padding: a subclass
        gives it no weight.
    teacher: its network; None where the method uses no scores of it.
    """

    teach_alpha: float = 1.0
    teacher_topk: np.ndarray | None = None
    teacher: torch.nn.Module | None = field(default=None, repr=False)

    uses_lists = True  # the teacher's list of K items for each training instance
    uses_scores = False  # the teacher's scores of any items: ``teacher_scores``
    tells_regular_loss = True

    def prepare(self, train):
        super().prepare(train)
        if self.uses_lists:
            self.lists = torch.from_numpy(self.teacher_topk).to(self.device)
        if self.uses_scores:
            self.teacher.to(self.device).eval()

    def more_items(self, rows, users, x):
        """The items (B, M) int64 of which ``teaching_loss`` wants the student's scores; here the
        teacher's lists."""
        return self.lists[rows].long()

    def more_loss(self, rows, users, x, items, scores):
        return self.teach_alpha * self.teaching_loss(rows, users, x, items, scores)

    def teaching_loss(self, rows, users, x, items, scores):
        """A scalar from the student's ``scores`` (B, M) of ``items``, summed over an instance's
        items, mean over instances. x: what ``represent`` gave for the instances ``rows`` (B,) of
        ``users`` (B,)."""
        raise NotImplementedError

    @torch.no_grad()
    def teacher_scores(self, rows, users, items):
        """The teacher's scores (B, M) of ``items``."""
        x = self.teacher.represent(self.sequences[rows], users, self.history[rows])
        return self.teacher.score(x, items)


@dataclass(eq=False, kw_only=True)
class RankingDistillation(DistilledRecommender):
    """RD (Tang and Wang, KDD 2018): the teacher's list as positives, each with a weight.

    Parameters
    ----------
    lamda: of the position importance (Eq. 8).
    mu: of the ranking discrepancy (Eq. 9).
    dynamic_samples: items S that estimate a rank.
    dynamic_start_epoch: the last epoch without the discrepancy.
    weights: "hybrid", "position", "discrepancy" or "uniform", the columns of the paper's Table 4.
    hybrid_weight: "product", as in the authors' code, or "normalized", as in the paper.
    """

    lamda: float = 1.0
    mu: float = 0.1
    dynamic_samples: int = 100
    dynamic_start_epoch: int = 10
    weights: str = "hybrid"
    hybrid_weight: str = "product"

    def prepare(self, train):
        super().prepare(train)
        K = self.lists.shape[1]
        self.has_padding = bool((self.lists == PADDING).any())
        by_position = self.weights in {"hybrid", "position"}
        weight = position_importance_weight(K, self.lamda) if by_position else torch.ones(K) / K
        self.static_weight = weight.to(self.device)

    def teaching_loss(self, rows, users, x, items, scores):
        weight = self._weight(rows, users, x.detach(), items, scores.detach())
        return distillation_loss(scores, weight)

    @torch.no_grad()
    def _weight(self, rows, users, x, items, scores):
        """w_r for the teacher's ``items`` (B, K) with the student's ``scores`` (B, K)."""
        weight = self.static_weight.expand_as(scores)
        if self.has_padding:
            weight = weight * (items != PADDING)
        epoch = self.epoch_num + 1
        if self.weights in {"position", "uniform"} or epoch <= self.dynamic_start_epoch:
            return weight
        samples = self.draw_dynamic_samples(rows, users)
        same = samples[:, None, :] == items[:, :, None]  # (B, K, S)
        rank = estimated_rank(scores, self.net.score(x, samples), self.sampler.n + 1, same)
        weight = weight * ranking_discrepancy_weight(rank, self.mu)
        if self.weights == "hybrid" and self.hybrid_weight == "normalized":
            weight = normalized(weight)
        return weight

    def draw_dynamic_samples(self, rows, users):
        """(B, S) int64, items that ``users`` (B,) do not have in train."""
        return self.sampler.draw(users, self.dynamic_samples)


@dataclass(eq=False, kw_only=True)
class RelaxedRankingDistillation(DistilledRecommender):
    """RRD, the relaxed ranking distillation of DE-RRD (Kang et al., CIKM 2020): the teacher's list
    in its order, above negatives.

    Parameters
    ----------
    rrd_negatives: how many are drawn anew for each batch, from the items that a user does not have
        in train. One that is in the list weighs nothing.
    """

    rrd_negatives: int = 50

    has_sparse_gradients = True

    def more_items(self, rows, users, x):
        listed = super().more_items(rows, users, x)
        return torch.cat([listed, self.sampler.draw(users, self.rrd_negatives)], 1)

    def teaching_loss(self, rows, users, x, items, scores):
        sizes = [self.lists.shape[1], self.rrd_negatives]
        listed, drawn = items.split(sizes, 1)
        in_list = (drawn[:, :, None] == listed[:, None, :]).any(2)
        out = torch.cat([listed == PADDING, in_list], 1)
        return relaxed_ranking_loss(*scores.masked_fill(out, -torch.inf).split(sizes, 1))


@dataclass(eq=False, kw_only=True)
class ListwiseDistillation(DistilledRecommender):
    """The cross-entropy of the student's softmax over the teacher's list against the teacher's.

    Parameters
    ----------
    temperature: what the scores of both are divided by.
    """

    temperature: float = 1.0

    uses_scores = True
    has_sparse_gradients = True

    def teaching_loss(self, rows, users, x, items, scores):
        teacher = self.teacher_scores(rows, users, items)
        both = (part.masked_fill(items == PADDING, -torch.inf) for part in (scores, teacher))
        return listwise_loss(*both, self.temperature)


@dataclass(eq=False, kw_only=True)
class CollaborativeDistillation(DistilledRecommender):
    """CD (Lee et al., ICDM 2019): the teacher's scores as soft labels of items that a user does not
    have in train, drawn the more often the higher the guide ranks them.

    Of N items that of rank r, from 1, is drawn with P proportional to 1 - r / N, the paper's linear
    law, as the better of two different uniform draws.

    Parameters
    ----------
    cd_samples: how many are drawn anew for each batch.
    cd_scale, cd_shift: a label is sigmoid((score + cd_shift) / cd_scale).
    cd_guide: who ranks, "student", as it is now, or "teacher".
    """

    cd_samples: int = 50
    cd_scale: float = 1.0
    cd_shift: float = 0.0
    cd_guide: str = "student"

    uses_lists = False
    uses_scores = True
    has_sparse_gradients = True

    @torch.no_grad()
    def more_items(self, rows, users, x):
        pairs = self.sampler.draw_pairs(users, self.cd_samples)  # (B, n, 2)
        items = pairs.flatten(1)
        scores = (
            self.net.score(x, items)
            if self.cd_guide == "student"
            else self.teacher_scores(rows, users, items)
        )
        better = scores.view(pairs.shape).argmax(2, keepdim=True)
        return pairs.gather(2, better).squeeze(2)

    def teaching_loss(self, rows, users, x, items, scores):
        teacher = self.teacher_scores(rows, users, items)
        return soft_label_loss(scores, teacher, self.cd_scale, self.cd_shift)


METHODS = {
    "rd": RankingDistillation,
    "rrd": RelaxedRankingDistillation,
    "listwise": ListwiseDistillation,
    "cd": CollaborativeDistillation,
}


# -------------------------------------------------------------------- the teacher's lists


def teacher_lists(net, train, K, exclude="target"):
    """The teacher's K best items for every window of ``train.sequences``.

    exclude: "target", the window's own targets are left out, or "observed", all of the user's
    train items. Padding always is. Returns (n, K) int32, best first.
    """
    net.eval()
    windows, observed = train.sequences, train.tocsr()
    inputs = windows.inputs(device_of(net))
    lists = np.empty((len(windows.user_ids), K), dtype=np.int32)

    def of_block(block):
        if exclude == "observed":
            out = csr_indices(observed[windows.user_ids[block]])
        else:
            targets = windows.targets[block]
            out = np.repeat(np.arange(len(targets)), targets.shape[1]), targets.flatten()
        # Only an owner of everything, on whose windows nothing is trained, has fewer than K.
        return best_items(net, [part[block] for part in inputs], out, K)[0].astype(np.int32)

    blocks = scoring_blocks(len(lists), train.num_items)
    for block, best in zip(blocks, dealt(blocks, of_block), strict=True):
        lists[block] = best
    return lists


def check_K(K, train, exclude):
    """UserError where some list could not be filled with K items."""
    items = train.num_items - 1
    if exclude == "observed":
        histories = np.diff(train.tocsr().indptr)
        left_out, what = histories[histories < items].max(initial=0), "the longest history"
    else:
        left_out, what = train.sequences.targets.shape[1], "T"
    most = items - left_out
    if most < 1:
        raise UserError(f"--K: no list can be filled: {items} items, {left_out} left out ({what})")
    if most < K:
        raise UserError(f"--K {K}: must be in [1, {most}]: the number of items less {what}")
