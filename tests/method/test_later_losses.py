"""RRD, list-wise and CD: which items they score, what they make of the scores, and their runs."""

from functools import partial

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_weights, records, weights
from test_losses import slow_listwise_loss, slow_relaxed_ranking_loss, slow_soft_label_loss

import distill_caser
import distill_fossil
import train_caser
import train_fossil
from caser import Caser
from distillation import METHODS, teacher_lists
from interactions import Interactions
from support.checkpoint import records_path
from support.data_set import Renumbered
from support.teacher import METHOD_FLAGS

LATER = [name for name in METHODS if name != "rd"]


def student_of(known, method, teacher, K=5, lists=None, **options):
    """A prepared student of d = 4."""
    if METHODS[method].uses_lists:
        options["teacher_topk"] = teacher_lists(teacher, known, K) if lists is None else lists
    model = METHODS[method](partial(Caser, L=3, d=4), teacher=teacher, **options)
    model.prepare(known)
    return model


def teacher_of(known):
    torch.manual_seed(0)
    net = Caser(known.num_users, known.num_items, L=3, d=6)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net


# ------------------------------------------------------------------------ items and losses


@pytest.mark.parametrize("method", LATER)
def test_items_and_loss_of_a_batch_equal_the_slow_version(toy, method):
    known = toy.load().train
    teacher = teacher_of(known)
    lists = teacher_lists(teacher, known, 5)
    lists[0, [1, 4]] = lists[3] = 0
    options = {"rrd": {"rrd_negatives": 30}, "listwise": {"temperature": 1.5},
               "cd": {"cd_samples": 30, "cd_scale": 2.0, "cd_shift": 0.7}}  # fmt: skip
    model = student_of(known, method, teacher, lists=lists, teach_alpha=3.0, **options[method])
    rows = torch.arange(20)
    users = model.users[rows]
    x = model.net.represent(model.sequences[rows], users, model.history[rows])
    items = model.more_items(rows, users, x)
    scores = model.net.score(x, items).detach().requires_grad_()
    loss = model.more_loss(rows, users, x, items, scores)
    loss.backward()
    assert scores.grad.isfinite().all()
    assert (scores.grad[items == 0] == 0).all()

    with torch.no_grad():
        inputs = (part[rows] for part in known.sequences.inputs("cpu"))
        taught = teacher.eval().score_all(*inputs).gather(1, items)
    listed = torch.from_numpy(lists[:20])
    drawn = items[:, 5:] if method == "rrd" else items
    s = scores.detach()
    if method == "listwise":
        assert torch.equal(items, listed.long())
        s, taught = (part.masked_fill(listed == 0, -torch.inf) for part in (s, taught))
        slow = slow_listwise_loss(s, taught)
    else:
        seen = known.tocsr()
        for user, some in zip(users.tolist(), drawn.tolist(), strict=True):
            assert not {*some} & {0, *seen[user].indices}
    if method == "cd":
        slow = slow_soft_label_loss(s, taught)
    if method == "rrd":
        assert torch.equal(items[:, :5], listed.long())
        out = torch.tensor(
            [[i in row for i in some] for row, some in zip(listed, drawn, strict=True)]
        )
        assert out.any()
        s = s.masked_fill(torch.cat([listed == 0, out], 1), -torch.inf)
        slow = slow_relaxed_ranking_loss(s[:, :5], s[:, 5:])
    assert loss.item() == pytest.approx(3 * slow.item(), rel=1e-5)


@pytest.mark.parametrize("guide", ["student", "teacher"])
def test_cd_draws_by_the_linear_law_of_the_guides_ranks(toy, guide):
    known = toy.load().train
    model = student_of(known, "cd", teacher_of(known), cd_samples=40_000, cd_guide=guide)
    rows, users = torch.tensor([0]), model.users[:1]
    x = model.net.represent(model.sequences[rows], users)
    drawn = np.bincount(model.more_items(rows, users, x)[0], minlength=known.num_items)
    with torch.no_grad():
        scores = (
            model.net.score(x, torch.arange(known.num_items)[None])
            if guide == "student"
            else model.teacher.score_all(model.sequences[rows], users)
        )[0].tolist()
    outside = set(range(1, known.num_items)) - {*known.tocsr()[users[0]].indices}
    ranking, N = sorted(outside, key=lambda item: -scores[item]), len(outside)
    assert drawn.sum() == drawn[ranking].sum() == 40_000
    wanted = np.array([1 - r / N for r in range(1, N + 1)])
    wanted *= 40_000 / wanted.sum()
    assert (np.abs(drawn[ranking] - wanted) <= 5 * np.sqrt(wanted)).all()


def test_a_teacher_is_asked_in_its_own_numbers(toy):
    """Both ways of scoring agree where it numbers users and items otherwise."""
    known = toy.load().train
    rng = np.random.default_rng(0)
    users, items = rng.permutation(known.num_users), rng.permutation(known.num_items)
    items[[0, 7]], users[3] = -1, -1
    teacher = Renumbered(teacher_of(known), users, items).eval()
    with torch.no_grad():
        inputs = known.sequences.inputs("cpu")
        wanted = teacher.score_all(*inputs)
        everything = torch.arange(known.num_items).expand(len(wanted), -1)
        found = teacher.score(teacher.represent(*inputs), everything)
    assert torch.allclose(found, wanted, atol=1e-5)
    assert (found[:, 7] == -torch.inf).all()


@pytest.mark.parametrize("method", LATER)
def test_the_student_learns_its_teachers_order(method):
    """With no signal in the data but the teacher's, its favourites end above its other items."""
    rng = np.random.default_rng(0)
    items = np.concatenate([rng.permutation(30)[:8] for _ in range(40)])
    known = Interactions(np.repeat(np.arange(40), 8), items)
    known.to_sequence(3, 1)
    teacher = Caser(40, 31, L=3, d=2)
    for parameter in teacher.parameters():
        torch.nn.init.zeros_(parameter)
    teacher.b2.weight.data[:, 0] = -torch.arange(31.0) / 4  # item 1 is the best
    options = {"n_iter": 15, "batch_size": 32, "learning_rate": 1e-2, "teach_alpha": 3.0}
    model = student_of(known, method, teacher, 15, **options)
    model.fit(known)
    with torch.no_grad():
        scores = model.net.eval().score_all(*known.test_sequences.inputs("cpu"))
    assert (scores[:, 1:6].amin(1) > scores[:, 10:16].amax(1)).float().mean() > 0.95
    assert all(record["loss"] > record["regular_loss"] > 0 for record in model.records)


# ------------------------------------------------------------------------------ their runs

FEW = {"rrd": ["--K", 5, "--rrd_negatives", 6], "listwise": ["--K", 5], "cd": ["--cd_samples", 6]}


@pytest.fixture
def distil(command, toy, taught, tmp_path):
    """Distil by a method with flags, which must go well; gives the checkpoint."""

    def run(method, *flags, out="out", script=distill_caser, teacher=taught.teacher, end=""):
        flags = [*toy.flags, *SMALL, "--d", 4, "--teacher_model_path", teacher,
                 "--distillation", method, *FEW[method], "--output_dir", tmp_path / out,
                 *flags]  # fmt: skip
        status, printed, err = command(script.main, *flags)
        assert (status, err) == (0, [])
        name = script.__name__.removeprefix("distill_")
        path = tmp_path / out / f"toy-{name}-dim=4-{method}{end}.pth.tar"
        assert f"saved {path} and" in printed
        return path

    return run


@pytest.mark.parametrize("method", LATER)
def test_a_run_is_resumed_to_the_bit_by_its_own_method_and_evaluated(command, distil, method):
    whole = distil(method, "--n_iter", 4, out="whole")
    path = distil(method, "--n_iter", 2)
    flags = records(records_path(path))[0]["flags"]
    assert flags["distillation"] == method
    assert flags.keys() & METHOD_FLAGS.keys() == {
        f for f in METHOD_FLAGS if method in METHOD_FLAGS[f]
    }
    for other in {*METHODS} - {method}:
        resume = ["--checkpoint", path, "--n_iter", 4, "--distillation", other]
        status, _, err = command(distill_caser.main, *resume)
        assert status == 2
        assert err[0].endswith(f"--distillation {other}: {path} has {method}; leave the flag out")
    assert command(distill_caser.main, "--checkpoint", path, "--n_iter", 4)[0] == 0
    assert_same_weights(whole, path)
    for script in (train_caser, distill_caser):
        assert "map=" in command(script.main, "--evaluate", "--checkpoint", path)[1]


@pytest.mark.parametrize("method", LATER)
def test_every_flag_of_a_method_reaches_the_model(distil, method):
    others = {"K": 4, "teacher_exclude": "observed", "cd_guide": "teacher"}
    flags = [name for name, defaults in METHOD_FLAGS.items() if method in defaults]
    changes = [[], *([f"--{name}", others.get(name, 7)] for name in flags)]
    tables = [
        weights(distil(method, "--n_iter", 2, *change, out=str(number)))["W2.weight"]
        for number, change in enumerate(changes)
    ]
    for number, change in enumerate(changes[1:], 1):
        assert not torch.equal(tables[number], tables[0]), change


def test_any_teacher_teaches_any_student(command, toy, distil, tmp_path):
    flags = [*toy.flags, *SMALL, "--output_dir", tmp_path / "out", "--n_iter", 2]
    assert command(train_fossil.main, *flags)[0] == 0
    fossil = tmp_path / "out" / "toy-fossil-dim=6.pth.tar"
    for method in LATER:
        distil(method, "--n_iter", 1, teacher=fossil, end="-from-fossil")
        distil(method, "--n_iter", 1, script=distill_fossil, end="-from-caser")
        distil(method, "--n_iter", 1, script=distill_fossil, teacher=fossil)


def test_bare_lists_are_what_they_are_and_scores_are_the_teachers(
    distil, command, taught, tmp_path
):
    distil("rrd", "--n_iter", 1)
    bare = tmp_path / "bare.npy"
    np.save(bare, np.load(taught.cache))
    path = distil("listwise", "--n_iter", 1, "--teacher_topk_path", bare)
    assert {"content", "teacher"} <= records(records_path(path))[0]["lists"].keys()
    assert command(distill_caser.main, "--checkpoint", path, "--n_iter", 2)[0] == 0


def test_a_run_of_rd_is_described_as_it_was_before_there_were_other_methods(taught, command):
    assert taught("--n_iter", 2)[0] == 0
    flags = records(records_path(taught.student))[0]["flags"]
    network = {"L", "d", "nv", "nh", "drop", "ac_conv", "ac_fc"}
    training = {"T", "batch_size", "learning_rate", "l2", "neg_samples", "train_fraction", "seed"}
    assert flags.keys() - network - training == {
        "K", "teach_alpha", "lamda", "mu", "dynamic_samples", "dynamic_start_epoch", "weights",
        "hybrid_weight", "teacher_exclude",
    }  # fmt: skip
    saved = torch.load(taught.student, weights_only=True)
    assert saved["config"].pop("distillation") == "rd"
    torch.save(saved, taught.student)
    resume = ["--checkpoint", taught.student, "--n_iter", 3]
    status, _, err = command(distill_caser.main, *resume, "--distillation", "cd")
    assert status == 2
    assert "has rd" in err[0]
    assert command(distill_caser.main, *resume)[0] == 0
