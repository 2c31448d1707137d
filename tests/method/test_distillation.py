"""Distillation: the teacher's lists, the weights of Table 4, and what a student learns of them."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import assert_same_weights, weights

import distill_caser
import evaluation
from caser import Caser
from distillation import RankingDistillation, teacher_lists
from interactions import Interactions


@pytest.mark.parametrize("exclude", ["target", "observed"])
@pytest.mark.parametrize(("T", "block"), [(1, 1 << 22), (2, 100)])
def test_lists_equal_the_slow_version(toy, monkeypatch, exclude, T, block):
    monkeypatch.setattr(evaluation, "BLOCK", block)
    known = toy.load(T=T).train
    torch.manual_seed(0)
    net = Caser(known.num_users, known.num_items, L=3, d=6)
    net.b2.weight.data[0] = 1000  # padding scores best and still is in no list
    lists = teacher_lists(net, known, 5, exclude)
    assert lists.dtype == np.int32
    windows, seen = known.sequences, known.tocsr()
    for row, user in enumerate(windows.user_ids):
        with torch.no_grad():
            window = torch.from_numpy(windows.sequences[row : row + 1])
            scores = net.score_all(window, torch.tensor([user]))[0].tolist()
        out = set(seen[user].indices) if exclude == "observed" else set(windows.targets[row])
        best = sorted(set(range(1, len(scores))) - out, key=lambda item: -scores[item])[:5]
        assert lists[row].tolist() == best


SAMPLES = torch.randint(1, 38, (6, 100), generator=torch.Generator().manual_seed(1))


def weights_of(toy, epoch=5, teacher_list=(1, 2, 3, 4), **options):
    """w (B, K) as the loss of the first windows shows it, and w^b as Eq. 9 has it."""
    known = toy.load().train
    lists = np.tile(np.array(teacher_list, np.int32), (len(known.sequences.user_ids), 1))
    model = RankingDistillation(
        partial(Caser, L=3, d=4), teach_alpha=3.0, mu=0.05, teacher_topk=lists, **options
    )
    torch.manual_seed(0)
    model.prepare(known)
    model.epoch_num = epoch - 1
    model.draw_dynamic_samples = lambda rows, users: SAMPLES
    rows = torch.arange(6)
    users = model.users[rows]
    x = model.net.represent(model.sequences[rows], users)
    items = model.more_items(rows, users, x)
    scores = model.net.score(x, items).detach().requires_grad_()
    model.more_loss(rows, users, x, items, scores).backward()
    # The loss is teach_alpha times the mean of -w logsigmoid(score).
    weight = -scores.grad * len(rows) / 3 / (-scores).sigmoid()

    sampled = model.net.score(x, SAMPLES)
    above = (sampled[:, None] > scores[:, :, None]) & (SAMPLES[:, None] != items[:, :, None])
    rank = (above.sum(2) * (known.num_items - 1) / 100).floor()
    return weight.detach(), torch.tanh(0.05 * (rank - torch.arange(4)).clamp(min=0))


def test_weights_of_table_4(toy):
    get = partial(weights_of, toy, dynamic_start_epoch=2, lamda=1.5)
    raw = torch.exp(-torch.arange(1, 5) / 1.5)
    position, uniform = (raw / raw.sum()).expand(6, -1), torch.full((6, 4), 0.25)
    _, w_b = get(weights="hybrid")
    assert w_b.unique().numel() > 3
    product = position * w_b
    normalized = product / product.sum(1, keepdim=True).clamp(min=1e-9)
    for early, late, options in (
        (position, position, {"weights": "position"}),
        (uniform, uniform, {"weights": "uniform"}),
        (uniform, uniform * w_b, {"weights": "discrepancy", "hybrid_weight": "normalized"}),
        (position, product, {"weights": "hybrid"}),
        (position, normalized, {"weights": "hybrid", "hybrid_weight": "normalized"}),
    ):
        for epoch, expected in ((1, early), (2, early), (3, late), (9, late)):
            weight, _ = get(epoch, **options)
            assert torch.allclose(weight, expected, atol=1e-5), (options, epoch)


def test_padding_in_a_list_weighs_nothing(toy):
    for name in ("hybrid", "position", "uniform", "discrepancy"):
        for epoch in (1, 20):
            weight, _ = weights_of(toy, epoch, (3, 0, 5, 0), weights=name)
            assert (weight[:, [1, 3]] == 0).all()
            assert (weight[:, [0, 2]] >= 0).all()
            assert weight.sum() > 0


def test_the_student_learns_its_teachers_list():
    """With no signal in the data but the lists, the student ranks the listed items first."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(30)[:8] for _ in range(40)])
    known = Interactions(np.repeat(np.arange(40), 8), items)
    known.to_sequence(3, 1)
    favourites = [5, 9, 17]
    lists = np.tile(np.array(favourites, dtype=np.int32), (len(known.sequences.user_ids), 1))
    torch.manual_seed(0)
    options = {"n_iter": 15, "batch_size": 32, "learning_rate": 1e-2, "teach_alpha": 20.0}
    network = partial(Caser, L=3, d=8, drop=0)
    model = RankingDistillation(network, teacher_topk=lists, weights="uniform", **options)
    model.prepare(known)
    model.fit(known)
    inputs = known.sequences.inputs("cpu")
    found, _ = evaluation.best_items(model.net.eval(), inputs, ([], []), 3)
    assert (np.sort(found) == favourites).mean() > 0.95
    assert all(record["loss"] > record["regular_loss"] > 0 for record in model.records)


def test_every_flag_reaches_the_model(taught, tmp_path):
    assert taught("--n_iter", 3)[0] == 0
    unchanged = weights(taught.student)["W2.weight"]
    for flag, value in (("teach_alpha", 3), ("lamda", 9), ("mu", 0.01), ("dynamic_samples", 7),
                        ("num_dynamic_samples", 7), ("dynamic_start_epoch", 2), ("K", 4),
                        ("teacher_exclude", "observed"), ("weights", "uniform"),
                        ("hybrid_weight", "normalized")):  # fmt: skip
        assert taught("--n_iter", 3, f"--{flag}", value, out=flag)[0] == 0
        changed = weights(tmp_path / flag / taught.student.name)["W2.weight"]
        assert not torch.equal(changed, unchanged), flag


def test_resumed_distillation_equals_the_uninterrupted_one(taught, command, tmp_path):
    assert taught("--n_iter", 4, out="whole")[0] == 0
    assert taught("--n_iter", 2)[0] == 0
    assert command(distill_caser.main, "--checkpoint", taught.student, "--n_iter", 4)[0] == 0
    assert_same_weights(tmp_path / "whole" / taught.student.name, taught.student)
