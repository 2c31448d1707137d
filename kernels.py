"""Faster forms of plain torch operations: the first line of each docstring is the plain form.

Letters as in caser.py.
"""

import contextlib
import functools
import warnings

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F

BANDED_L = 16  # up to this L the horizontal filters run as one matrix product
FOLD = 16  # items in a group of ``topk``


def dropout(x, p, training):
    """``F.dropout(x, p, training)``, its bits cut from 64-bit integers, not drawn one by one.

    p is rounded to a multiple of 2^-16.
    """
    if not training or p == 0:
        return x
    integers = torch.empty((x.numel() + 3) // 4, dtype=torch.int64, device=x.device)
    integers.random_(-(1 << 63), None)
    bits = integers.view(torch.int16)[: x.numel()].view(x.shape)
    dropped = min(round(p * (1 << 16)), (1 << 16) - 1)
    keep = bits >= dropped - (1 << 15)
    return x * (keep * (1 / (1 - dropped / (1 << 16))))


def vertical_filters(E, conv):
    """``conv(E[:, None]).flatten(1)`` for E (B, L, d) and conv = nn.Conv2d(1, nv, (L, 1))."""
    weight = conv.weight.flatten(1).expand(len(E), -1, -1)  # (B, nv, L)
    mixed = torch.bmm(weight, E)  # (B, nv, d); several times faster than matmul here
    return (mixed + conv.bias[:, None]).flatten(1)


def horizontal_filters(E, convs, activation):
    """``torch.cat([activation(conv(E[:, None]).squeeze(3)).amax(2) for conv in convs], 1)`` for E
    (B, L, d) and convs = [nn.Conv2d(1, nh, (h, d)) for h = 1..L], as one product with a band."""
    B, L, _ = E.shape
    bias = torch.cat([conv.bias.expand(L - h, -1) for h, conv in enumerate(convs)])
    places = [L - h for h in range(L)]  # where a filter of height h + 1 fits
    if L > BANDED_L:  # the band's zeros would outgrow what one product saves
        rows = [F.conv2d(E[:, None], conv.weight).squeeze(3).mT for conv in convs]
        response = torch.cat(rows, 1) + bias  # (B, sum of places, nh)
    else:
        zeros = E.new_zeros(1, E.shape[2])
        rows = torch.cat([zeros, *(conv.weight.flatten(0, 2) for conv in convs)])
        index = _band_index(L, bias.shape[1], E.device)
        band = F.embedding(index, rows, padding_idx=0).flatten(1)  # (sum of places * nh, L * d)
        flat = torch.matmul(E.flatten(1), band.T)
        response = flat.view(B, len(bias), -1) + bias
    response = activation(response)
    return torch.cat([part.max(1).values for part in response.split(places, 1)], 1)


@functools.cache
@torch.inference_mode(False)  # an evaluation may ask first, and training then needs it
def _band_index(L, nh, device):
    """Which row of all filters' rows stands where in the band, from 1; 0 is a row of zeros.

    Returns (sum of places * nh, L) int64; filters by height, each at its places from the top.
    """
    blocks, first = [], 1
    for h in range(1, L + 1):
        of_height = first + torch.arange(nh * h).view(nh, h)
        blocks += [F.pad(of_height, (top, L - h - top)) for top in range(L - h + 1)]
        first += nh * h
    return torch.cat(blocks).to(device)


def history_sums(table, items, starts, ends):
    """``torch.stack([table[items[start:end]].sum(0) for start, end in zip(starts, ends)])`` for
    table (N, d), items (rows,) and starts, ends (B,) int64, of which those that overlap have the
    same start, as windows of one user do.

    Of these the longer goes on from the shorter, so that nothing is summed twice: what is held is
    never more than ``items``.
    """
    order = (starts * (len(items) + 1) + ends).argsort()  # by start, then by end
    start, end = starts[order], ends[order]
    goes_on = F.pad(start[1:] == start[:-1], (1, 0))  # from where the one before it ends
    first = torch.where(goes_on, F.pad(end[:-1], (1, 0)), start)
    lengths = end - first
    bags = lengths.cumsum(0) - lengths
    places = torch.repeat_interleave(first - bags, lengths)
    places += torch.arange(len(places), device=items.device)
    parts = _BagSums.apply(table, items[places], bags)
    # In double, since another user's sum is taken away again; MPS has none.
    wide = parts.float() if parts.device.type == "mps" else parts.double()
    running = wide.cumsum(0)
    number = torch.arange(len(start), device=items.device)
    head = torch.where(goes_on, 0, number).cummax(0).values  # the first of the same start
    sums = running - (running - wide)[head]
    return sums.to(table.dtype)[order.argsort()]


class _BagSums(torch.autograd.Function):
    """``F.embedding_bag(items, table, bags, mode="sum")``, whose own gradient sorts the items."""

    @staticmethod
    def forward(ctx, table, items, bags):
        ctx.save_for_backward(items, bags)
        ctx.rows = len(table)
        return F.embedding_bag(items, table, bags, mode="sum")

    @staticmethod
    def backward(ctx, gradient):
        items, bags = ctx.saved_tensors
        lengths = F.pad(bags, (0, 1), value=len(items)).diff()
        bag = torch.repeat_interleave(torch.arange(len(bags), device=items.device), lengths)
        pattern = torch.sparse_coo_tensor(
            torch.stack([items, bag]), gradient.new_ones(len(items)), (ctx.rows, len(bags)),
            check_invariants=False,
        )  # fmt: skip
        return pattern @ gradient, None, None


_sparse_gradients = False


@contextlib.contextmanager
def sparse_gradients(wanted=True):
    """Within, ``row_products`` and ``row_values`` take their gradients as sparse products: several
    times faster for dozens of rows on a CPU, with other last digits."""
    global _sparse_gradients
    before, _sparse_gradients = _sparse_gradients, wanted
    try:
        yield
    finally:
        _sparse_gradients = before


def row_products(x, table, rows):
    """``torch.einsum("bq,bnq->bn", x, table[rows])`` for x (B, q), table (N, q), rows (B, n) int64.

    Where no gradient is needed, or a sparse one, they are taken on a CPU as a sampled matrix
    product, which copies no rows (torch has it for n <= N); else as a multiply and a sum.
    """
    copy = torch.is_grad_enabled() and not _sparse_gradients
    copy = copy or x.device.type != "cpu" or rows.shape[1] > len(table)
    if copy or not _has_sampled_product():
        return (F.embedding(rows, table) * x[:, None, :]).sum(2)
    return _RowProducts.apply(x, table, rows)


def row_values(column, rows):
    """``column[rows, 0]`` for column (N, 1), rows (B, n) int64."""
    if _sparse_gradients:
        return column.flatten()[rows]
    return F.embedding(rows, column).squeeze(2)


class _RowProducts(torch.autograd.Function):
    """``row_products`` with the gradients as products with a sparse (B, N) matrix."""

    @staticmethod
    def forward(ctx, x, table, rows):
        ctx.save_for_backward(x, table, rows)
        return _sampled_product(x, table, rows)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        x, table, rows = ctx.saved_tensors
        gradient = gradient.contiguous()
        of_x = F.embedding_bag(rows, table, mode="sum", per_sample_weights=gradient)
        # scipy's product with the transpose is three times as fast as torch's.
        places = rows.flatten().numpy(), np.arange(0, rows.numel() + 1, rows.shape[1])
        matrix = sp.csr_matrix((gradient.flatten().numpy(), *places), (len(x), len(table)))
        return of_x, torch.from_numpy(matrix.T @ x.numpy()), None


def _sampled_product(x, table, rows):
    B, n = rows.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its CSR tensors a beta
        pattern = torch.sparse_csr_tensor(
            torch.arange(0, B * n + 1, n), rows.flatten(), x.new_zeros(B * n), (B, len(table)),
            check_invariants=False,
        )  # fmt: skip
    return torch.sparse.sampled_addmm(pattern, x, table.T).values().view(B, n)


@functools.cache
def _has_sampled_product():
    """True where this torch build has sampled_addmm for a CPU."""
    try:
        x, table = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        found = _sampled_product(x, table, torch.tensor([[2, 0, 2], [1, 1, 0]]))
        return found.tolist() == [[5, 1, 5], [4, 4, 2]]
    except RuntimeError:
        return False


def all_products(x, table, bias):
    """``x @ table.T + bias.T`` for x (B, q), table (N, q), bias (N, 1), laid out item by item.

    For hundreds of rows the product is up to twice as fast that way round on a CPU.
    """
    return torch.addmm(bias, table, x.T).T


def topk(scores, k):
    """``scores.topk(k, dim=1)`` for scores (b, N) that lie item by item and k much smaller than N.

    FOLD items make a group: the k + 1 best are in the k + 1 groups with the best maxima, or among
    the few items that no group has. In rows with a tie torch itself decides which come first.
    """
    b, N = scores.shape
    groups = N // FOLD
    if scores.stride(1) == 1 or k >= groups // 8:
        return scores.topk(k, dim=1)
    items = torch.arange(N, device=scores.device)
    grouped, rest = items[: groups * FOLD].view(FOLD, groups).T, items[groups * FOLD :]
    maxima = scores.T[: groups * FOLD].reshape(FOLD, groups, b).amax(0).T  # (b, groups)
    members = grouped[maxima.topk(k + 1, dim=1).indices].flatten(1)  # (b, (k + 1) * FOLD)
    candidates = torch.cat([members, rest.expand(b, -1)], 1)
    best, place = scores.gather(1, candidates).topk(k + 1, dim=1)
    found = candidates.gather(1, place)[:, :k]
    tied = (best[:, 1:] == best[:, :-1]).any(1).nonzero().flatten()
    if len(tied):
        found[tied] = scores[tied].topk(k, dim=1).indices
    return best[:, :k], found


def count_below(scores, target, num_targets, limit):
    """``(scores[:, None, :] < target[:, :, None]).sum(2)`` for scores (b, N) and target (b, J),
    without holding more than ``limit`` comparisons.

    num_targets: (b,) int array, ascending: how many of a row's targets mean something; the rest is
    not counted. Comparisons are written as floats, in pieces that stay in the cache: their sum is
    several times faster than that of booleans, and exact up to 2^24 items.
    """
    by_item, target = scores.T, target.T.contiguous()  # (N, b), (J, b)
    counts = torch.zeros(target.shape, dtype=torch.int64, device=target.device)
    first = 0
    while first < len(target):  # targets first..last at once, of those users who have them:
        # as many as the first of these users has, at least twice as many as are done
        user = int(num_targets.searchsorted(first, side="right"))
        last = max(int(num_targets[user]), 2 * first)
        last = min(len(target), last, first + max(1, limit // (len(scores) - user)))
        piece = target[first:last, user:]
        for some in by_item[:, None, user:].split(max(1, limit // piece.numel())):
            below = torch.empty(len(some), *piece.shape, device=target.device)
            counts[first:last, user:] += torch.lt(some, piece, out=below).sum(0).long()
        first = last
    return counts.T
