import pytest
import torch

import caser
from caser import ACTIVATIONS, Caser, chosen_products, dropout


def make(L=5, d=6, nv=2, nh=3, **options):
    torch.manual_seed(0)
    net = Caser(7, 11, L=L, d=d, nv=nv, nh=nh, **options)
    return net, torch.randint(0, 11, (9, L)), torch.randint(0, 7, (9,))


@pytest.mark.parametrize("ac_conv", ACTIVATIONS)
@pytest.mark.parametrize("ac_fc", ["iden", "prelu"])
@pytest.mark.parametrize(("nv", "nh"), [(2, 3), (0, 3), (2, 0)])
def test_every_parameter_learns_and_both_ways_of_scoring_agree(nv, nh, ac_conv, ac_fc):
    net, sequences, users = make(nv=nv, nh=nh, ac_conv=ac_conv, ac_fc=ac_fc)
    everything = torch.arange(11).expand(9, -1)
    net.eval()
    scores = net(sequences, users, everything)
    assert torch.allclose(scores, net.score_all(sequences, users), atol=1e-6)
    scores.square().sum().backward()
    for name, parameter in net.named_parameters():
        unused = "ac_conv" in name and not nh
        assert unused or parameter.grad.abs().sum() > 0, name


def test_a_batch_of_one_scores_as_in_a_larger_one():
    net, sequences, users = make()
    net.eval()
    together = net.score_all(sequences, users)
    for row in range(len(users)):
        alone = net.score_all(sequences[row : row + 1], users[row : row + 1])
        assert alone.shape == (1, 11)
        assert torch.allclose(alone[0], together[row], atol=1e-6)


@pytest.mark.parametrize("L", [1, 2, 5, 8])
@pytest.mark.parametrize("ac_conv", ["iden", "prelu", "tanh"])
def test_banded_product_equals_convolutions(monkeypatch, L, ac_conv):
    net, sequences, users = make(L=L, ac_conv=ac_conv)
    net.eval()
    banded = net.represent(sequences, users)
    monkeypatch.setattr(caser, "BANDED_L", 0)
    assert torch.allclose(net.represent(sequences, users), banded, atol=1e-6)


def test_initial_weights_are_the_released_ones():
    torch.manual_seed(0)
    net = Caser(2000, 1000, d=50)
    for table, std in (
        (net.user_embeddings, 1 / 50),
        (net.item_embeddings, 1 / 50),
        (net.W2, 1 / 100),
    ):
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
def test_architecture_is_inferred_from_shapes(L, nv, nh):
    net, _, _ = make(L=L, nv=nv, nh=nh)
    assert Caser.architecture_of(net.state_dict()) == {"L": L, "d": 6, "nv": nv, "nh": nh}


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_drops_a_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.ones(301, 1001)
    out = dropout(x, p, training=True)
    assert (out == 0).double().mean().item() == pytest.approx(p, abs=0.005)
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    kept = (out != 0).double()
    for axis in (0, 1):  # neighbours are dropped independently
        pairs = kept.narrow(axis, 1, x.shape[axis] - 1) * kept.narrow(axis, 0, x.shape[axis] - 1)
        assert pairs.mean().item() == pytest.approx((1 - p) ** 2, abs=0.01)
    assert dropout(x, p, training=False) is x


def test_dropout_of_nearly_everything_is_finite():
    assert dropout(torch.ones(100, 100), 0.9999999, training=True).isfinite().all()


@pytest.mark.parametrize(("B", "n"), [(1, 1), (1, 7), (9, 1), (9, 40)])
def test_chosen_products_with_and_without_a_gradient(monkeypatch, B, n):
    torch.manual_seed(0)
    x, table = torch.randn(B, 6), torch.randn(11, 6)
    rows = torch.randint(0, 11, (B, n))  # more than 11 of them repeat some
    expected = torch.einsum("bq,bnq->bn", x, table[rows])
    assert torch.allclose(chosen_products(x, table, rows), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(chosen_products(x, table, rows), expected, atol=1e-6)
        monkeypatch.setattr(caser, "_has_sampled_product", lambda: False)
        assert torch.allclose(chosen_products(x, table, rows), expected, atol=1e-6)
