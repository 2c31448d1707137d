"""POP, ItemCF and BPR: each against a slow second version, and their records against Caser's."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from conftest import assert_same_weights, records, train, tree, weights
from test_evaluation import slow_metrics
from torch.testing import assert_close

import baselines
import recommend
from baselines import (
    SIMILARITIES,
    PairwiseRecommender,
    baseline_parser,
    item_similarity,
    popularity,
)
from bpr import BPR
from evaluation import evaluate_ranking
from interactions import Interactions
from support.command_line import weight_flags
from support.run import same_run
from utils import UserError

BPR_FLAGS = ["--method", "bpr", "--d", 4, "--batch_size", 16]


def run(command, toy, folder, *flags):
    """Do what flags say for the toy data, its files in ``folder``; what was printed."""
    status, out, err = command(baselines.main, *toy.flags, "--output_dir", folder, *flags)
    assert (status, err) == (0, [])
    return out


def all_scores(net, users):
    return net.score_all(None, torch.arange(users))


# --------------------------------------------------------------------------- POP and ItemCF


def slow_scores(rows, similarity, neighbours):
    """{(user, item): score} of rows (user, item), numbers, by what the words say."""
    items = sorted({item for _, item in rows})
    owners = {item: {user for user, other in rows if other == item} for item in items}
    scores = dict.fromkeys(((user, item) for user, _ in rows for item in items), 0)
    for item in items:
        near = {}
        for other in items:
            shared = len(owners[item] & owners[other])
            near[other] = {
                "count": shared,
                "cosine": shared / math.sqrt(len(owners[item]) * len(owners[other])),
                "jaccard": shared / len(owners[item] | owners[other]),
            }[similarity]
        del near[item]
        for other in sorted(near, key=lambda other: (-near[other], other))[:neighbours]:
            for user in owners[item]:
                scores[user, other] += near[other]
    return scores


@pytest.mark.parametrize("neighbours", [None, 1, 3, 1000])
@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("size", [2, 12])  # of histories: few items share users, or most do
def test_item_similarity_equals_the_slow_version(size, similarity, neighbours):
    rng = np.random.default_rng(size)
    known = Interactions(np.repeat(np.arange(20), size), rng.integers(0, 25, 20 * size))
    net = item_similarity(known.tocsr(), similarity, neighbours)
    assert sp.issparse(net.items) == (size == 2 or neighbours in {1, 3})
    rows = list(zip(known.user_ids.tolist(), known.item_ids.tolist(), strict=True))
    expected = np.zeros((known.num_users, known.num_items), dtype=np.float32)
    for place, score in slow_scores(rows, similarity, neighbours).items():
        expected[place] = score
    assert_close(all_scores(net, known.num_users), torch.from_numpy(expected))


def test_popularity_counts_users_and_not_rows():
    known = Interactions("aaabbc", "xxyxzz")
    assert all_scores(popularity(known.tocsr()), 3).tolist() == [[0, 2, 1, 2]] * 3


def test_pop_in_its_records_is_the_slow_versions_with_ties_against_the_target(
    command, toy, tmp_path
):
    """A user whom train does not know is skipped; items that it does not know are never hit."""
    toy.test.write_text(toy.test.read_text() + "stranger i1 1\nu3 strange 1\n")
    out = run(command, toy, tmp_path, "--method", "pop")
    assert "1 test user(s), e.g. 'stranger'" in out
    data = toy.load()
    seen, wanted = data.train.tocsr(), data.test.tocsr()
    counts = np.bincount(seen.indices)
    assert len(set(counts)) < len(counts) / 2  # ties
    ks = (3, 5, 10)
    users = [
        slow_metrics(counts, set(seen[user].indices), set(wanted[user].indices), ks)
        for user in np.flatnonzero(np.diff(wanted.indptr))
    ]
    _, record = records(tmp_path / "toy-pop.jsonl")
    for name in users[0]:
        assert record[name] == pytest.approx(np.mean([user[name] for user in users])), name
    assert f"Evaluation\tmap={record['map']:.4f}, precisions=" in out


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_target_ranks_behind_its_twins(similarity):
    """y1, y2 and y3 have the same users."""
    known = Interactions("aaaabbbbcd", ["x", "y1", "y2", "y3"] * 2 + ["x", "x"])
    known.to_sequence(0, 1)
    test = Interactions("cd", ["y1", "y3"], known.user_map, known.item_map)
    result = evaluate_ranking(item_similarity(known.tocsr(), similarity), known, test)
    assert result["map"].tolist() == pytest.approx([1 / 3, 1 / 3])


# -------------------------------------------------------------------------------------- BPR


def prepared(known, **options):
    known.to_sequence(0, 1)
    model = PairwiseRecommender(partial(BPR, d=4), neg_samples=1, **options)
    model.prepare(known)
    return model


def test_every_row_is_an_instance_and_its_loss_is_the_formula(monkeypatch):
    known = Interactions("aaabbc", "xyzxwy")
    model = prepared(known)
    assert sorted(zip(model.users.tolist(), model.targets.flatten().tolist(), strict=True)) == (
        sorted(zip(known.user_ids.tolist(), known.item_ids.tolist(), strict=True))
    )
    net, sampled = model.net, torch.tensor([4, 4, 4, 2, 2, 1])
    monkeypatch.setattr(model, "draw_negatives", lambda rows, users: sampled[users * 2][:, None])
    torch.nn.init.normal_(net.item_biases.weight)
    expected = 0
    for user, item in zip(model.users, model.targets.flatten(), strict=True):
        x, E, b = net.user_embeddings.weight[user], net.item_embeddings.weight, net.item_biases
        other = sampled[user * 2]
        difference = x @ (E[item] - E[other]) + b.weight[item] - b.weight[other]
        expected -= math.log(1 / (1 + math.exp(-difference.item()))) / len(known)
    assert model._batch_loss(torch.arange(len(known)))[0].item() == pytest.approx(expected)
    scores = net.score_all(known.test_sequences.sequences, torch.arange(3))
    for user in range(3):
        for item in range(known.num_items):
            by_hand = net.user_embeddings.weight[user] @ net.item_embeddings.weight[item]
            by_hand = by_hand + net.item_biases.weight[item, 0]
            assert scores[user, item].item() == pytest.approx(by_hand.item(), abs=1e-6)


def test_bpr_and_itemcf_learn_what_pop_can_not():
    """Users like the items of their own half alone."""
    rng = np.random.default_rng(0)
    items = np.stack([rng.permutation(30)[:12] + 30 * (user % 2) for user in range(80)])
    known = Interactions(np.repeat(np.arange(80), 10), items[:, :10].flatten())
    test = Interactions(
        np.repeat(np.arange(80), 2), items[:, 10:].flatten(), known.user_map, known.item_map
    )
    model = prepared(known, n_iter=20, batch_size=32, learning_rate=1e-2)
    model.fit(known)
    seen = known.tocsr()
    bpr, itemcf, pop = (
        evaluate_ranking(net, known, test)["map"].mean()
        for net in (model.net, item_similarity(seen), popularity(seen))
    )
    assert min(bpr, itemcf) > 1.5 * pop


def test_a_bpr_goes_on_is_evaluated_and_recommends(command, toy, tmp_path):
    whole, path = (tmp_path / name / "toy-bpr-dim=4.pth.tar" for name in "ab")
    run(command, toy, whole.parent, *BPR_FLAGS, "--n_iter", 4)
    run(command, toy, path.parent, *BPR_FLAGS, "--n_iter", 2)
    assert command(baselines.main, "--checkpoint", path, "--n_iter", 4)[0] == 0
    assert_same_weights(whole, path)
    _, out, _ = command(baselines.main, "--checkpoint", path, "--evaluate")
    assert f"Evaluation\tmap={records(path.parent / 'toy-bpr-dim=4.jsonl')[-1]['map']:.4f}" in out
    for flags in ([], ["--sequence", "i1,i2,i3"]):
        status, out, _ = command(recommend.main, "--checkpoint", path, *flags)
        assert (status, out.split("\n")[0].split("\t")[:3]) == (0, ["user", "item", "rank"])


def test_every_flag_of_bpr_reaches_it(command, toy, tmp_path):
    def trained(name, *flags):
        run(command, toy, tmp_path / name, *BPR_FLAGS, "--n_iter", 2, *flags)
        (path,) = (tmp_path / name).glob("*.pth.tar")
        return weights(path)["user_embeddings.weight"]

    unchanged = trained("default")
    assert unchanged.shape == (12, 4)
    for flag, value in (("d", 5), ("learning_rate", 0.1), ("l2", 0.1), ("neg_samples", 2),
                        ("batch_size", 9), ("T", 2), ("seed", 3)):  # fmt: skip
        changed = trained(flag, f"--{flag}", value)
        assert changed.shape != unchanged.shape or not torch.equal(changed, unchanged), flag


# ----------------------------------------------------------------- records and command line


def test_records_are_as_a_training_runs(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1)
    identity, record = records(tmp_path / "out" / "toy-caser-dim=6.jsonl")
    found = {}
    for name, flags in {
        "pop": ["--method", "pop"],
        "itemcf-cosine": ["--method", "itemcf"],
        "itemcf-count": ["--method", "itemcf", "--similarity", "count"],
        "itemcf-cosine-neighbours=3": ["--method", "itemcf", "--neighbours", 3],
        "bpr-dim=4": [*BPR_FLAGS, "--n_iter", 1],
    }.items():
        run(command, toy, tmp_path, *flags)
        lines = found[name] = records(tmp_path / f"toy-{name}.jsonl")
        assert lines[0].keys() == identity.keys()
        assert (lines[0]["script"], lines[0]["network"]) == ("baselines.py", name.split("-")[0])
        assert lines[0]["data"] == identity["data"]
        words = [*toy.flags, *map(str, flags)]
        assert lines[0]["flags"] == weight_flags(baseline_parser(flags[1]).parse_args(words))
        assert lines[1].keys() | {"loss"} == record.keys()
        run(command, toy, tmp_path / "again", *flags)
        again = records(tmp_path / "again" / f"toy-{name}.jsonl")
        assert again[0] == lines[0]
        assert again[1]["map"] == lines[1]["map"]
    assert found["bpr-dim=4"][0]["flags"]["neg_samples"] == 1  # as in its paper
    identities = [lines[0] for lines in found.values()]
    for one in identities:
        assert [other for other in identities if same_run(one, other)] == [one]


@pytest.mark.parametrize("words", [
    "--method", "--method most", "--method pop --similarity count", "--method pop --d 3",
    "--method pop --checkpoint x", "--method itemcf --similarity pearson",
    "--method itemcf --neighbours 0", "--method itemcf --neighbours 1.5", "--method bpr --L 1",
    "--method bpr --l2 -1", "--method bpr --neighbours 3", "--method itemcf --split train",
    "--method pop --output_dir train.txt", "--method pop --dataset toy"])  # fmt: skip
def test_bad_flags_are_refused_in_one_line(command, toy, monkeypatch, words):
    monkeypatch.chdir(toy.folder)
    before = tree(toy.folder)
    status, _, err = command(baselines.main, *toy.flags, *words.split())
    assert (status, len(err)) == (2, 1), err
    assert tree(toy.folder) == before


def test_one_file_without_the_other_is_refused(toy):
    with pytest.raises(UserError, match="--train_root and --test_root go together"):
        baselines.main(["--method", "pop", *toy.flags[:2]])


def test_a_casers_checkpoint_is_not_taken_for_a_bprs(command, toy, tmp_path):
    train(command, toy, tmp_path, "--n_iter", 1)
    path = tmp_path / "out" / "toy-caser-dim=6.pth.tar"
    for flag, why in (("--n_iter=2", "train_caser.py made it"), ("--evaluate", "another network")):
        status, _, err = command(baselines.main, "--checkpoint", path, flag)
        assert (status, len(err)) == (2, 1)
        assert why in err[0]
