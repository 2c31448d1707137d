"""Who did what, in order: rows of users and items, their windows, and negatives.

The vocabulary is Spotlight's (Interactions, to_sequence, SequenceInteractions). Users are
numbered from 0 and items from 1, by first appearance in the training rows; item 0 is padding.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch

from utils import fingerprint

PADDING = 0


@dataclass
class History:
    """All that stands before the end of each of n windows in its user's row of items.

    items: (rows,) int64, the rows of all users, one behind the other; without padding.
    starts, ends: (n,) int64, a window's history is items[start:end].
    All are arrays, or all tensors.
    """

    items: np.ndarray | torch.Tensor
    starts: np.ndarray | torch.Tensor
    ends: np.ndarray | torch.Tensor

    def __getitem__(self, rows):
        """The History of some of the windows: a slice or int64 numbers (m,)."""
        return History(self.items, self.starts[rows], self.ends[rows])

    def last(self, width):
        """The last items of each, of arrays: (n, width) int32, left-padded with 0."""
        last = np.full((len(self.ends), width), PADDING, dtype=np.int32)
        for column in range(width):  # all at once would hold several times as much
            positions = self.ends - (width - column)
            inside = positions >= self.starts
            last[inside, column] = self.items[positions[inside]]
        return last

    def renumbered(self, numbers):
        """The same, of tensors, with numbers[item] for every item; what becomes padding is left
        out."""
        items = numbers[self.items]
        known = items != PADDING
        before = torch.cat([known.new_zeros(1, dtype=torch.int64), known.cumsum(0)])
        return History(items[known], before[self.starts], before[self.ends])

    def to(self, device):
        """The same as tensors on a device."""
        return History(*(_on(device, part) for part in (self.items, self.starts, self.ends)))


@dataclass
class SequenceInteractions:
    """Windows of L items, and the T items that follow each.

    user_ids: (n,) int64.
    sequences: (n, L) int32, left-padded with 0.
    targets: (n, T) int32, or None for the windows that a test starts from.
    history: the History of the n windows, which they end.
    """

    user_ids: np.ndarray
    sequences: np.ndarray
    targets: np.ndarray | None
    history: History

    def inputs(self, device):
        """What a network sees, tensors on a device: sequences, user_ids and history."""
        return _on(device, self.sequences), _on(device, self.user_ids), self.history.to(device)


def _on(device, array):
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


class Interactions:
    """Rows of users and items, each user's in time order.

    Parameters
    ----------
    users, items: the original ids (str) of each row, as a list, an array or a pandas column.
    user_map, item_map: maps of the training rows, for the test rows that belong to them. Rows of
        users outside ``user_map`` are dropped; items outside ``item_map`` get numbers from
        ``num_items`` on, which no model can score, so that they still count as targets.

    Attributes
    ----------
    user_ids, item_ids: (n,) int64, a row each.
    user_map, item_map: dict of original id (str) to number.
    num_users, num_items: int; num_items counts the padding id.
    unknown_users, unknown_items: lists of original ids outside the given maps.
    num_unknown_user_rows: int, the rows that were dropped.
    sequences, test_sequences: SequenceInteractions, set by ``to_sequence``.

    Example
    -------
    >>> train = Interactions(["ann", "ann", "ann", "bob"], ["x", "y", "x", "z"])
    >>> train.to_sequence(sequence_length=2, target_length=1)
    >>> train.sequences.sequences, train.sequences.targets
    (array([[1, 2]]), array([[1]]))
    >>> train.test_sequences.sequences
    array([[2, 1],
           [0, 3]])
    """

    def __init__(self, users, items, user_map=None, item_map=None):
        self.user_ids, self.user_map, self.unknown_users = _numbered(users, user_map, 0)
        self.item_ids, self.item_map, self.unknown_items = _numbered(items, item_map, PADDING + 1)
        self.num_users = len(self.user_map)
        self.num_items = len(self.item_map) + 1
        known = self.user_ids < self.num_users
        self.num_unknown_user_rows = int((~known).sum())
        self.user_ids, self.item_ids = self.user_ids[known], self.item_ids[known]
        self.sequences = self.test_sequences = None

    def __len__(self):
        return len(self.user_ids)

    def tocsr(self):
        """The unique (user, item) pairs as a scipy CSR matrix with sorted indices."""
        width = self.num_items + len(self.unknown_items)
        ones = np.ones(len(self), dtype=bool)
        pairs = sp.csr_matrix((ones, (self.user_ids, self.item_ids)), (self.num_users, width))
        pairs.sum_duplicates()
        return pairs

    def fingerprint(self):
        """A hash of the rows as they are numbered here, in the order of their users, with the
        original ids."""
        order = np.argsort(self.user_ids, kind="stable")
        maps = "\n".join((*self.user_map, "", *self.item_map)).encode()
        rows = self.user_ids[order], self.item_ids[order]
        return fingerprint(*rows, np.frombuffer(maps, dtype=np.uint8))

    def fingerprint_by_id(self):
        """A hash of who did what, in each user's order, however users and items are numbered."""
        users, user_names = _ranked_by_name(self.user_ids, list(self.user_map))
        known = [None, *self.item_map, *self.unknown_items]
        items, item_names = _ranked_by_name(self.item_ids, known)
        order = np.argsort(users, kind="stable")
        names = np.frombuffer(f"{user_names}\n\n{item_names}".encode(), dtype=np.uint8)
        return fingerprint(users[order], items[order], names)

    def to_sequence(self, sequence_length=5, target_length=1):
        """Cut every user's row of items into windows, in the order of the authors' code.

        Sets ``sequences``: every run of L + T consecutive items of a user, newest first, users
        in order. A user with T < n < L + T rows has one window, left-padded with 0; one with
        n <= T rows has none (with L = 0: n < T). Sets ``test_sequences``: every user's last L
        items, (num_users, L).
        """
        L, T = sequence_length, target_length
        items = self.item_ids[np.argsort(self.user_ids, kind="stable")]
        lengths = np.bincount(self.user_ids, minlength=self.num_users)
        ends = np.cumsum(lengths)
        starts = ends - lengths
        windows = np.where(lengths >= min(L, 1) + T, np.maximum(lengths - (L + T) + 1, 1), 0)
        users = np.repeat(np.arange(self.num_users), windows)
        age = np.arange(len(users)) - np.repeat(np.cumsum(windows) - windows, windows)
        stops = ends[users] - age
        rows = History(items, starts[users], stops).last(L + T)
        before = History(items, starts[users], stops - T)
        self.sequences = SequenceInteractions(users, rows[:, :L], rows[:, L:], before)
        whole = History(items, starts, ends)
        everyone = np.arange(self.num_users)
        self.test_sequences = SequenceInteractions(everyone, whole.last(L), None, whole)


def _numbered(names, known, first):
    """The numbers (n,) int64 of original ids, the map that gives them, and what it lacks.

    known: a map, or None to number the ids from ``first`` on by first appearance.
    """
    if not isinstance(getattr(names, "dtype", None), pd.CategoricalDtype):
        names = np.array([str(name) for name in names], dtype=object)
    codes, found = pd.factorize(names)
    found = found.tolist()
    if known is None:
        known = {name: number for number, name in enumerate(found, first)}
    unknown = [name for name in found if name not in known]
    numbers = known | {name: number for number, name in enumerate(unknown, len(known) + first)}
    return np.array([numbers[name] for name in found], dtype=np.int64)[codes], known, unknown


def _ranked_by_name(numbers, names):
    """For numbers (n,), places in a list of names: the places (n,) among the sorted names that
    occur, and these as one text."""
    found, codes = np.unique(numbers, return_inverse=True)
    texts = [names[number] for number in found]
    order = sorted(range(len(texts)), key=texts.__getitem__)
    rank = np.empty(len(texts), dtype=np.int64)
    rank[order] = np.arange(len(texts))
    return rank[codes], "\n".join(texts[place] for place in order)


def csr_indices(rows):
    """Where a CSR matrix has its elements: (rows, columns), two int arrays."""
    return np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr)), rows.indices


class ComplementSampler:
    """Draws uniformly, with replacement, from 1..n without the elements of a row's set.

    With a row's elements s_0 < s_1 < ..., the number of integers outside the set and below s_j
    is s_j - 1 - j. The r-th integer outside, from 0, is therefore r + 1 + #{j: s_j - 1 - j <= r},
    and that count is one binary search in the sets of all rows, laid end to end. Memory grows
    with the elements, not with rows times n.

    Parameters
    ----------
    sets: a scipy CSR matrix (rows, at least n + 1) whose sorted indices, from 1 on, are the sets.
    n: the largest integer.
    device: where the draws are made.

    Attributes
    ----------
    counts: (rows,) int64 tensor, how many integers are outside each set.
    """

    def __init__(self, sets, n, device):
        starts = sets.indptr[:-1].astype(np.int64)
        lengths = np.diff(sets.indptr).astype(np.int64)
        nth = np.arange(sets.nnz) - np.repeat(starts, lengths)
        row = np.repeat(np.arange(len(lengths)), lengths)
        self.n = n
        self._keys = torch.from_numpy(row * (n + 1) + (sets.indices - 1 - nth)).to(device)
        self._starts = torch.from_numpy(starts).to(device)
        self.counts = torch.from_numpy(n - lengths).to(device)

    def draw(self, rows, size):
        """Return (B, size) int64 for rows (B,) int64, none of which has everything in its set.

        Every integer's chance is 1 / counts[row] to within n / 2^63 (63 random bits, modulo).
        """
        return self._nth_outside(rows[:, None], _random(self.counts[rows, None], size))

    def draw_pairs(self, rows, size):
        """Return (B, size, 2) int64, as ``draw`` does; the two of a pair are different integers,
        but where there is only one."""
        counts = self.counts[rows, None]
        first = _random(counts, size)
        second = (first + 1 + _random((counts - 1).clamp(min=1), size)) % counts
        ranks = torch.stack([first, second], 2)
        return self._nth_outside(rows[:, None], ranks.flatten(1)).view(ranks.shape)

    def _nth_outside(self, rows, rank):
        """The rank-th integers outside the sets: (B, n) int64 for rows (B, 1) and ranks (B, n)."""
        below = torch.searchsorted(self._keys, rows * (self.n + 1) + rank, right=True)
        return rank + 1 + below - self._starts[rows]


def _random(counts, size):
    """(B, size) int64, uniform in 0..counts - 1 for counts (B, 1) int64."""
    bits = torch.empty(len(counts), size, dtype=torch.int64, device=counts.device).random_()
    return bits.remainder_(counts)
