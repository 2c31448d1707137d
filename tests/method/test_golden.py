"""What the authors' released code computed, against what this code computes.

GOLDEN_DIR names another folder of the same form (see tests/golden/README.md). Files are found by
their names' patterns, and every size and activation is read from them.
"""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from test_evaluation import FixedScores

from caser import Caser
from distillation import RankingDistillation, teacher_lists
from evaluation import evaluate_ranking
from losses import distillation_loss, pointwise_loss
from recommender import NETWORKS, Recommender
from support.checkpoint import read_checkpoint
from support.data_set import read_interactions

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[1] / "golden")
SINGLE, TRAINED = 1e-5, 1e-4
FLAGS = [name for name, *_ in Caser.flags]
OPTIONS = ("n_iter", "batch_size", "l2", "neg_samples", "learning_rate")


def golden_files(pattern):
    """The golden files of a kind, one test each; none at all is a failure, not a skip."""
    return pytest.mark.parametrize(
        "path", sorted(GOLDEN.glob(pattern)) or [GOLDEN / pattern], ids=lambda path: path.name
    )


def load(path):
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def named(arrays, prefix):
    """The tensors under ``prefix``, without it: a state dict."""
    found = {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
    assert found, f"no {prefix}* in the golden file"
    return found


def config(arrays, name="config"):
    return json.loads(str(arrays[name]))


def chosen(settings, *names):
    return {name: settings[name] for name in names}


def assert_close(ours, theirs, tolerance=SINGLE):
    ours, theirs = (np.asarray(value, dtype=np.float64) for value in (ours, theirs))
    assert ours.shape == theirs.shape
    scale = np.abs(theirs).max()
    assert np.abs(ours - theirs).max() <= tolerance * scale


def make_caser(settings, weights):
    sizes = (len(weights[f"{kind}_embeddings.weight"]) for kind in ("user", "item"))
    net = Caser(*sizes, **chosen(settings, *settings.keys() & FLAGS))
    net.load_state_dict(weights, strict=True)
    return net


def training_data(L, T):
    train, _ = read_interactions(GOLDEN / "train.txt")
    train.to_sequence(L, T)
    return train


def all_scores(net, train):
    """The scores of every user over all ids."""
    windows = torch.from_numpy(train.test_sequences.sequences)
    with torch.no_grad():
        return net.eval().score_all(windows, torch.arange(train.num_users))


# -------------------------------------------------------------------------- single passes


@golden_files("caser_*.npz")
def test_scores_loss_and_gradients(path):
    arrays = load(path)
    net = make_caser(config(arrays), named(arrays, "param.")).eval()
    sequences, users, items = (torch.from_numpy(arrays[n]) for n in ("sequences", "users", "items"))
    scores = net(sequences, users, items)
    assert_close(scores.detach(), arrays["scores"])
    assert_close(net.score_all(sequences, users).detach(), arrays["all_scores"])
    loss = pointwise_loss(scores[:, :3], scores[:, 3:])
    assert_close(loss.item(), arrays["loss"])
    loss.backward()
    gradients = named(arrays, "grad.")
    assert gradients.keys() == dict(net.named_parameters()).keys()
    for name, parameter in net.named_parameters():
        assert_close(parameter.grad, gradients[name])


@golden_files("losses.npz")
def test_losses(path):
    arrays = load(path)
    positive, negative, candidate, weight = (
        torch.from_numpy(arrays[name]) for name in ("positive", "negative", "candidate", "weight")
    )
    assert_close(pointwise_loss(positive, negative), arrays["loss"])
    alphas = [name.removeprefix("weighted_loss_alpha") for name in arrays if "weighted" in name]
    assert alphas
    for alpha in alphas:
        regular = pointwise_loss(positive, negative)
        total = regular + float(alpha) * distillation_loss(candidate, weight)
        assert_close(total, arrays[f"weighted_loss_alpha{alpha}"])
        assert_close(regular, arrays[f"regular_loss_alpha{alpha}"])


@golden_files("sequences_*.npz")
def test_windows(path):
    arrays = load(path)
    train = training_data(arrays["sequences"].shape[1], arrays["targets"].shape[1])
    for name in ("user_ids", "sequences", "targets"):
        assert np.array_equal(getattr(train.sequences, name), arrays[name])
    assert np.array_equal(train.test_sequences.sequences, arrays["test_sequences"])
    assert (train.num_users, train.num_items) == (arrays["num_users"], arrays["num_items"])
    assert train.user_map == config(arrays, "user_map")
    assert train.item_map == config(arrays, "item_map")


@golden_files("evaluation.npz")
def test_metrics(path):
    arrays = load(path)
    train = training_data(5, 1)
    test, _ = read_interactions(GOLDEN / "test.txt", train.user_map, train.item_map)
    for interactions, part in ((train, "train"), (test, "test")):
        pairs = zip(arrays[f"{part}_users"], arrays[f"{part}_items"], strict=True)
        rows = zip(interactions.user_ids, interactions.item_ids, strict=True)
        assert set(pairs) == set(rows)
    ks = arrays["ks"].tolist()
    ours = evaluate_ranking(FixedScores(arrays["scores"]), train, test, ks)
    for name, theirs in (("precision",) * 2, ("recall",) * 2, ("ndcg_paper", "ndcg")):
        assert_close([ours[f"{name}@{k}"] for k in ks], arrays[theirs])
    assert_close(ours["map"].mean(), arrays["mean_average_precision"])


# ------------------------------------------------------------------------------- training


class Repeated:
    """Takes what a Recommender would draw from ``draws``, and keeps the windows' order."""

    def epoch_order(self):
        return self.instances

    def draw_negatives(self, rows, users):
        return torch.from_numpy(self.draws["negatives"][self.epoch_num])[rows]


class RepeatedRecommender(Repeated, Recommender):
    pass


class RepeatedDistillation(Repeated, RankingDistillation):
    def draw_dynamic_samples(self, rows, users):
        return torch.from_numpy(self.draws["dynamic_samples"][self.epoch_num])[rows]


def network(arrays, settings):
    """A factory that starts from the recorded initial weights."""

    def make(num_users, num_items):
        net = make_caser(settings, named(arrays, "initial."))
        assert (net.user_embeddings.num_embeddings, net.W2.num_embeddings) == (num_users, num_items)
        return net

    return make


def assert_trained_as_recorded(model, arrays):
    losses = np.array([record["loss"] for record in model.records])
    recorded = arrays["epoch_loss"]  # to 4 digits
    assert losses.shape == recorded.shape
    assert np.abs(losses - recorded).max() <= 0.5e-4 + SINGLE * np.abs(recorded).max()
    final = named(arrays, "final.")
    ours = model.net.state_dict()
    assert ours.keys() == final.keys()
    for name, value in final.items():
        assert_close(ours[name], value, TRAINED)


@golden_files("teacher_steps.npz")
def test_training_steps(path):
    arrays = load(path)
    settings = config(arrays)
    train = training_data(settings["L"], settings["target_length"])
    model = RepeatedRecommender(network(arrays, settings), **chosen(settings, *OPTIONS))
    model.draws = arrays
    model.prepare(train)
    model.fit(train)
    assert_trained_as_recorded(model, arrays)
    assert_close(all_scores(model.net, train), arrays["scores"], TRAINED)


@golden_files("distill_steps.npz")
def test_distillation_steps(path):
    arrays = load(path)
    settings = config(arrays)
    train = training_data(settings["L"], settings["target_length"])
    teacher = make_caser(config(arrays, "teacher_config"), named(arrays, "teacher."))
    lists = teacher_lists(teacher, train, settings["K"])
    assert np.array_equal(lists, arrays["teacher_topk"])
    names = ("teach_alpha", "lamda", "mu", "dynamic_start_epoch", *OPTIONS)
    make = network(arrays, settings)
    model = RepeatedDistillation(
        make, teacher_topk=lists, dynamic_samples=settings["num_dynamic_samples"],
        **chosen(settings, *names),
    )  # fmt: skip
    model.draws = arrays
    model.prepare(train)
    model.fit(train)
    assert_trained_as_recorded(model, arrays)


@golden_files("reference-caser-*.pth.tar")
def test_authors_checkpoint(path):
    arrays = load(GOLDEN / "teacher_steps.npz")
    settings = config(arrays)
    checkpoint = read_checkpoint(path, NETWORKS)
    assert checkpoint["architecture"] == chosen(settings, "L", "d", "nv", "nh")
    train = training_data(settings["L"], settings["target_length"])
    make = partial(Caser, **chosen(settings, *FLAGS))
    model = Recommender(make, **chosen(settings, *OPTIONS))
    model.prepare(train)
    model.restore(checkpoint)
    for name, value in named(arrays, "final.").items():
        assert torch.equal(model.net.state_dict()[name], value)
    assert_close(all_scores(model.net, train), arrays["scores"])
    model.n_iter = checkpoint["epoch_num"] + 1
    model.fit(train)  # its optimizer goes on
    assert model.records[-1]["epoch"] == checkpoint["epoch_num"] + 1
