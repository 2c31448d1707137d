"""Train a Caser recommender: the teacher, or a student without one.

python train_caser.py --dataset ml-100k --d 100
"""

import json
import math
import os
import shlex
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from caser import (
    add_network_flags,
    load_weights,
    network_factory,
    network_settings,
    read_checkpoint,
    restore_network,
)
from evaluation import KS, evaluate_ranking, mean_metrics, metrics_line
from interactions import SPLITS, DataSet, find_files
from losses import pointwise_loss
from recommend import TrainedModel
from utils import (
    ComplementSampler,
    Parser,
    StopRequest,
    UserError,
    atomic_write,
    boolean,
    in_range,
    numeric_flag,
    path_flag,
    pick_device,
    random_state,
    require_writable,
    restore_adam,
    run_command,
    saved_flags,
    set_random_state,
    set_seed,
    tensorboard_folder,
    tensorboard_log,
    versions,
)


class Recommender:
    """Trains a sequential network on the ranking loss, evaluates it, and keeps checkpoints.

    Parameters
    ----------
    network: a factory, (num_users, num_items) -> a module with ``represent``, ``score``,
        ``score_all`` and ``architecture`` as Caser has them.
    n_iter: epochs in all. batch_size: instances a step. l2: weight decay, in the gradient.
    neg_samples: negatives per instance. learning_rate: of Adam. train_fraction: share of the
        training instances that are used, drawn once. device: where all of it runs.

    Attributes
    ----------
    net: the network, once there is one. epoch_num: the last finished epoch. step: batches done
    of the next. records: list of dict, one per finished epoch.
    """

    script = "train_caser.py"
    tells_regular_loss = False  # whether the logged loss holds more than the ranking loss

    def __init__(
        self,
        network,
        n_iter=50,
        batch_size=512,
        l2=1e-6,
        neg_samples=3,
        learning_rate=1e-3,
        train_fraction=1.0,
        device="cpu",
    ):
        self.network = network
        self.n_iter = n_iter
        self.batch_size = batch_size
        self.l2 = l2
        self.neg_samples = neg_samples
        self.learning_rate = learning_rate
        self.train_fraction = train_fraction
        self.device = torch.device(device)
        self.net = None
        self.epoch_num = self.step = 0
        self.records = []
        self._seconds = 0.0  # what an interrupted epoch had taken
        self._losses = None  # (batches, 2) of the running epoch: loss, regular loss
        self._epoch_random = self._step_random = None

    # ------------------------------------------------------------------------- training

    def prepare(self, train):
        """Put the windows of ``train`` (after ``to_sequence``) on the device; make the network."""
        windows = train.sequences
        self.users, self.sequences, self.targets = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
            for array in (windows.user_ids, windows.sequences, windows.targets)
        )
        self.sampler = ComplementSampler(train.tocsr(), train.num_items - 1, self.device)
        self.instances = (self.sampler.counts[self.users] > 0).nonzero().flatten()
        if self.train_fraction < 1:
            shuffle = torch.randperm(len(self.instances))  # on the CPU: alike on every device
            chosen = shuffle[: math.ceil(self.train_fraction * len(shuffle))].sort().values
            self.instances = self.instances[chosen.to(self.device)]
        if self.net is None:
            self.net = self.network(train.num_users, train.num_items).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=self.learning_rate, weight_decay=self.l2, fused=True
        )

    def fit(self, train, test=None, eval_every=10, save_every=None, save=None, log=None):
        """Train up to epoch ``n_iter``, printing a line per epoch.

        test: Interactions to evaluate on after every ``eval_every`` epochs and the last one.
        save: called without arguments after every ``save_every`` epochs (default: each
        evaluation), after the last one, and on Ctrl-C or SIGTERM after the running step.
        log: called with every finished epoch's record, a dict of numbers.

        Returns the signal number that stopped it, or None. Raises UserError, naming epoch and
        batch, when a loss is not finite; nothing is saved then.
        """
        with StopRequest() as stop:
            while self.epoch_num < self.n_iter:
                record = self._run_epoch(stop)
                if record is None:
                    if save:
                        save()
                    break
                epoch, last = record["epoch"], record["epoch"] == self.n_iter
                evaluated = test is not None and (last or epoch % eval_every == 0)
                if evaluated:
                    started = time.perf_counter()
                    record |= mean_metrics(evaluate_ranking(self.net, train, test))
                    record["eval_seconds"] = round(time.perf_counter() - started, 4)
                self.records.append(record)
                if save and (last or (epoch % save_every == 0 if save_every else evaluated)):
                    save()
                print(self._log_line(record), flush=True)
                if log:
                    log(record)
            return stop.signal_number

    def _run_epoch(self, stop):
        """One pass over the instances; None where ``stop`` came in between."""
        epoch = self.epoch_num + 1
        started = time.perf_counter() - self._seconds
        self._epoch_random = random_state(self.device)
        batches = self.epoch_order().split(self.batch_size)
        if self.step:
            set_random_state(self._step_random, self.device)
        else:
            self._losses = torch.zeros(len(batches), 2, device=self.device)
        self.net.train()
        bar = tqdm(batches[self.step :], f"Epoch {epoch}", leave=False, disable=None)
        for rows in bar:
            if stop.signal_number:
                self._seconds = time.perf_counter() - started
                self._check_losses(epoch)
                bar.close()
                return None
            loss, regular_loss = self.train_on(rows)
            self._losses[self.step, 0] = loss.detach()
            self._losses[self.step, 1] = regular_loss.detach()
            self.step += 1
        loss, regular_loss = self._check_losses(epoch).mean(0).tolist()
        self.epoch_num, self.step, self._seconds, self._epoch_random = epoch, 0, 0.0, None
        record = {"epoch": epoch, "loss": loss}
        if self.tells_regular_loss:
            record["regular_loss"] = regular_loss
        return record | {"train_seconds": round(time.perf_counter() - started, 4)}

    def train_on(self, rows):
        """One step of the optimizer on instances ``rows``; returns what ``_batch_loss`` does."""
        loss, regular_loss = self._batch_loss(rows)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss, regular_loss

    def _batch_loss(self, rows):
        """The loss of instances ``rows`` (B,) int64, and the ranking loss alone; scalars."""
        users, targets = self.users[rows], self.targets[rows]
        more_items = self.more_items(rows)
        x = self.net.represent(self.sequences[rows], users)
        items = torch.cat([targets, self.draw_negatives(rows, users), more_items], 1)
        scores = self.net.score(x, items)
        T = targets.shape[1]
        positive, negative, more = scores.split([T, self.neg_samples, more_items.shape[1]], 1)
        regular_loss = pointwise_loss(positive, negative)
        return regular_loss + self.more_loss(rows, users, x, more_items, more), regular_loss

    def _check_losses(self, epoch):
        """The running epoch's losses so far; UserError at the first that is not finite."""
        losses = self._losses[: self.step].cpu().double()
        bad = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
        weights_bad = not all(value.isfinite().all() for value in self.net.state_dict().values())
        if bad or weights_bad:
            batch = bad[0] + 1 if bad else self.step
            what = "loss" if bad else "weights"
            raise UserError(
                f"epoch {epoch}, batch {batch}: the {what} stopped being finite; lower"
                " --learning_rate. Nothing was saved after the last good checkpoint"
            )
        return losses

    def _log_line(self, record):
        parts = [f"Epoch {record['epoch']} [{record['train_seconds']:.1f} s]\tloss="]
        parts.append(f"{record['loss']:.4f}")
        if self.tells_regular_loss:
            parts.append(f", regular_loss={record['regular_loss']:.4f}")
        if "map" in record:
            parts.append(f", {metrics_line(record)}[{record['eval_seconds']:.1f} s]")
        return "".join(parts)

    # What differs between training alone, distilling, and repeating recorded draws.

    def epoch_order(self):
        """The order of this epoch's instances: (n,) int64."""
        shuffle = torch.randperm(len(self.instances), device=self.device)
        return self.instances[shuffle]

    def draw_negatives(self, rows, users):
        """(B, neg_samples) int64, items that ``users`` (B,) do not have in train."""
        return self.sampler.draw(users, self.neg_samples)

    def more_items(self, rows):
        """Items (B, M) to score beside targets and negatives; here M = 0."""
        return self.targets.new_empty(len(rows), 0)

    def more_loss(self, rows, users, x, items, scores):
        """What is added to the ranking loss: a scalar from the ``scores`` (B, M) of ``items``."""
        return 0

    # ---------------------------------------------------------------------- checkpoints

    @staticmethod
    def load(path, device="cpu"):
        """The finished model of a checkpoint: see ``recommend.TrainedModel``."""
        return TrainedModel(path, device)

    def state(self):
        """Tensors and plain values that a later process needs to go on as if it were this one."""
        return {
            "epoch_num": self.epoch_num,
            "state_dict": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "script": self.script,
            "architecture": self.net.architecture,
            "records": self.records,
            "metrics": next((r for r in reversed(self.records) if "map" in r), {}),
            "epoch_random": self._epoch_random or random_state(self.device),
            "step_random": random_state(self.device),
            "step_losses": self._losses[: self.step].clone(),
            "step_seconds": self._seconds,
        }

    def restore(self, checkpoint):
        """Take over what ``state()`` gave, or the authors' three keys; after ``prepare``."""
        load_weights(self.net, checkpoint)
        try:
            restore_adam(self.optimizer, checkpoint["optimizer"])
            self.epoch_num, self.step = checkpoint["epoch_num"], checkpoint.get("step", 0)
            self.records = list(checkpoint.get("records", []))
            if "epoch_random" in checkpoint:
                self._step_random = checkpoint["step_random"]
                for state in (self._step_random, checkpoint["epoch_random"]):  # both must be good
                    set_random_state(state, self.device)
                self._seconds = checkpoint["step_seconds"]
                batches = -(-len(self.instances) // self.batch_size)
                if not (0 <= self.step < batches and 0 <= self._seconds < math.inf):
                    raise ValueError(f"it stands at step {self.step} of {batches}")
                self._losses = torch.zeros(batches, 2, device=self.device)
                self._losses[: self.step] = checkpoint["step_losses"].to(self.device)
        except (KeyError, ValueError, TypeError, AttributeError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{checkpoint['path']}: can't be resumed: {reason}") from None


# ---------------------------------------------------------------------------- checkpoints


def save_run(path, model, args, data):
    """Write the records and then the checkpoint ``path``, each of them atomically.

    In that order, since a resumed run drops records past its checkpoint and can't make up missing
    ones.
    """
    config = dict(vars(args))
    header = {
        "script": model.script,
        "config": config,
        "seed": args.seed,
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "data": {"name": data.name} | data.counts,
    }
    with atomic_write(records_path(path), "w") as file:
        for record in (header, *model.records):
            file.write(json.dumps(record) + "\n")
    with atomic_write(path) as file:
        torch.save(model.state() | {"config": config, "data": data.identity}, file)


def records_path(path):
    """The records beside a checkpoint: the same name with .jsonl for .pth.tar."""
    return Path(str(path).removesuffix(".pth.tar") + ".jsonl")


# --------------------------------------------------------------------------- command line


def get_args_parser(description=__doc__, d=100):
    """The flags of this script, and those that distill_caser.py shares; ``d`` is the default d."""
    parser = Parser(description=description.split("\n")[0])
    # fmt: off
    data = parser.add_argument_group("data")
    path_flag(data, "--dataset", "datasets/NAME/SPLIT/{train,test}.txt", "ml-100k", "NAME")
    data.add_argument("--split", default="test", choices=SPLITS,
                      help="test learns from train and validation rows, validation from train")
    path_flag(data, "--train_root", "rows to learn from, in place of --dataset's")
    path_flag(data, "--test_root", "rows to predict, with --train_root")

    add_network_flags(parser.add_argument_group("network (Caser)"), d)

    training = parser.add_argument_group("training")
    flag = partial(numeric_flag, training)
    flag("--n_iter", 50, int, "[1, 1e9]", "epochs in all, those of --checkpoint included")
    flag("--batch_size", 512, int, "[1, 1e9]", "instances per step")
    flag("--learning_rate", 1e-3, float, "(0, 1000]", "of Adam")
    flag("--l2", 1e-6, float, "[0, 1000]", "weight decay, added to the gradient")
    flag("--neg_samples", 3, int, "[1, 1e9]", "negatives per instance")
    flag("--train_fraction", 1.0, float, "(0, 1]", "share of the training instances that are used")
    flag("--seed", 1234, int, "[0, 4294967295]", "of every random number")
    training.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda", "mps"],
                          help="auto is cuda where there is one, else cpu")
    training.add_argument("--use_cuda", type=boolean, metavar="BOOL",
                          help="the authors' flag: true is --device cuda, false is --device cpu")

    output = parser.add_argument_group("output")
    flag = partial(numeric_flag, output)
    flag("--eval_every", 10, int, "[1, 1e9]", "epochs between evaluations; the last has one too")
    output.add_argument("--save_every", type=in_range(int, "[1, 1e9]"), metavar="N",
                        help="epochs between checkpoints (default: at each evaluation)")
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


# A resumed run takes these flags from its own command line alone ...
OWN_FLAGS = {"checkpoint", "evaluate", "output_dir", "tensorboard", "device", "use_cuda",
             "allow_other_data"}  # fmt: skip
# ... these from there if it gives them, else from the checkpoint, and all others from the latter.
DATA_FLAGS = {"dataset", "split", "train_root", "test_root"}
FREE_FLAGS = {"n_iter", "eval_every", "save_every", "teacher_model_path", "teacher_model_dim",
              "teacher_topk_path"} | DATA_FLAGS  # fmt: skip


def read_command(parser, script, argv):
    """Parse the flags, and the checkpoint that ``--checkpoint`` names: (args, checkpoint)."""
    args, given = parser.parse(argv)
    if args.evaluate and not args.checkpoint:
        raise UserError("--evaluate needs --checkpoint, the model to evaluate")
    checkpoint = read_checkpoint(args.checkpoint) if args.checkpoint else None
    if checkpoint:
        if not args.evaluate and checkpoint.get("script", script) != script:
            raise UserError(f"{args.checkpoint}: {checkpoint['script']} made it and can resume it")
        args = _with_saved_flags(parser, argv, args, given, checkpoint)
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
    settings = checkpoint["config"] | checkpoint["architecture"]
    names = vars(args).keys() - OWN_FLAGS
    if given & {"train_root", "test_root"}:
        names -= {"dataset", "split"}
    if given & DATA_FLAGS:
        names -= {"train_root", "test_root"}
    for name in (settings.keys() & given & names) - FREE_FLAGS:
        if getattr(args, name) != settings[name]:
            raise UserError(
                f"--{name} {getattr(args, name)}: {args.checkpoint} has {settings[name]};"
                " leave the flag out"
            )
    saved = saved_flags(settings, names)
    try:
        parser.parse(saved)
    except UserError as error:
        raise UserError(f"{args.checkpoint}: the flags in it are damaged: {error}") from None
    args, _ = parser.parse([*saved, *(sys.argv[1:] if argv is None else argv)])
    if "output_dir" not in given:
        args.output_dir = str(Path(args.checkpoint).parent)
    return args


def load_data(args):
    """The DataSet that the flags name; prints its counts, the protocol and the notes."""
    files = find_files(args.dataset, args.split, args.train_root, args.test_root)
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
    print_notes(data.check(checkpoint, args.allow_other_data))
    net = restore_network(checkpoint, network_settings(args)).to(args.device)
    started = time.perf_counter()
    means = mean_metrics(evaluate_ranking(net, data.train, data.test))
    standard = ",".join(f"{means[f'ndcg@{k}']:.4f}" for k in KS)
    seconds = time.perf_counter() - started
    print(f"{label}\t{metrics_line(means)}, standard ndcgs={standard}[{seconds:.1f} s]", flush=True)
    return net


def output_path(args, data, suffix=""):
    """Where the checkpoint goes, its folder made and tried: UserError where nothing can."""
    name = f"{data.name}-caser-dim={args.d}{suffix}.pth.tar"
    path = Path(args.output_dir, Path(args.checkpoint).name if args.checkpoint else name)
    require_writable(path)
    require_writable(records_path(path))
    return path


def run(model, path, args, data, checkpoint):
    """Train ``model`` as the flags say, saving as it goes; return the exit status."""
    set_seed(args.seed)
    model.prepare(data.train)
    if checkpoint:
        print_notes(data.check(checkpoint, args.allow_other_data))
        if checkpoint.get("data", data.identity).get("test") != data.identity["test"]:
            print(f"note: {data.test.path}: not the rows that earlier epochs were evaluated on")
        model.restore(checkpoint)
    save = partial(save_run, path, model, args, data)
    with tensorboard_log(args.tensorboard, model.epoch_num + 1) as log:
        stopped_by = model.fit(data.train, data.test, args.eval_every, args.save_every, save, log)
    if model.epoch_num < args.n_iter:
        again = ["python", model.script, "--checkpoint", str(path)]
        if args.allow_other_data:
            again.append("--allow_other_data")
        if args.device != str(pick_device("auto")):
            again += ["--device", args.device]
        if args.tensorboard:
            again += ["--tensorboard", args.tensorboard]
        print(f"stopped in epoch {model.epoch_num + 1}; go on with:\n{shlex.join(again)}")
        return 128 + stopped_by
    print(f"saved {path} and {records_path(path)}")
    return 0


def nothing_to_do(args, checkpoint):
    """Whether the checkpoint to resume has its epochs; says so."""
    done = checkpoint is not None and not args.evaluate and checkpoint["epoch_num"] >= args.n_iter
    if done:
        print(f"nothing to do: {args.checkpoint} has epoch {checkpoint['epoch_num']}"
              f" and --n_iter is {args.n_iter}")  # fmt: skip
    return done


def carry_out(parser, script, argv, make):
    """Do what the command line asks for; return the exit status.

    make: (args, network factory, DataSet, checkpoint or None) -> (Recommender, path of its
    checkpoint), called where something is to be trained.
    """
    args, checkpoint = read_command(parser, script, argv)
    if nothing_to_do(args, checkpoint):
        return 0
    network = network_factory(args)
    data = load_data(args)
    if args.evaluate:
        evaluate_checkpoint(args, data, checkpoint)
        return 0
    model, path = make(args, network, data, checkpoint)
    return run(model, path, args, data, checkpoint)


def main(argv=None):
    def make(args, network, data, checkpoint):
        path = output_path(args, data)
        return Recommender(network, **training_options(args)), path

    return carry_out(get_args_parser(), Recommender.script, argv, make)


def training_options(args):
    """The arguments of a Recommender that flags of the same names give."""
    names = ("n_iter", "batch_size", "l2", "neg_samples", "learning_rate", "train_fraction",
             "device")  # fmt: skip
    return {name: getattr(args, name) for name in names}


if __name__ == "__main__":
    run_command(main)
