import json
import re
import signal
from functools import partial

import command_line
import numpy as np
import pytest
import torch
from checkpoint import records_path
from conftest import tree, write_rows

import train_caser
from caser import Caser
from evaluation import evaluate_ranking
from interactions import DataSet
from losses import pointwise_loss
from train_caser import Recommender
from utils import UserError, pick_device

SMALL = ["--d", 6, "--L", 3, "--batch_size", 16, "--eval_every", 2]


def train(command, toy, tmp_path, *flags):
    status, out, err = command(
        train_caser.main, *toy.flags, *SMALL, "--output_dir", tmp_path / "out", *flags
    )
    assert (status, err) == (0, [])
    return out


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def weights(path):
    return torch.load(path, weights_only=True)["state_dict"]


def assert_same_weights(first, second):
    first, second = weights(first), weights(second)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# ------------------------------------------------------------------ what a run leaves behind


def test_log_records_and_checkpoint(command, toy, tmp_path):
    out = train(command, toy, tmp_path, "--n_iter", 3)
    first, *epochs, last = out.splitlines()
    device = f"seed 1234, {pick_device('auto')}"
    for word in ("toy: 12 users", "windows (L=3, T=1)", "all items ranked", device):
        assert word in first
    number = r"\d\.\d{4}"
    line = rf"loss={number}, map={number}, precisions={number},{number},{number}, "
    line += rf"recalls={number},{number},{number}, ndcgs={number},{number},{number}\[\d+\.\d s\]"
    start = r"Epoch {} \[\d+\.\d s\]\t"
    assert re.fullmatch(start.format(1) + rf"loss={number}", epochs[0])
    assert re.fullmatch(start.format(2) + line, epochs[1])
    assert re.fullmatch(start.format(3) + line, epochs[2])
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    assert str(path) in last

    header, *rows = records(path.with_name("toy-caser-dim=6.jsonl"))
    assert "epoch" not in header
    assert header["config"]["d"] == 6
    assert header["seed"] == 1234
    assert header["data"]["users"] == 12
    assert header["versions"]["torch"] == torch.__version__
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    metrics = {
        f"{n}@{k}" for n in ("precision", "recall", "ndcg", "ndcg_paper") for k in (3, 5, 10)
    }
    assert rows[0].keys() == {"epoch", "loss", "train_seconds"}
    assert rows[1].keys() == rows[0].keys() | metrics | {"map", "eval_seconds"}

    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["epoch_num"] == 3
    assert checkpoint["architecture"]["L"] == 3
    assert {"state_dict", "optimizer", "config", "data", "metrics", "step"} <= checkpoint.keys()
    assert checkpoint["data"]["user_ids"].split("\n")[0] == "u0"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "toy-caser-dim=6.jsonl", "toy-caser-dim=6.pth.tar"
    ]  # fmt: skip


def test_evaluate_gives_the_digits_of_the_last_epoch_and_writes_nothing(command, toy, tmp_path):
    out = train(command, toy, tmp_path, "--n_iter", 2)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    before = tree(tmp_path)
    status, again, _ = command(train_caser.main, "--evaluate", "--checkpoint", path)
    assert status == 0
    digits = re.search(r"map=[^\[]*", out)[0]
    assert f"Evaluation\t{digits}, standard ndcgs=" in again
    assert tree(tmp_path) == before


def test_validation_split_is_in_the_name(command, toy, tmp_path):
    folder = toy.folder.with_name("validation")
    toy.folder.rename(folder)
    files = ["--train_root", folder / "train.txt", "--test_root", folder / "test.txt"]
    command(train_caser.main, *files, *SMALL, "--n_iter", 1, "--output_dir", tmp_path / "out")
    assert (tmp_path / "out" / "toy-validation-caser-dim=6.pth.tar").exists()


def test_dataset_by_name(command, toy, tmp_path, monkeypatch):
    (tmp_path / "datasets").mkdir()
    toy.folder.parent.rename(tmp_path / "datasets" / "mine")
    monkeypatch.chdir(tmp_path)
    status, out, _ = command(train_caser.main, "--dataset", "mine", *SMALL, "--n_iter", 1)
    assert status == 0
    assert out.startswith("mine: 12 users")
    assert (tmp_path / "checkpoints" / "mine-caser-dim=6.pth.tar").exists()


def test_a_new_run_replaces_the_old_one_at_its_first_save(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 4)
    train(command, toy, tmp_path, "--n_iter", 2, "--seed", 5)
    header, *rows = records(tmp_path / "out" / "toy-caser-dim=6.jsonl")
    assert header["seed"] == 5
    assert [row["epoch"] for row in rows] == [1, 2]


def test_what_a_new_run_replaces_is_kept_where_it_was_another(command, toy, tmp_path):
    """A finished model was once lost to a run of other flags that was stopped in epoch 1."""
    for _ in range(2):
        train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path / "out")
    assert len(before) == 2  # the same again keeps nothing
    out = train(command, toy, tmp_path, "--n_iter", 1, "--seed", 5)
    kept = tmp_path / "out" / "toy-caser-dim=6.old1.pth.tar"
    assert f"kept as {kept}" in out
    assert set(before.values()) < set(tree(tmp_path / "out").values())
    assert records(records_path(kept))[0]["seed"] == 1234
    assert torch.load(kept, weights_only=True)["epoch_num"] == 2
    toy.train.write_text(toy.train.read_text() + "u1 i1 1\n")
    train(command, toy, tmp_path, "--n_iter", 1, "--seed", 5)
    assert len(tree(tmp_path / "out")) == 3 * len(before)


@pytest.mark.parametrize(
    ("save_every", "saved_after"), [([], [2, 4, 5]), (["--save_every", 3], [3, 5])]
)
def test_save_every(command, toy, tmp_path, monkeypatch, save_every, saved_after):
    saved = []
    monkeypatch.setattr(
        command_line, "save_run", lambda path, model, *_: saved.append(model.epoch_num)
    )
    train(command, toy, tmp_path, "--n_iter", 5, *save_every)
    assert saved == saved_after


# ------------------------------------------------------------------------------- learning


def chains(tmp_path, noise):
    """Users who walk round a ring of items, or who jump anywhere."""
    rng = np.random.default_rng(0)
    train, test = [], []
    for user in range(60):
        start, length = rng.integers(0, 30), 15
        walk = rng.integers(0, 30, length) if noise else (start + np.arange(length)) % 30
        train += [(user, item) for item in walk[:-1]]
        test.append((user, walk[-1]))
    return DataSet.load(
        "chains", write_rows(tmp_path / "a", train), write_rows(tmp_path / "b", test), 3, 1
    )


@pytest.mark.parametrize(("noise", "low", "high"), [(False, 0.9, 1), (True, 0, 0.35)])
def test_learns_what_is_there_to_learn(tmp_path, noise, low, high):
    torch.manual_seed(0)
    data = chains(tmp_path, noise)
    network = partial(Caser, L=3, d=16, drop=0.1)
    model = Recommender(network, n_iter=40, batch_size=64, learning_rate=1e-2)
    model.prepare(data.train)
    model.fit(data.train)
    score = evaluate_ranking(model.net, data.train, data.test)["map"].mean()
    assert low <= score <= high


def test_all_targets_of_a_window_are_positives(command, toy, tmp_path, monkeypatch):
    train(command, toy, tmp_path, "--n_iter", 2, "--T", 3)
    data = DataSet.load("toy", toy.train, toy.test, 3, 3)
    model = Recommender(partial(Caser, L=3, d=6), n_iter=1, neg_samples=2)
    model.prepare(data.train)
    counts = []

    def spy(positive, negative):
        counts.append((positive.shape[1], negative.shape[1]))
        return pointwise_loss(positive, negative)

    monkeypatch.setattr(train_caser, "pointwise_loss", spy)
    model.fit(data.train)
    assert set(counts) == {(3, 2)}


def test_negatives_are_never_in_the_users_train_rows(toy):
    data = DataSet.load("toy", toy.train, toy.test, 3, 1)
    model = Recommender(partial(Caser, L=3, d=6), neg_samples=50)
    model.prepare(data.train)
    rows = model.instances
    users = model.users[rows]
    seen = data.train.tocsr()
    for user, items in zip(users.tolist(), model.draw_negatives(rows, users).tolist(), strict=True):
        assert not set(items) & set(seen[user].indices)
        assert min(items) >= 1
        assert max(items) < data.train.num_items


def test_a_fraction_of_the_instances_stays_the_same_all_along(command, toy, tmp_path):
    data = DataSet.load("toy", toy.train, toy.test, 3, 1)
    model = Recommender(partial(Caser, L=3, d=6), train_fraction=0.3)
    model.prepare(data.train)
    assert len(model.instances) == -(-3 * data.counts["windows"] // 10)
    assert len(set(model.instances.tolist())) == len(model.instances)
    train(command, toy, tmp_path / "a", "--train_fraction", 0.3, "--n_iter", 3)
    train(command, toy, tmp_path / "b", "--train_fraction", 0.3, "--n_iter", 1)
    path = tmp_path / "b" / "out" / "toy-caser-dim=6.pth.tar"
    assert command(train_caser.main, "--checkpoint", path, "--n_iter", 3)[0] == 0
    assert_same_weights(tmp_path / "a" / "out" / path.name, path)


@pytest.mark.parametrize("flags", [["--batch_size", 1], ["--batch_size", 7], ["--neg_samples", 1],
                                   ["--L", 60], ["--L", 1], ["--T", 12], ["--nv", 0], ["--nh", 0],
                                   ["--ac_conv", "prelu", "--ac_fc", "prelu"]])  # fmt: skip
def test_corner_sizes_train(command, toy, tmp_path, flags):
    out = train(command, toy, tmp_path, "--n_iter", 1, *flags)
    assert "nan" not in out


def test_windows_of_an_owner_of_everything_are_not_trained(command, tmp_path, toy):
    items = [f"i{n}" for n in range(6)]
    rows = [("all", item) for item in items] + [("b", item) for item in items[:5]]
    write_rows(toy.train, rows)
    write_rows(toy.test, [("b", "i5"), ("all", "i0")])
    out = train(command, toy, tmp_path, "--n_iter", 1)
    assert "'all'" in out


CHANGES = {
    "L": 2, "T": 2, "d": 7, "nv": 3, "nh": 5, "drop": 0.1, "ac_conv": "relu", "ac_fc": "tanh",
    "batch_size": 9, "learning_rate": 0.01, "l2": 0.1, "neg_samples": 5, "seed": 4, "n_iter": 1,
    "train_fraction": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("flag", CHANGES)
def test_every_flag_reaches_the_model(command, toy, tmp_path, flag):
    train(command, toy, tmp_path / "a", "--n_iter", 2)
    train(command, toy, tmp_path / "b", "--n_iter", 2, f"--{flag}", CHANGES[flag])
    (first,), (second,) = ((tmp_path / x / "out").glob("*.pth.tar") for x in "ab")
    changed = weights(first)["W2.weight"], weights(second)["W2.weight"]
    assert not torch.equal(*changed) if flag != "d" else changed[1].shape[1] == 14


# ----------------------------------------------------------------- determinism and resuming


def test_same_seed_same_bytes_of_weights(command, toy, tmp_path):
    train(command, toy, tmp_path / "a", "--n_iter", 3)
    train(command, toy, tmp_path / "b", "--n_iter", 3)
    assert_same_weights(*(tmp_path / x / "out" / "toy-caser-dim=6.pth.tar" for x in "ab"))


def test_resumed_run_equals_the_uninterrupted_one(command, toy, tmp_path):
    train(command, toy, tmp_path / "a", "--n_iter", 5)
    train(command, toy, tmp_path / "b", "--n_iter", 2)
    path = tmp_path / "b" / "out" / "toy-caser-dim=6.pth.tar"
    status, out, _ = command(train_caser.main, "--checkpoint", path, "--n_iter", 5)
    assert status == 0
    assert "Epoch 3 " in out
    assert "Epoch 2 " not in out
    whole = tmp_path / "a" / "out" / path.name
    assert_same_weights(whole, path)
    kept = [
        [{k: v for k, v in row.items() if "seconds" not in k} for row in records(p)[1:]]
        for p in (path.with_name("toy-caser-dim=6.jsonl"), whole.with_name("toy-caser-dim=6.jsonl"))
    ]
    assert [row["epoch"] for row in kept[0]] == [1, 2, 3, 4, 5]
    assert [row["loss"] for row in kept[0]] == [row["loss"] for row in kept[1]]
    assert kept[0][-1] == kept[1][-1]


def test_stopping_in_an_epoch_and_resuming_changes_nothing(command, toy, tmp_path, monkeypatch):
    train(command, toy, tmp_path / "a", "--n_iter", 3)
    whole = tmp_path / "a" / "out" / "toy-caser-dim=6.pth.tar"
    path = tmp_path / "b" / "out" / whole.name
    flags = [*toy.flags, *SMALL, "--n_iter", 3, "--output_dir", path.parent]
    stop_after, calls = [3, 0, 2, 6], []
    step = Recommender._batch_loss

    def interrupted(self, rows):
        calls.append(None)
        if stop_after and len(calls) > stop_after[0]:
            del stop_after[0], calls[:]
            signal.raise_signal(signal.SIGTERM)
        return step(self, rows)

    monkeypatch.setattr(Recommender, "_batch_loss", interrupted)
    status, out, _ = command(train_caser.main, *flags)
    stops = 0
    while status == 143:
        stops += 1
        assert f"--checkpoint {path}" in out
        status, out, _ = command(train_caser.main, "--checkpoint", path)
    assert (status, stops) == (0, 4)
    assert_same_weights(whole, path)
    assert [row["epoch"] for row in records(path.with_name("toy-caser-dim=6.jsonl"))[1:]] == [
        1,
        2,
        3,
    ]


def test_nothing_to_do(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 2)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    before = tree(tmp_path)
    for flags in ([], ["--n_iter", 1], ["--n_iter", 2]):
        status, out, err = command(train_caser.main, "--checkpoint", path, *flags)
        assert (status, err) == (0, [])
        assert "nothing to do" in out
    assert tree(tmp_path) == before


def test_a_flag_that_contradicts_the_checkpoint_is_refused(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 2)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    before = tree(tmp_path)
    for flag in ("d", "L", "T", "nv", "nh", "seed", "batch_size", "ac_fc"):
        status, _, err = command(
            train_caser.main, "--checkpoint", path, "--n_iter", 4, f"--{flag}", CHANGES[flag]
        )
        assert (status, len(err)) == (2, 1)
        assert f"--{flag} {CHANGES[flag]}" in err[0]
    assert tree(tmp_path) == before


def test_a_checkpoint_of_other_data_is_refused(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 2)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    text = toy.train.read_text()
    changes = {
        "12 users": text + "u99 i1 1\n",  # another size
        "user ids": text.replace("u5 ", "u77 "),
        "item ids": text.replace("i5 ", "i77 "),
        "rows": text + "u1 i1 1\n",
    }
    for word, changed in changes.items():
        toy.train.write_text(changed)
        for flags in (["--n_iter", 4], ["--evaluate"]):
            before = tree(tmp_path)
            status, _, err = command(train_caser.main, "--checkpoint", path, *flags)
            assert (status, len(err)) == (2, 1)
            assert word in err[0]
            assert tree(tmp_path) == before
    status, out, _ = command(
        train_caser.main, "--checkpoint", path, "--evaluate", "--allow_other_data"
    )
    assert status == 0
    assert "map=" in out


def test_a_loss_that_is_not_finite_stops_the_run(command, toy, tmp_path, monkeypatch):
    train(command, toy, tmp_path, "--n_iter", 2)
    before = tree(tmp_path)
    step = Recommender._batch_loss

    def broken(self, rows):
        loss, regular_loss = step(self, rows)
        return (loss * torch.nan if (self.epoch_num, self.step) == (2, 4) else loss), regular_loss

    monkeypatch.setattr(Recommender, "_batch_loss", broken)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    status, _, err = command(train_caser.main, "--checkpoint", path, "--n_iter", 4)
    assert (status, len(err)) == (2, 1)
    assert "epoch 3, batch 5" in err[0]
    assert tree(tmp_path) == before


def test_divergence_is_caught_without_help(toy):
    data = DataSet.load("toy", toy.train, toy.test, 3, 1)
    model = Recommender(partial(Caser, L=3, d=6), n_iter=3, learning_rate=1e38)
    model.prepare(data.train)
    saved = []
    with pytest.raises(UserError, match="epoch 1, batch 1: the weights"):
        model.fit(data.train, save=lambda: saved.append(1))
    assert not saved


def trained(toy):
    """A Recommender after one epoch, and the Interactions it learned from."""
    train_rows = DataSet.load("toy", toy.train, toy.test, 3, 1).train
    model = Recommender(partial(Caser, L=3, d=6), n_iter=1)
    model.prepare(train_rows)
    model.fit(train_rows)
    return model, train_rows


def test_restoring_needs_an_optimizer_that_fits(toy):
    model, _ = trained(toy)
    state = model.state() | {"path": "file"}
    state["optimizer"]["state"][0]["exp_avg"] = torch.zeros(3)
    with pytest.raises(UserError, match="moment"):
        model.restore(state)
    state["optimizer"]["param_groups"] = []
    with pytest.raises(UserError, match="resumed"):
        model.restore(state)


JUNK = [None, -1, ["x", 1], {"a": torch.zeros(3)}]


@pytest.mark.parametrize("junk", JUNK, ids=str)
def test_a_checkpoint_with_junk_in_any_place_never_breaks(command, toy, tmp_path, junk):
    """In the middle of an epoch, where most of a checkpoint is needed again."""
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    whole = torch.load(path, weights_only=True)
    whole |= {"step": 2, "step_losses": torch.ones(2, 2), "step_seconds": 1.0}
    torch.save(whole, path)
    flags = [*toy.flags, "--n_iter", 2]
    assert command(train_caser.main, "--checkpoint", path, *flags)[0] == 0
    inner = [
        (key, name)
        for key in ("config", "architecture", "data", "step_random")
        for name in whole[key]
    ]
    for place in [(key,) for key in whole] + inner:
        changed = {k: dict(v) if isinstance(v, dict) else v for k, v in whole.items()}
        holder = changed
        for key in place[:-1]:
            holder = holder[key]
        holder[place[-1]] = junk
        torch.save(changed, path)
        before = tree(tmp_path)
        status, _, err = command(train_caser.main, "--checkpoint", path, *flags)
        assert status in (0, 2), place
        assert len(err) == (status == 2), place
        assert status == 0 or tree(tmp_path) == before


def odd_weights(whole):
    """Checkpoints with readable weights that can't be meant."""
    for name, value in (
        ("fc1.weight", whole["fc1.weight"].bfloat16()),
        ("fc1.weight", torch.empty(whole["fc1.weight"].shape, device="meta")),
        ("fc1.weight", whole["fc1.weight"].mT),
        ("fc1.weight", torch.zeros(1).expand(whole["fc1.weight"].shape)),
        ("fc1.weight", torch.full_like(whole["fc1.weight"], torch.nan)),
        ("conv_v.weight", torch.empty(10**9, 1, 3, 0)),
        ("user_embeddings.weight", torch.empty(12, 0)),
        ("user_embeddings.weight", torch.empty(0, 6)),
    ):
        yield whole | {name: value}


def test_odd_weights_are_refused(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    whole = torch.load(path, weights_only=True)
    for weights_ in odd_weights(whole["state_dict"]):
        torch.save(whole | {"state_dict": weights_}, path)
        status, _, err = command(train_caser.main, "--evaluate", "--checkpoint", path)
        assert (status, len(err)) == (2, 1)
    parameters = {name: torch.nn.Parameter(v) for name, v in whole["state_dict"].items()}
    torch.save(whole | {"state_dict": parameters}, path)
    assert command(train_caser.main, "--evaluate", "--checkpoint", path)[0] == 0


def test_records_that_grow_when_written_are_refused(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    nested = [1]
    for _ in range(60):
        nested = [nested, nested]
    torch.save(torch.load(path, weights_only=True) | {"records": [{"epoch": 1, "x": nested}]}, path)
    status, _, err = command(train_caser.main, "--checkpoint", path, "--n_iter", 2)
    assert (status, len(err)) == (2, 1)


def test_a_kill_between_records_and_checkpoint_leaves_no_gap(command, toy, tmp_path, monkeypatch):
    train(command, toy, tmp_path, "--n_iter", 2)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(train_caser.torch, "save", killed)
    assert command(train_caser.main, "--checkpoint", path, "--n_iter", 4)[0] == 130
    monkeypatch.undo()
    assert command(train_caser.main, "--checkpoint", path, "--n_iter", 3)[0] == 0
    rows = records(path.with_name("toy-caser-dim=6.jsonl"))[1:]
    assert [row["epoch"] for row in rows] == [1, 2, 3]


def test_another_test_file_on_resume_is_said(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1)
    toy.test.write_text(toy.test.read_text() + "u1 i1 1\n")
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    status, out, _ = command(train_caser.main, "--checkpoint", path, "--n_iter", 2)
    assert status == 0
    assert "not the rows that earlier epochs were evaluated on" in out


def test_the_authors_checkpoint_goes_on_with_its_own_settings(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1, "--learning_rate", 0.004, "--l2", 0.002)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    whole = torch.load(path, weights_only=True)
    bare = {name: whole[name] for name in ("epoch_num", "state_dict", "optimizer")}
    torch.save(bare, path, _use_new_zipfile_serialization=False)
    status, out, err = command(train_caser.main, "--checkpoint", path, *toy.flags, "--n_iter", 2)
    assert (status, err) == (0, [])
    for word in ("data", "drop", "ac_conv"):
        assert word in out
    config = torch.load(path, weights_only=True)["config"]
    assert (config["learning_rate"], config["l2"]) == (0.004, 0.002)


def test_a_saved_optimizer_cannot_change_adam(toy):
    model, train_rows = trained(toy)
    state = model.state() | {"path": "file"}
    state["optimizer"]["param_groups"] = [
        {"params": list(range(100, 100 + len(state["optimizer"]["param_groups"][0]["params"]))),
         "amsgrad": True, "betas": "ab"}
    ]  # fmt: skip
    state["optimizer"]["state"] = {100 + n: v for n, v in state["optimizer"]["state"].items()}
    model.restore(state)
    model.n_iter = 2
    model.fit(train_rows)
    assert model.optimizer.param_groups[0]["betas"] == (0.9, 0.999)
