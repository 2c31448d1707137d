"""Training alone: what it learns, from which instances, and that stopping it changes nothing."""

import random
import signal
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_weights, records, train, weights

import recommender
import train_caser
from caser import Caser
from distillation import DistilledRecommender
from evaluation import evaluate_ranking
from interactions import Interactions
from losses import pointwise_loss
from recommender import Recommender
from support.checkpoint import records_path
from utils import set_seed

NAME = "toy-caser-dim=6.pth.tar"


def prepared(data, **options):
    model = Recommender(partial(Caser, L=3, d=6), **options)
    model.prepare(data.train)
    return model


# ------------------------------------------------------------------------------- learning


@pytest.mark.parametrize(("noise", "low", "high"), [(False, 0.9, 1), (True, 0, 0.35)])
def test_learns_what_is_there_to_learn(noise, low, high):
    """Users who walk round a ring of items, or who jump anywhere."""
    rng = np.random.default_rng(0)
    ring = (rng.integers(0, 30, (60, 1)) + np.arange(15)) % 30
    walks = rng.integers(0, 30, (60, 15)) if noise else ring
    known = Interactions(np.repeat(np.arange(60), 14), walks[:, :-1].flatten())
    known.to_sequence(3, 1)
    test = Interactions(np.arange(60), walks[:, -1], known.user_map, known.item_map)
    torch.manual_seed(0)
    network = partial(Caser, L=3, d=16, drop=0.1)
    model = Recommender(network, n_iter=40, batch_size=64, learning_rate=1e-2)
    model.prepare(known)
    model.fit(known)
    score = evaluate_ranking(model.net, known, test)["map"].mean()
    assert low <= score <= high


def test_all_targets_of_a_window_are_positives(toy, monkeypatch):
    data = toy.load(T=3)
    model = prepared(data, n_iter=1, neg_samples=2)
    shapes = set()

    def spy(positive, negative):
        shapes.add((positive.shape[1], negative.shape[1]))
        return pointwise_loss(positive, negative)

    monkeypatch.setattr(recommender, "pointwise_loss", spy)
    model.fit(data.train)
    assert shapes == {(3, 2)}


def test_drawn_items_are_never_in_the_users_train_rows(toy):
    data = toy.load()
    lists = np.ones((len(data.train.sequences.user_ids), 5), dtype=np.int32)
    network = partial(Caser, L=3, d=6)
    model = DistilledRecommender(network, lists, num_dynamic_samples=70, neg_samples=50)
    model.prepare(data.train)
    rows = model.instances
    users, seen = model.users[rows], data.train.tocsr()
    for draw, size in ((model.draw_negatives, 50), (model.draw_dynamic_samples, 70)):
        drawn = draw(rows, users)
        assert drawn.shape == (len(rows), size)
        assert (drawn.min(), drawn.max()) == (1, data.train.num_items - 1)
        for user, items in zip(users.tolist(), drawn.tolist(), strict=True):
            assert not set(items) & set(seen[user].indices)


def test_windows_of_an_owner_of_everything_are_not_trained():
    """There is nothing to tell their targets from."""
    known = Interactions("a" * 6 + "b" * 5, "uvwxyz" + "uvwxy")
    known.to_sequence(3, 1)
    model = Recommender(partial(Caser, L=3, d=6), n_iter=1)
    model.prepare(known)
    model.fit(known)
    assert model.users[model.instances].tolist() == [1, 1]


@pytest.mark.parametrize("flags", [["--batch_size", 1], ["--batch_size", 7], ["--neg_samples", 1],
                                   ["--L", 60], ["--L", 1], ["--T", 12], ["--nv", 0], ["--nh", 0],
                                   ["--ac_conv", "prelu", "--ac_fc", "prelu"]])  # fmt: skip
def test_corner_sizes_train(command, toy, tmp_path, flags):
    out = train(command, toy, tmp_path, "--n_iter", 1, *flags)
    assert "loss=" in out
    assert "nan" not in out


def test_every_flag_reaches_the_model(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 2)
    unchanged = weights(tmp_path / "out" / NAME)["W2.weight"]
    for flag, value in (("L", 2), ("T", 2), ("d", 7), ("nv", 3), ("nh", 5), ("drop", 0.1),
                        ("ac_conv", "relu"), ("ac_fc", "tanh"), ("batch_size", 9), ("l2", 0.1),
                        ("learning_rate", 0.01), ("neg_samples", 5), ("seed", 4), ("n_iter", 1),
                        ("train_fraction", 0.5)):  # fmt: skip
        train(command, toy, tmp_path / flag, "--n_iter", 2, f"--{flag}", value)
        (path,) = (tmp_path / flag / "out").glob("*.pth.tar")
        changed = weights(path)["W2.weight"]
        assert changed.shape[1] == 14 if flag == "d" else not torch.equal(changed, unchanged), flag


@pytest.mark.parametrize(("flags", "expected"), [([], [2, 4, 5]), (["--save_every", 3], [3, 5])])
def test_it_saves_when_evaluated_or_asked(command, toy, tmp_path, monkeypatch, flags, expected):
    saved = []

    def save_run(path, model, *_):
        saved.append(model.epoch_num)

    monkeypatch.setattr("support.command_line.save_run", save_run)
    train(command, toy, tmp_path, "--n_iter", 5, *flags)
    assert saved == expected


# ----------------------------------------------------------------- determinism and resuming


def test_same_seed_same_numbers():
    def draws():
        set_seed(7)
        return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    assert draws() == draws()


def assert_same_run(*paths):
    """Weights alike, and records but for the times."""
    assert_same_weights(*paths)
    kept = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in records(file)[1:]]
        for file in map(records_path, paths)
    ]
    assert kept[0] == kept[1]


def test_same_seed_same_bytes_of_weights(command, toy, tmp_path):
    for name in "ab":
        train(command, toy, tmp_path / name, "--n_iter", 3)
    assert_same_run(*(tmp_path / name / "out" / NAME for name in "ab"))


def test_a_fraction_is_drawn_once_and_its_size_rounded_up(toy):
    data = toy.load()
    model = prepared(data, train_fraction=0.3)
    assert len(model.instances) == -(-3 * data.counts["windows"] // 10)
    assert len(set(model.instances.tolist())) == len(model.instances)
    torch.manual_seed(1)
    orders = [sorted(model.epoch_order().tolist()) for _ in range(2)]
    assert orders == [model.instances.tolist()] * 2


@pytest.mark.parametrize("flags", [[], ["--train_fraction", 0.3]])
def test_resumed_run_equals_the_uninterrupted_one(command, toy, tmp_path, flags):
    train(command, toy, tmp_path / "a", "--n_iter", 5, *flags)
    train(command, toy, tmp_path / "b", "--n_iter", 2, *flags)
    whole, path = (tmp_path / name / "out" / NAME for name in "ab")
    status, out, _ = command(train_caser.main, "--checkpoint", path, "--n_iter", 5)
    assert status == 0
    assert "Epoch 3 " in out
    assert "Epoch 2 " not in out
    assert_same_run(whole, path)


def test_stopping_in_an_epoch_and_resuming_changes_nothing(command, toy, tmp_path, monkeypatch):
    train(command, toy, tmp_path / "a", "--n_iter", 3)
    whole, path = (tmp_path / name / "out" / NAME for name in "ab")
    flags = [*toy.flags, *SMALL, "--n_iter", 3, "--output_dir", path.parent]
    stop_after, calls = [3, 0, 2, 6], []
    step = Recommender.train_on

    def interrupted(self, rows):
        calls.append(None)
        if stop_after and len(calls) > stop_after[0]:
            del stop_after[0], calls[:]
            signal.raise_signal(signal.SIGTERM)
        return step(self, rows)

    monkeypatch.setattr(Recommender, "train_on", interrupted)
    status, out, _ = command(train_caser.main, *flags)
    stops = 0
    while status == 143:
        stops += 1
        assert f"--checkpoint {path}" in out
        status, out, _ = command(train_caser.main, "--checkpoint", path)
    assert (status, stops) == (0, 4)
    assert_same_run(whole, path)
