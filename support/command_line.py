"""What the command lines of the training scripts share: their flags, and the way from there to a
trained or evaluated model. The network is a class that is handed in.
"""

import argparse
import contextlib
import importlib.util
import os
import shlex
import signal
import sys
import time
from functools import partial
from pathlib import Path

import torch

from evaluation import KS, evaluate_ranking, mean_metrics, metrics_line
from support.checkpoint import read_checkpoint, records_path, save_run, write_records
from support.data_set import SPLITS, DataSet, find_files
from support.processes import locked
from support.run import describe_run, keep_other_run
from support.torchrun import by_first, is_first, join, launcher, one_run, require_alike
from utils import (
    Parser,
    UserError,
    device_flag,
    numeric_flag,
    path_flag,
    pick_device,
    require_writable,
)


def training_parser(description, network, d):
    """The flags of every training script.

    description: its first line is shown. network: the class. d: the default of that flag.
    """
    parser = Parser(description=description.split("\n")[0])
    data_flags(parser)
    # fmt: off
    group = parser.add_argument_group(f"network ({network.__name__})")
    for name, default, kind, allowed, meaning in network.flags:
        if kind is str:
            group.add_argument(f"--{name}", default=default, choices=allowed, help=meaning)
        else:
            default = d if name == "d" else default
            numeric_flag(group, f"--{name}", default, kind, allowed, meaning)

    training = parser.add_argument_group("training")
    flag = partial(numeric_flag, training)
    flag("--T", 1, int, "[1, 1000]", "T: the targets of a window")
    flag("--n_iter", 50, int, "[1, 1e9]", "epochs in all, those of --checkpoint included")
    flag("--batch_size", 512, int, "[1, 1e9]", "instances per step")
    flag("--learning_rate", 1e-3, float, "(0, 1000]", "of Adam")
    flag("--l2", 1e-6, float, "[0, 1000]", "weight decay, added to the gradient")
    flag("--neg_samples", 3, int, "[1, 1e9]", "negatives per instance")
    flag("--train_fraction", 1.0, float, "(0, 1]", "share of the training instances that are used")
    flag("--seed", 1234, int, "[0, 4294967295]", "of every random number")
    device_flag(training)
    training.add_argument("--use_cuda", type=boolean, metavar="BOOL",
                          help="the authors' flag: true is --device cuda, false is --device cpu")

    output = parser.add_argument_group("output")
    flag = partial(numeric_flag, output)
    flag("--eval_every", 10, int, "[1, 1e9]", "epochs between evaluations; the last has one too")
    flag("--save_every", 1, int, "[1, 1e9]", "epochs between checkpoints; the last has one too")
    path_flag(output, "--output_dir", "where checkpoints, records and top-K caches go",
              "checkpoints", "DIR")
    output.add_argument("--tensorboard", type=tensorboard_folder, metavar="DIR",
                        help="write the records' numbers there for TensorBoard too")
    path_flag(output, "--checkpoint", "resume this run, with its flags")
    output.add_argument("--evaluate", action="store_true", help="only evaluate --checkpoint")
    output.add_argument("--allow_other_data", action="store_true",
                        help="accept a checkpoint that was trained on other rows")
    # fmt: on
    return parser


def data_flags(parser):
    """Add the flags that name what is learnt from and what is predicted."""
    group = parser.add_argument_group("data")
    path_flag(group, "--dataset", "datasets/NAME/SPLIT/{train,test}.txt", "ml-100k", "NAME")
    words = "test learns from train and validation rows, validation from train"
    group.add_argument("--split", default="test", choices=SPLITS, help=words)
    path_flag(group, "--train_root", "rows to learn from, in place of --dataset's")
    path_flag(group, "--test_root", "rows to predict, with --train_root")


def boolean(text):
    """The flag value 1/0, true/false, t/f, yes/no, y/n, on/off, in any case, as a bool."""
    word = text.strip().lower()
    if word in {"1", "true", "t", "yes", "y", "on"}:
        return True
    if word in {"0", "false", "f", "no", "n", "off"}:
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false; give true or false")


def tensorboard_folder(text):
    """A flag type: a folder for TensorBoard, whose package must be there."""
    if not importlib.util.find_spec("tensorboard"):
        raise argparse.ArgumentTypeError("needs TensorBoard: pip install tensorboard")
    return text


# With --checkpoint, a flag's value is that of the resumed run, but for these, of the command line
# alone ...
OWN_FLAGS = {"checkpoint", "evaluate", "output_dir", "tensorboard", "device", "use_cuda",
             "allow_other_data"}  # fmt: skip
# ... and of the command line where it gives them. None of all these changes weights.
DATA_FLAGS = {"dataset", "split", "train_root", "test_root"}
FREE_FLAGS = {"n_iter", "eval_every", "save_every", "teacher_model_path", "teacher_model_dim",
              "teacher_topk_path"} | DATA_FLAGS  # fmt: skip
# What a flag that is younger than some runs was in these, of whose identity it is no part.
BEFORE_IT_WAS = {"distillation": "rd"}


def read_command(parser, script, networks, argv):
    """Parse the flags, and the checkpoint that ``--checkpoint`` names: (args, checkpoint)."""
    args, given = parser.parse(argv)
    if args.evaluate and not args.checkpoint:
        raise UserError("--evaluate needs --checkpoint, the model to evaluate")
    checkpoint = read_checkpoint(args.checkpoint, networks) if args.checkpoint else None
    if checkpoint:
        made_by = checkpoint.get("run", checkpoint).get("script") or script
        if not args.evaluate and made_by != script:
            raise UserError(f"{args.checkpoint}: {made_by} made it and can resume it")
        args = _with_saved_flags(parser, argv, args, given, checkpoint)
    args = parser.settle(args)
    if args.use_cuda is not None:
        asked = "cuda" if args.use_cuda else "cpu"
        if "device" in given and args.device not in {"auto", asked}:
            raise UserError(f"--use_cuda and --device {args.device} contradict; give one of them")
        args.device = asked
    args.device = str(pick_device(args.device))
    if bool(args.train_root) != bool(args.test_root):
        raise UserError("--train_root and --test_root go together; give both")
    if args.train_root:
        if "dataset" in given:
            raise UserError("give --dataset, or --train_root and --test_root, not both")
        split = Path(os.path.abspath(args.train_root)).parent.name
        if split in SPLITS:
            if "split" in given and args.split != split:
                raise UserError(f"--split {args.split}: --train_root is in a folder {split}/")
            args.split = split
    return args, checkpoint


def _with_saved_flags(parser, argv, args, given, checkpoint):
    """The checkpoint's own flags, those of ``argv`` over them; UserError on a contradiction."""
    settings = BEFORE_IT_WAS | checkpoint["config"] | checkpoint["architecture"]
    names = vars(args).keys() - OWN_FLAGS
    if given & {"train_root", "test_root"}:
        names -= {"dataset", "split"}
    elif settings.get("train_root") and given & DATA_FLAGS == {"split"}:
        raise UserError(
            f"--split {args.split}: {args.checkpoint} was trained on {settings['train_root']}; name"
            " the files by --train_root and --test_root"
        )
    if given & DATA_FLAGS:
        names -= {"train_root", "test_root"}
    for name in (settings.keys() & given & names) - FREE_FLAGS:
        if getattr(args, name) != settings[name]:
            raise UserError(
                f"--{name} {getattr(args, name)}: {args.checkpoint} has {settings[name]};"
                " leave the flag out"
            )
    saved = [
        f"--{name}={settings[name]}"
        for name in sorted(settings.keys() & names)
        if settings[name] is not None
    ]
    try:
        parser.parse(saved)
    except UserError as error:
        what = "the flags in it are damaged, or of another network"
        raise UserError(f"{args.checkpoint}: {what}: {error}") from None
    args, _ = parser.parse([*saved, *(sys.argv[1:] if argv is None else argv)])
    if "output_dir" not in given:
        args.output_dir = str(Path(args.checkpoint).parent)
    return args


def load_data(args):
    """The DataSet that the flags name; prints its counts, the protocol and the notes."""
    named = args.dataset, args.split, args.train_root, args.test_root
    files = by_first(partial(find_files, *named))  # which may prepare them
    data = DataSet.load(*files, args.L, args.T)
    print(
        f"{data.headline()}. Protocol: {args.split} split, all items ranked, the user's train"
        f" items and padding out, k={','.join(map(str, KS))}, ndcgs as in the paper;"
        f" seed {args.seed}, {args.device}"
    )
    print_notes(data.notes)
    return data


def print_notes(notes):
    for note in notes:
        print(f"note: {note}")


def evaluate_checkpoint(args, data, checkpoint, label="Evaluation"):
    """Load a checkpoint's network for the data, print its metrics, return it."""
    net, notes = data.network(checkpoint, vars(args), args.allow_other_data)
    print_notes(notes)
    net = net.to(args.device)
    print_evaluation(net, data, label)
    return net


def print_evaluation(net, data, label="Evaluation"):
    """Print a network's metrics; return them, and the seconds that they took, as a record's."""
    started = time.perf_counter()
    means = mean_metrics(evaluate_ranking(net, data.train, data.test))
    seconds = time.perf_counter() - started
    print(f"{label}\t{metrics_line(means, standard=True)}[{seconds:.1f} s]", flush=True)
    return means | {"eval_seconds": round(seconds, 4)}


def checkpoint_name(data_name, network, d, suffix=""):
    """The name of a checkpoint's file; suffix: "-rd..." for a distilled student."""
    return f"{data_name}-{network.name}-dim={d}{suffix}.pth.tar"


@contextlib.contextmanager
def tensorboard_log(folder, first_epoch):
    """Give a function that writes the numbers of {"epoch": n, name: number} for TensorBoard.

    What an earlier run left in the folder from ``first_epoch`` on is hidden. Without a folder,
    gives None.
    """
    if folder is None:
        yield None
        return
    from torch.utils.tensorboard import SummaryWriter  # slow to import

    with SummaryWriter(folder, purge_step=first_epoch) as writer:

        def log(record):
            for name in record.keys() - {"epoch"}:
                writer.add_scalar(name.replace("@", "_at_"), record[name], record["epoch"])
            writer.flush()

        yield log


@one_run
def training_command(parser, script, network, networks, argv, plan):
    """Do what the command line of a training script asks for; return the exit status.

    networks: those that a checkpoint may name.
    plan: (args, data, path_of) -> (path, make), called where something is to be trained; UserError
        where it can't be.
        path_of: (end of the checkpoint's name) -> path, where it is saved.
        make: (args, data, checkpoint or None, factory of networks) -> (Recommender, what its
        teacher's lists were made from or None).
    """
    again = [*launcher(), script, *(sys.argv[1:] if argv is None else map(str, argv))]
    try:
        args, checkpoint = read_command(parser, script, networks, argv)
        if checkpoint and not args.evaluate and checkpoint["epoch_num"] >= args.n_iter:
            if "run" in checkpoint and is_first():  # it may have been killed before it wrote them
                write_records(args.checkpoint, checkpoint["run"], checkpoint["records"])
            print(f"nothing to do: {args.checkpoint} has epoch {checkpoint['epoch_num']}"
                  f" and --n_iter is {args.n_iter}")  # fmt: skip
            return 0
        join(args.device)
        make_network = partial(network, **{name: getattr(args, name) for name, *_ in network.flags})
        with torch.device("meta"):  # what can't be is refused before anything is read
            make_network(1, 1)
        data = load_data(args)
        if args.evaluate:
            evaluate_checkpoint(args, data, checkpoint)
            return 0

        def path_of(suffix):
            name = checkpoint_name(data.name, network, args.d, suffix)
            return Path(args.output_dir, Path(args.checkpoint).name if args.checkpoint else name)

        path, make = plan(args, data, path_of)
        require_writable(path)
        require_writable(records_path(path))
        lock = locked(path.with_name(f".{path.name}.lock"), path)
        with lock if is_first() else contextlib.nullcontext():
            model, lists = make(args, data, checkpoint, make_network)
            del make  # with the teacher in it
            flags = weight_flags(args)
            before = checkpoint.get("run") if checkpoint else None
            identity = describe_run(script, network.name, flags, data, lists, model.device, before)
            _train(model, path, identity, args, data, checkpoint, again)
    except KeyboardInterrupt as reason:
        print(f"stopped; go on with:\n{shlex.join(again)}", flush=True)
        return 128 + getattr(reason, "number", signal.SIGINT)
    print(f"saved {path} and {records_path(path)}")
    return 0


def _train(model, path, identity, args, data, checkpoint, again):
    """Train ``model``, saving as it goes. again: the command that goes on, as words; changed to
    the one that resumes, once there is something to resume."""
    model.prepare(data.train)
    if checkpoint:
        print_notes(data.check_resumable(checkpoint))
        model.restore(checkpoint)
    require_alike(f"what {path} is made from", [identity, model.epoch_num])
    other = not checkpoint or os.path.realpath(path) != os.path.realpath(args.checkpoint)
    if other and is_first():
        keep_other_run(path, identity, args.n_iter)

    def save():
        save_run(path, model, identity, args, data)
        again[again.index(identity["script"]) + 1 :] = ["--checkpoint", str(path)]
        if args.allow_other_data:  # of a teacher
            again.append("--allow_other_data")
        if args.device != str(pick_device("auto")):
            again.extend(["--device", args.device])
        if args.tensorboard:
            again.extend(["--tensorboard", args.tensorboard])

    folder = args.tensorboard if is_first() else None
    with tensorboard_log(folder, model.epoch_num + 1) as log:
        model.fit(data.train, data.test, args.eval_every, args.save_every,
                  save if is_first() else None, log)  # fmt: skip


def weight_flags(args):
    """The flags that change weights, as a dict."""
    flags = dict(vars(args).items() - BEFORE_IT_WAS.items())
    return {name: flags[name] for name in sorted(flags.keys() - OWN_FLAGS - FREE_FLAGS)}


def training_options(args):
    """The arguments of a Recommender that flags of the same names give."""
    names = ("n_iter", "batch_size", "l2", "neg_samples", "learning_rate", "train_fraction",
             "seed", "device")  # fmt: skip
    return {name: getattr(args, name) for name in names}
