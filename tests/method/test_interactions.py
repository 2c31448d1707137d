"""Numbers of users and items, the windows cut from their rows, and negatives."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch

from interactions import ComplementSampler, Interactions

# ---------------------------------------------------------------------- rows and numbers


@pytest.mark.parametrize("column", [list, np.array, pd.Series, pd.Categorical])
def test_users_count_from_0_and_items_from_1_by_first_appearance(column):
    users, items = ["007", "7", "007", "é"], ["x", "nan", "x", "1e3"]
    train = Interactions(column(users), column(items))
    assert train.user_map == {"007": 0, "7": 1, "é": 2}
    assert train.item_map == {"x": 1, "nan": 2, "1e3": 3}
    assert train.user_ids.tolist() == [0, 1, 0, 2]
    assert train.item_ids.tolist() == [1, 2, 1, 3]  # the same pair twice stays
    assert (len(train), train.num_users, train.num_items) == (4, 3, 4)
    assert train.tocsr().nnz == 3


def test_rows_that_train_does_not_know_are_dropped_or_numbered_behind():
    train = Interactions(["a", "b"], ["x", "y"])
    users, items = ["b", "c", "a", "c", "a", "a"], ["new", "x", "y", "newer", "x", "newest"]
    test = Interactions(users, items, train.user_map, train.item_map)
    assert test.user_ids.tolist() == [1, 0, 0, 0]
    assert test.item_ids.tolist() == [3, 2, 1, 5]
    assert (test.num_users, test.num_items) == (train.num_users, train.num_items) == (2, 3)
    assert test.unknown_users == ["c"]
    assert test.unknown_items == ["new", "newer", "newest"]
    assert test.num_unknown_user_rows == 2
    assert (test.tocsr().toarray() == [[0, 1, 1, 0, 0, 1], [0, 0, 0, 1, 0, 0]]).all()


def test_fingerprint_tells_rows_order_and_ids_apart():
    rows = [("a", "x"), ("a", "y"), ("b", "z")]
    variants = rows, rows[::-1], [*rows, ("b", "x")], [*rows[:2], ("b", "w")]
    assert len({Interactions(*zip(*v, strict=True)).fingerprint() for v in variants}) == 4


# -------------------------------------------------------------------------------- windows


def slow_windows(rows_of_users, L, T):
    """The windows, written down one at a time."""
    users, sequences, targets, histories = [], [], [], []
    for user, row in enumerate(rows_of_users):
        stops = range(len(row), L + T - 1, -1) if len(row) >= L + T else [len(row)]
        for stop in stops if len(row) > T else []:
            window = row[max(0, stop - L - T) : stop]
            users.append(user)
            targets.append(window[-T:])
            histories.append(row[: stop - T])
            sequences.append([0] * (L + T - len(window)) + window[:-T])
    tests = [([0] * L + row)[-L:] for row in rows_of_users]
    return users, sequences, targets, histories, tests


def histories_of(history):
    bounds = zip(history.starts.tolist(), history.ends.tolist(), strict=True)
    return [history.items[start:end].tolist() for start, end in bounds]


@pytest.mark.parametrize(("L", "T"), [(5, 1), (3, 2), (1, 1), (2, 5), (40, 1), (40, 3), (1, 40)])
def test_windows_equal_the_slow_version(L, T):
    rng = np.random.default_rng(1)
    rows = [(user, item) for user in range(20) for item in rng.integers(0, 30, 1 + user)]
    rows = [rows[i] for i in rng.permutation(len(rows))]  # users need not be adjacent
    train = Interactions(*zip(*rows, strict=True))
    train.to_sequence(L, T)
    of_user = [train.item_ids[train.user_ids == u].tolist() for u in range(train.num_users)]
    users, sequences, targets, histories, tests = slow_windows(of_user, L, T)
    assert train.sequences.user_ids.tolist() == users
    assert train.sequences.sequences.tolist() == sequences
    assert train.sequences.targets.tolist() == targets
    assert train.sequences.sequences.shape == (len(users), L)
    assert train.sequences.targets.shape == (len(users), T)
    assert histories_of(train.sequences.history) == histories
    assert train.test_sequences.sequences.tolist() == tests
    assert histories_of(train.test_sequences.history) == of_user


def test_short_history_by_hand():
    train = Interactions("aaab", "xyxz")
    train.to_sequence(5, 1)
    assert train.sequences.sequences.tolist() == [[0, 0, 0, 1, 2]]
    assert train.sequences.targets.tolist() == [[1]]  # the earlier x may be in the window
    assert train.test_sequences.sequences.tolist() == [[0, 0, 1, 2, 1], [0, 0, 0, 0, 3]]


def test_a_history_in_other_numbers_is_without_what_has_none():
    train = Interactions("aaabbc", "xyxzyz")
    train.to_sequence(2, 1)
    _, _, history = train.test_sequences.inputs("cpu")
    history = history.renumbered(torch.tensor([0, 7, 0, 8]))
    assert histories_of(history) == [[7, 7], [8], [8]]


# ------------------------------------------------------------------------------ negatives


def sampler_for(sets, n):
    matrix = sp.lil_matrix((len(sets), n + 1), dtype=bool)
    for row, elements in enumerate(sets):
        matrix[row, sorted(elements)] = True
    return ComplementSampler(matrix.tocsr(), n, "cpu")


def test_every_outsider_is_drawn_equally_often():
    n = 12
    sets = [set(), {1}, {12}, {1, 12}, {3, 4, 5, 9}, set(range(1, 12)), set(range(2, 13))]
    sampler = sampler_for(sets, n)
    assert sampler.counts.tolist() == [n - len(elements) for elements in sets]
    torch.manual_seed(0)
    draws = 60_000
    items = sampler.draw(torch.arange(len(sets)), draws)
    assert items.shape == (len(sets), draws)
    for row, elements in enumerate(sets):
        outside = sorted(set(range(1, n + 1)) - elements)
        counts = np.bincount(items[row], minlength=n + 1)
        assert np.flatnonzero(counts).tolist() == outside
        expected = draws / len(outside)
        chi2 = ((counts[outside] - expected) ** 2 / expected).sum()
        assert chi2 < len(outside) + 6 * (2 * len(outside)) ** 0.5  # six standard deviations


def test_pairs_are_two_different_outsiders_and_every_pair_is_equally_likely():
    sets = [{2}, {1, 3}, {1, 2, 4, 5}]  # the last has only one outsider
    torch.manual_seed(0)
    draws = 60_000
    pairs = sampler_for(sets, 5).draw_pairs(torch.arange(3), draws)
    assert pairs.shape == (3, draws, 2)
    for row, elements in enumerate(sets):
        outside = {1, 2, 3, 4, 5} - elements
        wanted = {(a, b) for a in outside for b in outside if a != b} or {(3, 3)}
        found, counts = np.unique(pairs[row].numpy() @ [10, 1], return_counts=True)
        assert {divmod(pair, 10) for pair in found.tolist()} == wanted
        assert np.abs(counts * len(wanted) / draws - 1).max() < 0.1


def test_draws_equal_the_slow_version():
    rng = np.random.default_rng(0)
    n = 50
    everything = np.arange(1, n + 1)
    sets = [set(rng.choice(everything, size, replace=False)) for size in rng.integers(0, n, 40)]
    rows = torch.from_numpy(rng.integers(0, 40, 200))
    torch.manual_seed(3)
    numbers = torch.empty(200, 5, dtype=torch.int64).random_()
    torch.manual_seed(3)
    drawn = sampler_for(sets, n).draw(rows, 5)
    for i, row in enumerate(rows.tolist()):
        outside = sorted(set(range(1, n + 1)) - sets[row])
        assert drawn[i].tolist() == [outside[r % len(outside)] for r in numbers[i].tolist()]
