"""The teacher of a command line that distils: the flags of each method, the teacher's checkpoint,
and its lists.
"""

import os
from functools import partial
from pathlib import Path

from support.checkpoint import fingerprint_weights, read_checkpoint
from support.command_line import checkpoint_name, evaluate_checkpoint, training_parser
from support.list_cache import is_bare
from support.run import COMPARED
from utils import UserError, numeric_flag, path_flag

# The flags that not every method has: {flag: {method that has it: its default there}}. Every method
# has teach_alpha, one with lists K and teacher_exclude as well, and a flag for each of its fields.
METHOD_FLAGS = {
    "teach_alpha": {"rd": 1.0, "rrd": 0.03, "listwise": 3.0, "cd": 1.0},
    "K": {"rd": 10, "rrd": 50, "listwise": 50},
    "teacher_exclude": dict.fromkeys(("rd", "rrd", "listwise"), "target"),
    "lamda": {"rd": 1.0},
    "mu": {"rd": 0.1},
    "dynamic_samples": {"rd": 100},
    "dynamic_start_epoch": {"rd": 10},
    "weights": {"rd": "hybrid"},
    "hybrid_weight": {"rd": "product"},
    "rrd_negatives": {"rrd": 50},
    "temperature": {"listwise": 1.0},
    "cd_samples": {"cd": 50},
    "cd_scale": {"cd": 1.0},
    "cd_shift": {"cd": 0.0},
    "cd_guide": {"cd": "student"},
}


def distillation_parser(description, network, d, teacher_d=100):
    """The flags of ``training_parser`` and those of distillation. What is parsed has the flags of
    its method alone."""
    parser = training_parser(description, network, d)
    parser.settle = _settle
    group = parser.add_argument_group("distillation")
    # fmt: off
    group.add_argument("--distillation", default="rd", choices=METHOD_FLAGS["teach_alpha"],
                       help="the method: Ranking Distillation, or a later loss: relaxed ranking, "
                       "list-wise cross-entropy, Collaborative Distillation")
    path_flag(group, "--teacher_model_path", "the teacher's checkpoint, of any network (default: "
              f"DIR/DATASET-{network.name}-dim=TEACHER_MODEL_DIM.pth.tar)")
    numeric_flag(group, "--teacher_model_dim", teacher_d, int, "[1, 100000]",
                 "d in the default path of the teacher")
    path_flag(group, "--teacher_topk_path", "cache of the teacher's lists (default: "
              "DIR/DATASET-[NETWORK-]teacher-dim=D-top=K.npy), or lists of anybody's, with which "
              "rd and rrd need no teacher's checkpoint; cd uses no lists")
    choice, flag = partial(_choice, group), partial(_number, group)
    choice("teacher_exclude", ["target", "observed"],
           "what the lists leave out: the target, as in the authors' code, or all of the user's "
           "train items, as in the paper")
    flag("K", int, "[1, 1e9]", "K: length of the teacher's list")
    flag("teach_alpha", float, "[0, 1e6]", "alpha / (1 - alpha): factor of the distillation loss; "
         "search it on your own data, these are ml-100k's")
    flag("lamda", float, "(0, 1e6]", "lambda of Eq. 8, the position importance")
    flag("mu", float, "(0, 1e6]", "mu of Eq. 9, the ranking discrepancy")
    flag("dynamic_samples", int, "[1, 1e9]", "epsilon: items that estimate a rank",
         "--num_dynamic_samples")
    flag("dynamic_start_epoch", int, "[0, 1e9]", "last epoch without ranking discrepancy")
    choice("weights", ["hybrid", "position", "discrepancy", "uniform"],
           "w of Table 4: w^a w^b, w^a, w^b / K or 1 / K; up to --dynamic_start_epoch the first is "
           "w^a and the third 1 / K")
    choice("hybrid_weight", ["product", "normalized"],
           "w^a w^b as it is, as in the authors' code, or divided by its sum, as in the paper")
    flag("rrd_negatives", int, "[1, 1e6]", "items below the list, drawn for each batch")
    flag("temperature", float, "[1e-6, 1e6]", "what both networks' scores are divided by")
    flag("cd_samples", int, "[1, 1e6]", "items with a soft label, drawn for each batch")
    flag("cd_scale", float, "[1e-6, 1e6]", "a label is sigmoid((score + CD_SHIFT) / CD_SCALE)")
    flag("cd_shift", float, "[-1e6, 1e6]", "see --cd_scale")
    choice("cd_guide", ["student", "teacher"], "whose ranking says which items are drawn more")
    # fmt: on
    return parser


def _number(group, name, kind, interval, meaning, *other_names):
    numeric_flag(group, f"--{name}", None, kind, interval, _with_defaults(name, meaning),
                 *other_names)  # fmt: skip


def _choice(group, name, choices, meaning):
    group.add_argument(f"--{name}", choices=choices, help=_with_defaults(name, meaning))


def _with_defaults(name, meaning):
    methods = {}
    for method, default in METHOD_FLAGS[name].items():
        methods.setdefault(default, []).append(method)
    words = (f"{default} for {', '.join(names)}" for default, names in methods.items())
    return f"{meaning} (default: {'; '.join(words)})"


def _settle(args):
    """``args`` with the flags of its method alone, its defaults for those that were not given;
    UserError for one that the method does not have."""
    for name, defaults in METHOD_FLAGS.items():
        value = getattr(args, name)
        if args.distillation in defaults:
            setattr(args, name, defaults[args.distillation] if value is None else value)
        elif value is None:
            delattr(args, name)
        else:
            raise UserError(f"--{name}: is of --distillation {', '.join(defaults)}, and this run's"
                            f" is {args.distillation} (see --help)")  # fmt: skip
    return args


def read_teacher(args, data, network, networks, method):
    """The teacher's checkpoint; None where the lists are anybody's, name none, and are all that the
    method uses.

    network: the student's class. networks: those that a checkpoint may name. method: a
    DistilledRecommender. UserError where there is no such file.
    """
    lists = args.teacher_topk_path
    if lists and not method.uses_lists:
        raise UserError(
            f"--teacher_topk_path: --distillation {args.distillation} uses the teacher's scores, no"
            " lists; leave it out (--teacher_model_path names the teacher's checkpoint)"
        )
    if not args.teacher_model_path and lists and is_bare(lists):
        if method.uses_scores:
            raise UserError(
                f"{lists}: --distillation {args.distillation} needs the teacher's scores too; name"
                " its checkpoint with --teacher_model_path"
            )
        return None
    default = checkpoint_name(data.name, network, args.teacher_model_dim)
    path = args.teacher_model_path or str(Path(args.output_dir, default))
    if not os.path.exists(path):
        raise UserError(
            f"{path}: no such teacher{f' to make {lists}' if lists else ''}; train it with"
            f" train_{network.name}.py, or name one with --teacher_model_path"
        )
    return read_checkpoint(path, networks)


def evaluated_teacher(args, data, teacher, plain):
    """Load a teacher and print its metrics; returns its network, the default path of its lists,
    None where the method has none, and what the student is to learn from.

    plain: the class of networks that the path does not name.
    """
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
    has_lists = "K" in args
    made_from = {
        "teacher": fingerprint_weights(teacher),
        "teacher_run": {part: teacher.get("run", {}).get(part) for part in COMPARED},
        "teacher_epochs": teacher["epoch_num"],
        "data": data.identity["fingerprint"],
        "L": args.L,
        "T": args.T,
        **({"K": args.K, "exclude": args.teacher_exclude} if has_lists else {}),
        "activations": ", ".join(value for _, value in settings if isinstance(value, str)),
    } | {name: v for name, v in settings if name not in told and not isinstance(v, str)}
    if not has_lists:
        return net, None, made_from
    kind = "" if teacher["network"] is plain else f"{net.name}-"
    name = f"{data.name}-{kind}teacher-dim={d}-top={args.K}.npy"
    return net, Path(args.output_dir, name), made_from
