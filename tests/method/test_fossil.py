"""Fossil: against a slow version by loops, what it learns, and its scripts."""

import re
from functools import partial

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, assert_same_weights, records, tree
from torch.testing import assert_close

import baselines
import distill_caser
import distill_fossil
import recommend
import train_caser
import train_fossil
from evaluation import evaluate_ranking
from fossil import Fossil
from interactions import Interactions
from recommend import TrainedModel
from recommender import Recommender
from support.checkpoint import add_mean_user, records_path

# Users of 1 to 14 rows, of whom some had an item again and again.
ROWS = [
    (user, item)
    for user in range(14)
    for item in np.random.default_rng(user).integers(0, 4 + 3 * (user % 3), 1 + user)
]


def make(L, T, alpha=0.5):
    """A Fossil with weights as after some training, and the rows that it is about."""
    known = Interactions(*zip(*ROWS, strict=True))
    known.to_sequence(L, T)
    torch.manual_seed(0)
    net = Fossil(known.num_users, known.num_items, L=L, d=6, history_alpha=alpha)
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter)
    return net, known


def slow_score(net, user, row, item):
    """b_j + < x(u, t), Q_j > by the paper's formula, for ``row``, all that the user had before."""
    x = torch.zeros(6)
    for earlier in row:
        x = x + net.P.weight[earlier]
    x = x * len(row) ** -net.architecture["history_alpha"]
    L = net.architecture["L"]
    for k in range(1, min(L, len(row)) + 1):  # k = 1: the newest
        x = x + (net.eta[L - k] + net.user_eta.weight[user, L - k]) * net.P.weight[row[-k]]
    return net.b.weight[item, 0] + x @ net.Q.weight[item]


@pytest.mark.parametrize(("L", "T", "alpha"), [(5, 1, 0.5), (3, 2, 0), (1, 1, 1), (20, 3, 0.2)])
def test_scores_and_gradients_equal_the_slow_version(L, T, alpha):
    net, known = make(L, T, alpha)
    rows_of = [known.item_ids[known.user_ids == user].tolist() for user in range(14)]
    places = [  # the row up to the first target, newest window first
        (user, row[:stop])
        for user, row in enumerate(rows_of)
        for stop in range(len(row) - T, min(L, len(row) - T) - 1, -1)
        if stop > 0
    ]
    sequences, users, history = known.sequences.inputs("cpu")
    order = torch.randperm(len(users))
    items = torch.randint(1, known.num_items, (len(users), 3))
    x = net.represent(sequences[order], users[order], history[order])
    scores = net.score(x, items[order])
    wanted = torch.stack(
        [
            torch.stack([slow_score(net, *place, item) for item in some])
            for place, some in zip(places, items, strict=True)
        ]
    )[order]
    assert_close(scores, wanted, atol=1e-5, rtol=1e-5)
    weight = torch.randn(scores.shape)
    parameters = [net.P.weight, net.Q.weight, net.b.weight, net.eta, net.user_eta.weight]
    assert {*parameters} == {*net.parameters()}
    found, expected = (
        torch.autograd.grad((values * weight).sum(), parameters) for values in (scores, wanted)
    )
    assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert found[0].abs().sum() > 0 == found[0][0].abs().sum()  # padding adds nothing


def test_a_user_s_whole_row_is_what_a_test_starts_from():
    net, known = make(3, 1)
    with torch.no_grad():
        scores = net.score_all(*known.test_sequences.inputs("cpu"))
        for user in range(14):
            row = known.item_ids[known.user_ids == user].tolist()
            assert_close(scores[user, 2], slow_score(net, user, row, 2), atol=1e-4, rtol=1e-4)


def test_parameter_counts_of_the_papers_table_3():
    """Tang and Wang 2018, Table 3: 1.48M and .64M on Gowalla; here padding has its rows too."""
    for d, theirs in ((50, 1_480_659), (20, 640_119)):
        with torch.device("meta"):
            net = Fossil(13_149, 14_010, d=d)
        assert sum(parameter.numel() for parameter in net.parameters()) == theirs + 2 * d + 1


def test_shapes_tell_all_but_alpha():
    net, known = make(3, 1)
    told = {"num_users": known.num_users, "num_items": known.num_items, "L": 3, "d": 6}
    assert Fossil.arguments_of(net.state_dict()) == told


def test_the_mean_user_comes_behind_all_others():
    net, known = make(3, 1)
    sequences, users, history = known.test_sequences.inputs("cpu")
    before = net.score_all(sequences, users, history)
    mean = net.user_eta.weight.mean(0)
    assert add_mean_user(net) == 14
    assert torch.equal(net.score_all(sequences, users, history), before)
    assert_close(net.user_eta.weight[14], mean)


# ------------------------------------------------------------------------------- learning


def learned_map(rows, asked):
    """The MAP of the last items of the users ``asked``, learned from the rest of ``rows``."""
    kept = [row[: len(row) - (user in asked)] for user, row in enumerate(rows)]
    users = np.repeat(np.arange(len(rows)), [len(row) for row in kept])
    known = Interactions(users, np.concatenate(kept))
    known.to_sequence(3, 1)
    test = Interactions(asked, rows[asked, -1], known.user_map, known.item_map)
    network = partial(Fossil, L=3, d=16)
    model = Recommender(network, n_iter=40, batch_size=64, learning_rate=1e-2)
    model.prepare(known)
    model.fit(known)
    return evaluate_ranking(model.net, known, test)["map"].mean()


def test_it_learns_what_comes_next():
    """Users who walk round a ring of items, or who jump anywhere."""
    rng = np.random.default_rng(0)
    ring = (rng.integers(0, 30, (60, 1)) + np.arange(15)) % 30
    assert learned_map(ring, np.arange(60)) > 0.9
    assert learned_map(rng.integers(0, 30, (60, 15)), np.arange(60)) < 0.35


def test_it_learns_a_taste_that_the_window_does_not_show():
    """A user's first item tells the last; the four between tell nothing."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, 6, 240)
    between = np.argsort(rng.random((240, 4)), axis=1) + 12
    rows = np.column_stack([kind, between, kind + 6])
    assert learned_map(rows, np.arange(120, 240)) > 0.9


# ---------------------------------------------------------------------------- its scripts


@pytest.fixture
def run(command, toy, tmp_path):
    """Train or distil by a script in tmp_path/out: (status, stdout, lines of stderr)."""

    def call(script, *flags, out="out"):
        flags = [*toy.flags, *SMALL, "--output_dir", tmp_path / out, *flags]
        return command(script.main, *flags)

    return call


@pytest.fixture
def out(run, tmp_path):
    """A folder with a Caser and a Fossil teacher of d = 6."""
    for script in (train_caser, train_fossil):
        assert run(script, "--n_iter", 2)[0] == 0
    return tmp_path / "out"


STUDENT = ["--n_iter", 2, "--d", 4, "--K", 5, "--dynamic_start_epoch", 1]


def test_resumed_runs_equal_the_uninterrupted_ones(command, run, out, tmp_path):
    for script, flags, name in (
        (train_fossil, [], "toy-fossil-dim=6.pth.tar"),
        (distill_fossil, [*STUDENT[2:], "--teacher_model_dim", 6], "toy-fossil-dim=4-rd.pth.tar"),
    ):
        teacher = ["--teacher_model_path", out / "toy-fossil-dim=6.pth.tar"] if flags else []
        for n_iter, folder in ((4, "whole"), (2, "parts")):
            assert run(script, *flags, *teacher, "--n_iter", n_iter, out=folder)[0] == 0
        path = tmp_path / "parts" / name
        assert command(script.main, "--checkpoint", path, "--n_iter", 4)[0] == 0
        assert_same_weights(tmp_path / "whole" / name, path)


def test_every_flag_reaches_the_model(run, tmp_path):
    changes = [], ["--L", 2], ["--d", 7], ["--history_alpha", 0.2], ["--T", 2]
    losses = []
    for number, flags in enumerate(changes):
        assert run(train_fossil, "--n_iter", 2, *flags, out=str(number))[0] == 0
        (path,) = (tmp_path / str(number)).glob("*.jsonl")
        losses.append(records(path)[-1]["loss"])
    assert len(set(losses)) == len(changes)


def test_any_teacher_teaches_any_student(run, out, toy, command):
    bpr = [*toy.flags, "--d", 6, "--n_iter", 1, "--output_dir", out]
    assert command(baselines.main, *bpr)[0] == 0
    whole = torch.load(out / "toy-caser-dim=6.pth.tar", weights_only=True)
    bare = {name: whole[name] for name in ("epoch_num", "state_dict", "optimizer")}
    torch.save(bare, out / "bare.pth.tar")  # as the authors' code leaves one
    own = ["--teacher_model_dim", 6]
    of = {name: ["--teacher_model_path", out / f"toy-{name}-dim=6.pth.tar"]
          for name in ("caser", "fossil", "bpr")}  # fmt: skip
    names = "toy-{}-dim=4-rd{}.pth.tar", "toy-{}teacher-dim=6-top=5.npy"
    for script, flags, student, lists in (
        (distill_caser, own, ("caser", ""), ""),
        (distill_fossil, own, ("fossil", ""), "fossil-"),
        (distill_caser, of["fossil"], ("caser", "-from-fossil"), "fossil-"),
        (distill_fossil, of["caser"], ("fossil", "-from-caser"), ""),
        (distill_fossil, ["--teacher_model_path", out / "bare.pth.tar"],
         ("fossil", "-from-caser"), ""),
        (distill_caser, of["bpr"], ("caser", "-from-bpr"), "bpr-"),
    ):  # fmt: skip
        status, printed, err = run(script, *STUDENT, *flags)
        assert (status, err) == (0, [])
        assert "Teacher (d=6)\tmap=" in printed
        assert str(out / names[0].format(*student)) in printed.splitlines()[-1]
        assert (out / names[1].format(lists)).exists()
    assert len(list(out.glob("toy-*-rd*.pth.tar"))) == 5 + 1  # what the bare one's replaced
    assert len(list(out.glob("*.npy"))) == 3  # a teacher's lists serve all students


def test_a_crossed_student_is_resumed_and_evaluated_from_its_own_file(command, run, out):
    teacher = ["--teacher_model_path", out / "toy-fossil-dim=6.pth.tar"]
    assert run(distill_caser, *STUDENT, *teacher)[0] == 0
    path = out / "toy-caser-dim=4-rd-from-fossil.pth.tar"
    before = set(out.iterdir())
    assert command(distill_caser.main, "--checkpoint", path, "--n_iter", 3)[0] == 0
    for script in (distill_caser, distill_fossil, train_fossil):
        assert "map=" in command(script.main, "--evaluate", "--checkpoint", path)[1]
    assert [row["epoch"] for row in records(records_path(path))[1:]] == [1, 2, 3]
    assert set(out.iterdir()) == before


def test_lists_of_anybody_s_need_no_teacher(run, tmp_path, toy):
    """The lists are made by the example in checkpoints/README.md."""
    text = (ROOT / "checkpoints" / "README.md").read_text("utf-8")
    (example,) = re.findall(r"```python\n(.+?)```", text, re.DOTALL)
    lists = tmp_path / "mine.npy"
    for theirs, ours in (
        ("datasets/ml-100k/test/train.txt", str(toy.train)),
        ("sequence_length=5", "sequence_length=3"),
        ("mine.npy", str(lists)),
    ):
        assert theirs in example
        example = example.replace(theirs, ours)
    exec(example, {})
    known = toy.load().train
    for row, targets in zip(np.load(lists), known.sequences.targets, strict=True):
        assert len({*row} - {0, *targets}) == 10
    flags = [*STUDENT, "--K", 10, "--teacher_topk_path", lists]
    for script, name in ((distill_caser, "caser"), (distill_fossil, "fossil")):
        status, printed, err = run(script, *flags)
        assert (status, err) == (0, [])
        assert "Teacher" not in printed
        student = tmp_path / "out" / f"toy-{name}-dim=4-rd.jsonl"
        assert records(student)[0]["lists"].keys() == {"content"}


def test_lists_of_another_alpha_are_stale(run, out):
    teacher = out / "toy-fossil-dim=6.pth.tar"
    flags = [*STUDENT, "--teacher_model_path", teacher]
    assert run(distill_fossil, *flags)[0] == 0
    saved = torch.load(teacher, weights_only=True)
    saved["architecture"]["history_alpha"] = 0.9
    torch.save(saved, teacher)
    assert "history_alpha 0.5, this run has 0.9; rebuilding it" in run(distill_fossil, *flags)[1]


def test_what_can_not_be_is_one_line_and_changes_nothing(command, run, out, tmp_path, toy):
    fossil, caser = (out / f"toy-{name}-dim=6.pth.tar" for name in ("fossil", "caser"))
    student = "toy-fossil-dim=6-rd.pth.tar"
    (out / student).write_bytes(fossil.read_bytes())
    whole = torch.load(fossil, weights_only=True)
    for key, name, value in (
        ("state_dict", "Q.weight", torch.zeros(3, 6)),
        ("state_dict", "eta", None),
        ("architecture", "history_alpha", "x"),
    ):
        torch.save(whole | {key: whole[key] | {name: value}}, out / name)
    before = tree(tmp_path)
    for script, flags, words in (
        (train_fossil, ["--history_alpha", 11], "not a number in [0, 10]"),
        (train_caser, ["--checkpoint", fossil], "train_fossil.py made it and can resume it"),
        (train_fossil, ["--checkpoint", fossil, "--history_alpha", 0.3], "has 0.5; leave the flag"),
        (train_fossil, ["--evaluate", "--checkpoint", out / "Q.weight"], "do not fit together"),
        (train_fossil, ["--evaluate", "--checkpoint", out / "eta"], "no checkpoint of this"),
        (distill_caser, ["--teacher_model_path", out / "history_alpha"], "no checkpoint of this"),
        (distill_fossil, ["--teacher_model_dim", 7], "train_fossil.py, or name one"),
        (distill_caser, ["--L", 2, "--teacher_model_path", fossil], "the teacher's L is 3"),
        (distill_fossil, ["--L", 2, "--teacher_model_path", caser], "the teacher's L is 3"),
        (distill_fossil, ["--teacher_model_path", out / student], "is the teacher, and the"),
        (distill_caser, ["--teacher_topk_path", out / "no.npy", "--teacher_model_dim", 7],
         f"no such teacher to make {out / 'no.npy'}"),
        (distill_caser, ["--teacher_topk_path", toy.train], "not a top-K cache"),
    ):  # fmt: skip
        own = [] if "--checkpoint" in flags else [*toy.flags, *SMALL, "--output_dir", out]
        status, _, err = command(script.main, *own, *flags)
        assert (status, len(err)) == (2, 1), (flags, err)
        assert words in err[0]
        assert tree(tmp_path) == before


def test_users_and_items_are_found_by_their_ids(command, run, out, toy):
    """History included; what the model does not know counts nowhere in it."""
    path = out / "toy-fossil-dim=6.pth.tar"
    evaluate = partial(command, train_fossil.main, "--evaluate", "--checkpoint", path)
    before = re.findall(r"map=[^\[]*", evaluate()[1])
    rows = toy.train.read_text().splitlines(keepends=True)
    toy.train.write_text("".join(sorted(rows, key=lambda row: -int(row.split()[0][1:]))))
    assert re.findall(r"map=[^\[]*", evaluate()[1]) == before
    with toy.train.open("a") as file:
        file.write("u0 strange 1\nnew strange 1\nnew i1 1\nnew i2 1\n")
    status, printed, err = evaluate("--allow_other_data")
    assert (status, err) == (0, [])
    assert "'strange'" in printed


def test_recommendations_go_on_from_the_whole_history(command, run, out, toy):
    path = out / "toy-fossil-dim=6.pth.tar"
    model = TrainedModel(path)
    histories = {}
    for line in toy.train.read_text().splitlines():
        histories.setdefault(line.split()[0], []).append(line.split()[1])
    users = list(histories)
    best = model.recommend([*histories.values()], users, top=3)
    status, printed, err = command(recommend.main, "--checkpoint", path, "--top", 3)
    assert (status, err) == (0, [])
    table = [line.split("\t") for line in printed.splitlines()[1:]]
    wanted = [(user, *pair) for user, pairs in zip(users, best, strict=True) for pair in pairs]
    assert [(user, item) for user, item, _, _ in table] == [(u, item) for u, item, _ in wanted]
    assert [float(row[3]) for row in table] == pytest.approx([w[2] for w in wanted], abs=1e-5)
    user = users.index("u9")
    row = [model.item_map[item] for item in histories["u9"]]
    item, score = best[user][0]
    assert score == pytest.approx(
        slow_score(model.net, user, row, model.item_map[item]).item(), abs=1e-5
    )
    (unknown,) = model.recommend([histories["u9"]], [None], top=1)
    item, score = unknown[0]
    assert score == pytest.approx(
        slow_score(model.net, len(users), row, model.item_map[item]).item(), abs=1e-5
    )
