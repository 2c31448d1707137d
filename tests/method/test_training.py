"""Training alone: what it learns, from which instances, and that stopping it changes nothing."""

import shlex
import signal
from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_weights, records, train, weights

import recommender
import train_caser
from caser import Caser
from distillation import RankingDistillation
from evaluation import evaluate_ranking
from interactions import Interactions
from losses import pointwise_loss
from recommender import Recommender, seed_epoch
from support.checkpoint import records_path

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
    options = {"dynamic_samples": 70, "neg_samples": 50}
    model = RankingDistillation(network, teacher_topk=lists, **options)
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


@pytest.mark.parametrize(("every", "expected"), [(1, [1, 2, 3, 4, 5]), (3, [3, 5])])
def test_it_saves_every_epoch_or_as_asked(command, toy, tmp_path, monkeypatch, every, expected):
    saved = []

    def save_run(path, model, *_):
        saved.append(model.epoch_num)

    monkeypatch.setattr("support.command_line.save_run", save_run)
    flags = ["--save_every", every] if every != 1 else []  # the default
    train(command, toy, tmp_path, "--n_iter", 5, *flags)
    assert saved == expected


# ----------------------------------------------------------------- determinism and resuming


def test_every_seed_and_epoch_draws_numbers_of_its_own():
    """torch takes the low 32 bits of a seed alone, so `seed << 32 | epoch` would draw the same for
    all seeds, and `seed + epoch` makes neighbours share epochs."""

    def draws(seed, epoch):
        seed_epoch(seed, epoch)
        return tuple(torch.rand(3).tolist())

    pairs = [(seed, epoch) for seed in (0, 1, 2, 3, 1234, 2**32 - 1) for epoch in range(5)]
    assert len({draws(*pair) for pair in pairs}) == len(pairs)
    assert draws(1, 2) == draws(1, 2)


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_in_any_epoch_the_printed_command_goes_on_to_the_same_run(
    command, toy, tmp_path, monkeypatch, number
):
    train(command, toy, tmp_path / "a", "--n_iter", 3)
    whole, path = (tmp_path / name / "out" / NAME for name in "ab")
    words = [*toy.flags, *SMALL, "--n_iter", 3, "--output_dir", path.parent]
    stop_after, calls, finished = [3, 1, 9, 12], [], []
    step = Recommender.train_on

    def interrupted(self, rows):
        calls.append(None)
        if stop_after and len(calls) > stop_after[0]:
            del stop_after[0], calls[:]
            finished.append(self.epoch_num)
            signal.raise_signal(number)
        return step(self, rows)

    monkeypatch.setattr(Recommender, "train_on", interrupted)
    monkeypatch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL)  # a shell's may differ
    while (result := command(train_caser.main, *words))[0] == 128 + number:
        start, script, *words = shlex.split(result[1].partition("go on with:\n")[2])
        assert [start, script] == ["python", "train_caser.py"]
        assert words[0] == ("--checkpoint" if finished[-1] else toy.flags[0])
    assert result[0] == 0
    assert finished[0] == 0  # before the first save
    assert 0 < finished[-1] < 3
    assert len(finished) == 4
    assert_same_run(whole, path)
