"""The network, and each kernel against the plain form that its docstring gives."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import kernels
from caser import ACTIVATIONS, Caser
from support.checkpoint import add_mean_user
from utils import UserError


def make(L=5, d=6, nv=2, nh=3, **options):
    torch.manual_seed(0)
    net = Caser(7, 11, L=L, d=d, nv=nv, nh=nh, **options)
    return net.eval(), torch.randint(0, 11, (9, L)), torch.randint(0, 7, (9,))


# ---------------------------------------------------------------------------- the network


@pytest.mark.parametrize("ac_fc", ["iden", "prelu"])
@pytest.mark.parametrize("ac_conv", ACTIVATIONS)
@pytest.mark.parametrize(("nv", "nh"), [(2, 3), (0, 3), (2, 0)])
def test_every_parameter_learns_and_both_ways_of_scoring_agree(nv, nh, ac_conv, ac_fc):
    net, sequences, users = make(nv=nv, nh=nh, ac_conv=ac_conv, ac_fc=ac_fc)
    scores = net(sequences, users, torch.arange(11).expand(9, -1))
    assert torch.allclose(scores, net.score_all(sequences, users), atol=1e-6)
    scores.square().sum().backward()
    for name, parameter in net.named_parameters():
        unused = "ac_conv" in name and not nh
        assert unused or parameter.grad.abs().sum() > 0, name


def test_a_batch_of_one_scores_as_in_a_larger_one():
    net, sequences, users = make()
    together = net.score_all(sequences, users)
    for row in range(len(users)):
        alone = net.score_all(sequences[row : row + 1], users[row : row + 1])
        assert_close(alone, together[row : row + 1], atol=1e-6, rtol=0)


def test_dropout_is_drawn_in_training_alone():
    net, sequences, users = make(drop=0.5)
    assert torch.equal(net.represent(sequences, users), net.represent(sequences, users))
    net.train()
    assert not torch.equal(net.represent(sequences, users), net.represent(sequences, users))


def test_initial_weights_are_the_released_ones():
    torch.manual_seed(0)
    net = Caser(2000, 1000, d=50)
    stds = {net.user_embeddings: 1 / 50, net.item_embeddings: 1 / 50, net.W2: 1 / 100}
    for table, std in stds.items():
        assert table.weight.std().item() == pytest.approx(std, rel=0.02)
    assert net.b2.weight.abs().sum() == 0
    assert net.item_embeddings.weight[0].abs().sum() > 0  # padding is an ordinary row


def test_parameter_counts_of_the_papers_table_3():
    """Tang and Wang 2018, Table 3: 5.58M and 2.79M on Gowalla."""
    for d, expected in ((100, 5_584_102), (50, 2_794_102)):
        with torch.device("meta"):
            net = Caser(13_149, 14_010, d=d)
        assert sum(parameter.numel() for parameter in net.parameters()) == expected


@pytest.mark.parametrize(("L", "nv", "nh"), [(5, 2, 3), (4, 0, 3), (4, 2, 0), (12, 1, 1)])
def test_arguments_are_inferred_from_shapes(L, nv, nh):
    net, _, _ = make(L=L, nv=nv, nh=nh)
    told = {"num_users": 7, "num_items": 11, "L": L, "d": 6, "nv": nv, "nh": nh}
    assert Caser.arguments_of(net.state_dict()) == told


def test_a_network_that_sees_nothing_of_the_window_is_refused():
    with pytest.raises(UserError, match="--nv 0 and --nh 0"):
        make(nv=0, nh=0)


def test_the_mean_user_comes_behind_all_others():
    net, sequences, users = make()
    before = net.score_all(sequences, users)
    mean = net.user_embeddings.weight.mean(0)
    add_mean_user(net)
    assert torch.equal(net.score_all(sequences, users), before)
    x = net.represent(sequences, torch.full((9,), 7))
    assert torch.allclose(x[:, 6:], mean.expand(9, -1), atol=1e-6)


# ---------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_share_and_keeps_the_mean(p):
    """As F.dropout does; it draws other bits."""
    torch.manual_seed(0)
    x = torch.ones(301, 1001)
    out = kernels.dropout(x, p, training=True)
    assert (out == 0).double().mean().item() == pytest.approx(p, abs=0.005)
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)], rel=1e-3)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    kept = (out != 0).double()
    for axis in (0, 1):  # neighbours are dropped independently
        pairs = kept.narrow(axis, 1, x.shape[axis] - 1) * kept.narrow(axis, 0, x.shape[axis] - 1)
        assert pairs.mean().item() == pytest.approx((1 - p) ** 2, abs=0.01)
    assert kernels.dropout(x, p, training=False) is x
    assert kernels.dropout(x, 0, training=True) is x


def test_dropout_of_nearly_everything_is_finite():
    assert kernels.dropout(torch.ones(100, 100), 0.9999999, training=True).isfinite().all()


def assert_same_values_and_gradients(fast, plain, *leaves):
    """fast, plain: functions of no arguments; leaves: what both are differentiated by."""
    values = fast(), plain()
    assert_close(*values, atol=1e-6, rtol=1e-5)
    # Each element has a weight of its own in what is differentiated.
    weight = torch.linspace(1, 2, values[0].numel()).view(values[0].shape)
    gradients = (torch.autograd.grad((value * weight).sum(), leaves) for value in values)
    assert_close(*gradients, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("L", [1, 2, 5, kernels.BANDED_L, kernels.BANDED_L + 1])
def test_filters_are_convolutions(L):
    torch.manual_seed(0)
    E = torch.randn(4, L, 6, requires_grad=True)
    vertical = nn.Conv2d(1, 2, (L, 1))
    assert_same_values_and_gradients(
        lambda: kernels.vertical_filters(E, vertical),
        lambda: vertical(E[:, None]).flatten(1),
        *(E, *vertical.parameters()),
    )
    convs = nn.ModuleList(nn.Conv2d(1, 3, (h, 6)) for h in range(1, L + 1))
    kernels._band_index.cache_clear()
    with torch.inference_mode():  # as an evaluation before any training would
        kernels.horizontal_filters(E, convs, torch.tanh)
    for activation in (nn.Identity(), nn.PReLU(), nn.Tanh()):
        assert_same_values_and_gradients(
            partial(kernels.horizontal_filters, E, convs, activation),
            lambda activation=activation: torch.cat(
                [activation(conv(E[:, None]).squeeze(3)).amax(2) for conv in convs], 1
            ),
            *(E, *convs.parameters(), *activation.parameters()),
        )


@pytest.mark.parametrize("B", [1, 9, 200])
def test_history_sums_are_those_of_each_history_by_itself(B):
    """Of users with 1 to 30 rows each; some histories recur, some are empty."""
    torch.manual_seed(0)
    table, items = torch.randn(11, 6, requires_grad=True), torch.randint(0, 11, (465,))
    lengths = torch.arange(1, 31)
    users = torch.randint(0, 30, (B,))
    starts = (lengths.cumsum(0) - lengths)[users]
    ends = starts + (torch.rand(B) * (lengths[users] + 1)).long()
    ends[0] = starts[0]
    ranges = list(zip(starts, ends, strict=True))
    fast = partial(kernels.history_sums, table, items, starts, ends)
    assert_same_values_and_gradients(
        fast, lambda: torch.stack([table[items[start:end]].sum(0) for start, end in ranges]), table
    )


@pytest.mark.parametrize(("B", "n"), [(1, 1), (1, 7), (9, 1), (9, 40)])
def test_row_products_are_those_of_the_copied_rows(monkeypatch, B, n):
    torch.manual_seed(0)
    x, table = torch.randn(B, 6, requires_grad=True), torch.randn(11, 6, requires_grad=True)
    rows = torch.randint(0, 11, (B, n))  # more than 11 of them repeat some
    fast = partial(kernels.row_products, x, table, rows)
    plain = partial(torch.einsum, "bq,bnq->bn", x, table[rows])
    assert_same_values_and_gradients(fast, plain, x, table)
    with torch.no_grad():
        assert_close(fast(), plain(), atol=1e-6, rtol=0)
        monkeypatch.setattr(kernels, "_has_sampled_product", lambda: False)  # an older torch
        assert_close(fast(), plain(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("B", "n"), [(1, 1), (7, 3), (40, 11), (5, 30)])
def test_sparse_gradients_are_those_of_the_plain_form(B, n):
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((B, 6), (11, 6), (11, 1))]
    x, table, column = leaves
    rows = torch.randint(0, 11, (B, n))

    def scores(sparse):
        with kernels.sparse_gradients(sparse):
            return kernels.row_products(x, table, rows) + kernels.row_values(column, rows)

    def plain():
        return torch.einsum("bq,bnq->bn", x, table[rows]) + column[rows, 0]

    for sparse in (True, False):
        assert_same_values_and_gradients(partial(scores, sparse), plain, *leaves)


@pytest.mark.parametrize("B", [1, 300])
def test_all_products_are_a_matrix_product(B):
    torch.manual_seed(0)
    leaves = [torch.randn(*shape, requires_grad=True) for shape in ((B, 6), (11, 6), (11, 1))]
    x, table, bias = leaves
    assert_same_values_and_gradients(
        partial(kernels.all_products, *leaves), lambda: x @ table.T + bias.T, *leaves
    )


@pytest.mark.parametrize("levels", [1, 3, 1000, 1 << 24])
@pytest.mark.parametrize("num_items", [30, 1600, 1607])
@pytest.mark.parametrize("k", [1, 11, 12, 25])
def test_topk_is_torchs_with_ties_in_its_order(k, num_items, levels):
    torch.manual_seed(levels)
    scores = torch.randint(levels, (7, num_items)).float()
    scores[0, [9, 8, -1]] = -torch.inf
    scores[6, k:] = -torch.inf  # fewer than k are left
    expected, items = scores.topk(k, dim=1)
    for laid_out in (scores, scores.T.contiguous().T):
        best, found = kernels.topk(laid_out, k)
        assert torch.equal(best, expected)
        assert torch.equal(found, items)


@pytest.mark.parametrize("levels", [1, 3, 1 << 24])
@pytest.mark.parametrize("limit", [1, 50, 1 << 22])
def test_count_below_counts_what_is_below(limit, levels):
    torch.manual_seed(levels)
    scores, target = (torch.randint(levels, (9, n)).float() for n in (400, 60))
    num_targets = torch.tensor([1, 1, 2, 2, 3, 7, 20, 60, 60]).numpy()
    counts = kernels.count_below(scores.T.contiguous().T, target, num_targets, limit)
    plain = (scores[:, None, :] < target[:, :, None]).sum(2)
    meant = torch.arange(60) < torch.from_numpy(num_targets)[:, None]
    assert torch.equal(counts[meant], plain[meant])
