"""Distil a small recommender from a large one through its top-K lists."""

import os
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from evaluation import best_items, device_of, scoring_blocks
from interactions import PADDING, csr_indices
from losses import (
    distillation_loss,
    estimated_rank,
    normalized,
    position_importance_weight,
    ranking_discrepancy_weight,
)
from recommender import NETWORKS, Recommender
from support.checkpoint import fingerprint_weights, read_checkpoint
from support.command_line import (
    checkpoint_name,
    evaluate_checkpoint,
    training_command,
    training_options,
    training_parser,
)
from support.list_cache import is_bare, load_or_build_lists, require_same_lists
from support.run import COMPARED
from utils import UserError, numeric_flag, path_flag


def distill(network, script, description, d, teacher_d, argv=None):
    """Distil a student by a command line; return the exit status.

    teacher_d: the default dimension of its teacher. The rest as for ``recommender.train``.
    """
    parser = distillation_parser(description, network, d, teacher_d)
    return training_command(parser, script, network, NETWORKS, argv, partial(_plan, network))


@dataclass(eq=False)
class DistilledRecommender(Recommender):
    """A Recommender that also learns from a teacher's list of K items per training instance.

    Parameters
    ----------
    make_network, options: as for Recommender.
    teacher_topk: (instances, K) integer array, row i for window i of ``train.sequences``, the
        teacher's best item first. A 0 is padding and weighs nothing.
    teach_alpha: factor of the distillation loss beside the ranking loss, a / (1 - a) for the
        paper's balance a.
    lamda: of the position importance (Eq. 8).
    mu: of the ranking discrepancy (Eq. 9).
    dynamic_samples: items S that estimate a rank.
    dynamic_start_epoch: the last epoch without the discrepancy.
    weights: "hybrid", "position", "discrepancy" or "uniform", the columns of the paper's Table 4.
    hybrid_weight: "product", as in the authors' code, or "normalized", as in the paper.
    """

    teacher_topk: np.ndarray = field(kw_only=True)
    teach_alpha: float = 1.0
    lamda: float = 1.0
    mu: float = 0.1
    dynamic_samples: int = 100
    dynamic_start_epoch: int = 10
    weights: str = "hybrid"
    hybrid_weight: str = "product"

    tells_regular_loss = True

    def prepare(self, train):
        super().prepare(train)
        K = self.teacher_topk.shape[1]
        self.lists = torch.from_numpy(self.teacher_topk).to(self.device)
        self.has_padding = bool((self.lists == PADDING).any())
        by_position = self.weights in {"hybrid", "position"}
        weight = position_importance_weight(K, self.lamda) if by_position else torch.ones(K) / K
        self.static_weight = weight.to(self.device)

    def more_items(self, rows):
        return self.lists[rows].long()

    def more_loss(self, rows, users, x, items, scores):
        weight = self._weight(rows, users, x.detach(), items, scores.detach())
        return self.teach_alpha * distillation_loss(scores, weight)

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
    for block in scoring_blocks(len(lists), train.num_items):
        if exclude == "observed":
            out = csr_indices(observed[windows.user_ids[block]])
        else:
            targets = windows.targets[block]
            out = np.repeat(np.arange(len(targets)), targets.shape[1]), targets.flatten()
        # Only an owner of everything, on whose windows nothing is trained, has fewer than K.
        lists[block], _ = best_items(net, [part[block] for part in inputs], out, K)
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


# --------------------------------------------------------------------------- command line


def distillation_parser(description, network, d, teacher_d=100):
    """The flags of ``training_parser`` and those of distillation."""
    parser = training_parser(description, network, d)
    group = parser.add_argument_group("distillation")
    flag = partial(numeric_flag, group)
    # fmt: off
    path_flag(group, "--teacher_model_path", "the teacher's checkpoint, of any network (default: "
              f"DIR/DATASET-{network.name}-dim=TEACHER_MODEL_DIM.pth.tar)")
    flag("--teacher_model_dim", teacher_d, int, "[1, 100000]",
         "d in the default path of the teacher")
    path_flag(group, "--teacher_topk_path", "cache of the teacher's lists (default: "
              "DIR/DATASET-[NETWORK-]teacher-dim=D-top=K.npy), or lists of anybody's, which need "
              "no teacher's checkpoint")
    group.add_argument("--teacher_exclude", default="target", choices=["target", "observed"],
                       help="what the lists leave out: the target, as in the authors' code, or "
                       "all of the user's train items, as in the paper")
    flag("--K", 10, int, "[1, 1e9]", "K: length of the teacher's list")
    flag("--teach_alpha", 1.0, float, "[0, 1e6]",
         "alpha / (1 - alpha): factor of the distillation loss")
    flag("--lamda", 1.0, float, "(0, 1e6]", "lambda of Eq. 8, the position importance")
    flag("--mu", 0.1, float, "(0, 1e6]", "mu of Eq. 9, the ranking discrepancy")
    flag("--dynamic_samples", 100, int, "[1, 1e9]", "epsilon: items that estimate a rank",
         "--num_dynamic_samples")
    flag("--dynamic_start_epoch", 10, int, "[0, 1e9]", "last epoch without ranking discrepancy")
    group.add_argument("--weights", default="hybrid",
                       choices=["hybrid", "position", "discrepancy", "uniform"],
                       help="w of Table 4: w^a w^b, w^a, w^b / K or 1 / K; up to "
                       "--dynamic_start_epoch the first is w^a and the third 1 / K")
    group.add_argument("--hybrid_weight", default="product", choices=["product", "normalized"],
                       help="w^a w^b as it is, as in the authors' code, or divided by its sum, as "
                       "in the paper")
    # fmt: on
    return parser


def _plan(network, args, data, path_of):
    """The student's path, and the function that makes it; UserError where no lists could be filled,
    there is no teacher, or the student would replace it."""
    check_K(args.K, data.train, args.teacher_exclude)
    teacher = _read_teacher(args, data, network)
    path = path_of(student_suffix(network, teacher["network"] if teacher else network))
    if teacher and os.path.realpath(teacher["path"]) == os.path.realpath(path):
        raise UserError(f"{path}: is the teacher, and the student would replace it; use another"
                        " --output_dir")  # fmt: skip
    return path, partial(_make_distilled, teacher)


def student_suffix(network, teacher):
    """The end of a student's name; network, teacher: the classes of both."""
    return "-rd" if teacher is network else f"-rd-from-{teacher.name}"


def _read_teacher(args, data, network):
    """The teacher's checkpoint; None where the lists are anybody's and name none. UserError where
    there is no such file."""
    lists = args.teacher_topk_path
    if not args.teacher_model_path and lists and is_bare(lists):
        return None
    default = checkpoint_name(data.name, network, args.teacher_model_dim)
    path = args.teacher_model_path or str(Path(args.output_dir, default))
    if not os.path.exists(path):
        raise UserError(
            f"{path}: no such teacher{f' to make {lists}' if lists else ''}; train it with"
            f" train_{network.name}.py, or name one with --teacher_model_path"
        )
    return read_checkpoint(path, NETWORKS)


def _make_distilled(teacher, args, data, checkpoint, make_network):
    """The DistilledRecommender that the flags describe, and what its lists were made from."""
    lists, made_from = _lists_for(args, data, teacher, checkpoint)
    names = ("teach_alpha", "lamda", "mu", "dynamic_samples", "dynamic_start_epoch", "weights",
             "hybrid_weight")  # fmt: skip
    options = training_options(args) | {name: getattr(args, name) for name in names}
    model = DistilledRecommender(make_network, teacher_topk=lists, **options)
    return model, made_from


def _lists_for(args, data, teacher, student=None):
    """Load or build the lists for the data, and print the metrics of the teacher, if there is one.

    teacher, student: its checkpoint and the one to resume, or None. Returns (lists, what they were
    made from).
    """
    named = args.teacher_topk_path
    net, path, made_from = _evaluated(args, data, teacher) if teacher else (None, named, {})
    if student and not named:
        require_same_lists(student, made_from)  # before a cache is replaced
    lists, made_from = load_or_build_lists(
        Path(named or path),
        named is not None,
        made_from,
        (len(data.train.sequences.user_ids), args.K),
        data.train.num_items,
        partial(teacher_lists, net, data.train, args.K, args.teacher_exclude),
    )
    if student and named:
        require_same_lists(student, made_from)
    return lists, made_from


def _evaluated(args, data, teacher):
    """Load a teacher and print its metrics; returns its network, the default path of its lists, and
    what these are made from."""
    path = teacher["path"]
    d, L = (teacher["architecture"][name] for name in ("d", "L"))
    if L and L != args.L:  # 0: it looks at no window
        raise UserError(f"{path}: the teacher's L is {L}, this run's is {args.L}; use --L {L}")
    epochs = teacher["config"].get("n_iter") or 0
    if epochs > teacher["epoch_num"]:
        print(f"note: {path}: the teacher stopped at epoch {teacher['epoch_num']} of {epochs}")
    net = evaluate_checkpoint(args, data, teacher, label=f"Teacher (d={d})")
    settings = net.architecture.items()
    told = {*teacher["network"].arguments_of(teacher["state_dict"]), "L", "drop"}  # no matter
    made_from = {
        "teacher": fingerprint_weights(teacher),
        "teacher_run": {part: teacher.get("run", {}).get(part) for part in COMPARED},
        "teacher_epochs": teacher["epoch_num"],
        "data": data.identity["fingerprint"],
        "L": args.L,
        "T": args.T,
        "K": args.K,
        "exclude": args.teacher_exclude,
        "activations": ", ".join(value for _, value in settings if isinstance(value, str)),
    } | {name: v for name, v in settings if name not in told and not isinstance(v, str)}
    kind = "" if teacher["network"] is NETWORKS[0] else f"{net.name}-"
    name = f"{data.name}-{kind}teacher-dim={d}-top={args.K}.npy"
    return net, Path(args.output_dir, name), made_from
