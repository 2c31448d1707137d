"""Train a sequential recommender: the one fit, for a network alone and for a distilled one."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from bpr import BPR
from caser import Caser
from evaluation import evaluate_ranking, mean_metrics, metrics_line
from fossil import Fossil
from interactions import ComplementSampler
from kernels import sparse_gradients
from losses import pointwise_loss
from support.checkpoint import load_weights
from support.command_line import training_command, training_options, training_parser
from support.torchrun import copy_from_first, own_share, place, sum_gradients, sum_over_processes
from utils import DAMAGE, UserError

# What a checkpoint may name; the first is that of a file that names none, as the authors'. A
# network has ``name``, ``flags``, ``architecture``, ``arguments_of``, ``user_table``,
# ``represent``, ``score`` and ``score_all`` as Caser has them: docs/own_network.md.
NETWORKS = (Caser, Fossil, BPR)


def train(network, script, description, d, argv=None):
    """Train a network by a command line; return the exit status.

    network: a class of NETWORKS. script: the file that can resume the run. description: what
    --help says first. d: the default dimension.
    """
    return train_by(training_parser(description, network, d), network, script, argv, Recommender)


def train_by(parser, network, script, argv, recommender):
    """As ``train``, by the flags of a ``training_parser``.

    recommender: Recommender or a subclass, which takes the same options.
    """

    def make(args, data, checkpoint, make_network):
        return recommender(make_network, **training_options(args)), None

    def plan(args, data, path_of):
        return path_of(""), make

    return training_command(parser, script, network, NETWORKS, argv, plan)


@dataclass(eq=False)
class Recommender:
    """Trains a sequential network on the ranking loss, evaluates it, and keeps checkpoints.

    Parameters
    ----------
    make_network: (num_users, num_items) -> a network, such as Caser.
    n_iter: epochs in all.
    batch_size: instances a step.
    l2: weight decay, in the gradient.
    neg_samples: negatives per instance.
    learning_rate: of Adam.
    train_fraction: share of the training instances that are used, drawn once.
    seed: with the number of an epoch, of everything that this epoch draws.
    device: where all of it runs.

    Attributes
    ----------
    net: the network, once there is one.
    epoch_num: the last finished epoch.
    records: list of dict, one per finished epoch.
    """

    make_network: Callable
    n_iter: int = 50
    batch_size: int = 512
    l2: float = 1e-6
    neg_samples: int = 3
    learning_rate: float = 1e-3
    train_fraction: float = 1.0
    seed: int = 1234
    device: str | torch.device = "cpu"

    tells_regular_loss = False  # whether the logged loss holds more than the ranking loss
    has_sparse_gradients = False  # they pay from dozens of items an instance on: see kernels.py

    def __post_init__(self):
        self.device = torch.device(self.device)
        self.net = None
        self.epoch_num = 0
        self.records = []

    # ------------------------------------------------------------------------- training

    def prepare(self, train):
        """Put the windows of ``train`` (after ``to_sequence``) on the device; make the network."""
        seed_epoch(self.seed, 0)
        self.sequences, self.users, self.history = train.sequences.inputs(self.device)
        targets = np.ascontiguousarray(train.sequences.targets)
        self.targets = torch.from_numpy(targets).to(self.device)
        self.sampler = ComplementSampler(train.tocsr(), train.num_items - 1, self.device)
        self.instances = (self.sampler.counts[self.users] > 0).nonzero().flatten()
        if self.train_fraction < 1:
            shuffle = torch.randperm(len(self.instances))  # on the CPU: alike on every device
            kept = shuffle[: math.ceil(self.train_fraction * len(shuffle))].sort().values
            self.instances = self.instances[kept.to(self.device)]
        if self.net is None:
            self.net = self.make_network(train.num_users, train.num_items).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.net.parameters(), lr=self.learning_rate, weight_decay=self.l2, fused=True
        )

    def fit(self, train, test=None, eval_every=10, save_every=1, save=None, log=None):
        """Train up to epoch ``n_iter``, printing a line per epoch.

        test: Interactions to evaluate on after every ``eval_every`` epochs and the last one.
        save: called without arguments after every ``save_every`` epochs and the last one.
        log: called with every finished epoch's record, a dict of numbers.

        Raises UserError, naming epoch and batch, when a loss is not finite; that epoch is not
        saved then.
        """
        copy_from_first(self.net.parameters())
        for epoch in range(self.epoch_num + 1, self.n_iter + 1):
            record = self._run_epoch(epoch)
            last = epoch == self.n_iter
            if test is not None and (last or epoch % eval_every == 0):
                started = time.perf_counter()
                record |= mean_metrics(evaluate_ranking(self.net, train, test))
                record["eval_seconds"] = round(time.perf_counter() - started, 4)
            self.epoch_num = epoch
            self.records.append(record)
            if save and (last or epoch % save_every == 0):
                save()
            try:
                print(self._log_line(record), flush=True)
            except BrokenPipeError:  # whoever read it has left, as `head` does
                if save:
                    save()
                raise
            if log:
                log(record)

    def _run_epoch(self, epoch):
        """One pass over the instances; returns its record."""
        started = time.perf_counter()
        seed_epoch(self.seed, epoch)
        order = self.epoch_order()
        copy_from_first([order])  # devices of two kinds may draw differently
        batches = order.split(self.batch_size)
        process, _ = place()
        if process:  # the order is the same for all processes, and no other draw
            seed_epoch(self.seed, epoch, process)
        losses = torch.zeros(len(batches), 2, device=self.device)  # loss, regular loss
        self.net.train()
        silent = True if process else None  # None: where nobody watches
        for step, batch in enumerate(tqdm(batches, f"Epoch {epoch}", leave=False, disable=silent)):
            for column, loss in enumerate(self.train_on(batch)):
                losses[step, column] = loss
        losses = sum_over_processes(losses).cpu().double()
        self._refuse_unless_finite(epoch, losses)
        loss, regular_loss = losses.mean(0).tolist()
        record = {"epoch": epoch, "loss": loss}
        if self.tells_regular_loss:
            record["regular_loss"] = regular_loss
        return record | {"train_seconds": round(time.perf_counter() - started, 4)}

    def train_on(self, batch):
        """One step of the optimizer on the instances ``batch``, (B,) int64. Returns what
        ``_batch_loss`` does, of several processes the part that this one adds to it."""
        rows = own_share(batch)
        self.optimizer.zero_grad()
        losses = self._batch_loss(rows) if len(rows) else ()
        if len(rows) < len(batch):
            losses = [loss * (len(rows) / len(batch)) for loss in losses]
        if losses:
            losses[0].backward()
        sum_gradients(self.net.parameters())
        self.optimizer.step()
        return [loss.detach() for loss in losses]

    def _batch_loss(self, rows):
        """The loss of instances ``rows`` (B,) int64, and the ranking loss alone; scalars."""
        users, targets = self.users[rows], self.targets[rows]
        x = self.net.represent(self.sequences[rows], users, self.history[rows])
        more_items = self.more_items(rows, users, x)
        items = torch.cat([targets, self.draw_negatives(rows, users), more_items], 1)
        with sparse_gradients(self.has_sparse_gradients):
            scores = self.net.score(x, items)
        T = targets.shape[1]
        positive, negative, more = scores.split([T, self.neg_samples, more_items.shape[1]], 1)
        regular_loss = self.ranking_loss(positive, negative)
        return regular_loss + self.more_loss(rows, users, x, more_items, more), regular_loss

    def _refuse_unless_finite(self, epoch, losses):
        """UserError at the first of an epoch's losses (batches, 2) that is not finite."""
        bad = (~losses.isfinite().all(1)).nonzero().flatten().tolist()
        weights_bad = not all(value.isfinite().all() for value in self.net.state_dict().values())
        if bad or weights_bad:
            batch = bad[0] + 1 if bad else len(losses)
            what = "loss" if bad else "weights"
            raise UserError(
                f"epoch {epoch}, batch {batch}: the {what} stopped being finite; lower"
                " --learning_rate. Nothing was saved after the last good checkpoint"
            )

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

    def ranking_loss(self, positive, negative):
        """A scalar from the scores (B, T) of targets and (B, neg_samples) of negatives."""
        return pointwise_loss(positive, negative)

    def more_items(self, rows, users, x):
        """Items (B, M) int64 to score beside targets and negatives; here M = 0. x: what the network
        represents ``users`` (B,) by."""
        return self.targets.new_empty(len(rows), 0)

    def more_loss(self, rows, users, x, items, scores):
        """What is added to the ranking loss: a scalar from the ``scores`` (B, M) of ``items``."""
        return 0

    # ---------------------------------------------------------------------- checkpoints

    def state(self):
        """Tensors and plain values that a later process needs to go on as if it were this one."""
        return {
            "epoch_num": self.epoch_num,
            "state_dict": self.net.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "network": self.net.name,
            "architecture": self.net.architecture,
            "records": self.records,
            "metrics": next((r for r in reversed(self.records) if "map" in r), {}),
        }

    def restore(self, checkpoint):
        """Take over what ``state()`` gave, or the authors' three keys; after ``prepare``."""
        load_weights(self.net, checkpoint)
        try:
            if checkpoint.get("step"):
                raise ValueError("an older version saved it inside an epoch; train it anew")
            _restore_adam(self.optimizer, checkpoint["optimizer"])
            self.epoch_num = checkpoint["epoch_num"]
            self.records = list(checkpoint.get("records", []))
        except DAMAGE as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{checkpoint['path']}: can't be resumed: {reason}") from None


def seed_epoch(*numbers):
    """Seed torch's generators, on all devices, for what an epoch draws: by the seed, the epoch, 0
    before the first, and the number of the process where it is not the first.

    On a CPU torch takes the low 32 bits of a seed alone, so the numbers are hashed into them.
    """
    (state,) = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    torch.manual_seed(int(state))


def _restore_adam(optimizer, saved):
    """Take the moments out of a saved state dict of Adam's, an old torch's too; the settings stay
    those of ``optimizer``. Raises LookupError, TypeError or ValueError where they do not fit."""
    present = optimizer.state_dict()
    old_names, new_names = saved["param_groups"][0]["params"], present["param_groups"][0]["params"]
    present["state"] = {
        new: {key: saved["state"][old][key] for key in ("step", "exp_avg", "exp_avg_sq")}
        for new, old in zip(new_names, old_names, strict=True)
        if old in saved["state"]
    }
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for new, parameter in zip(new_names, parameters, strict=True):
        for moment in ("exp_avg", "exp_avg_sq") if new in present["state"] else ():
            if present["state"][new][moment].shape != parameter.shape:
                raise ValueError("a moment of its optimizer does not fit its weight")
    optimizer.load_state_dict(present)
    for state in optimizer.state.values():
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        if not (mean.isfinite().all() and (square >= 0).all() and state["step"] >= 0):
            raise ValueError("a moment of its optimizer is damaged")
