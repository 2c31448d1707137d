"""Caser: Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding
(Tang and Wang, WSDM 2018), with the parameter names of the authors' code.

Letters, here and everywhere: B batch, L window, T targets, d dimension, N items scored,
K length of the teacher's list, S dynamic samples.
"""

import functools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

ACTIVATIONS = {
    "iden": nn.Identity,
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigm": nn.Sigmoid,
}
BANDED_L = 16  # up to this L the horizontal filters run as one matrix product


class Caser(nn.Module):
    """Embeds the last L items, convolves them, and scores items against the result and the user.

    Parameters
    ----------
    num_users, num_items: sizes of the tables; num_items counts the padding id 0, which is an
        ordinary trainable row here as in the authors' code.
    L: window. d: dimension. nv, nh: vertical filters, and horizontal ones per height (0 leaves
        a branch out, not both). drop: dropout before fc1. ac_conv, ac_fc: see ACTIVATIONS.

    A network that the training loop can use has ``represent``, ``score``, ``score_all`` and
    ``architecture`` as they are here.
    """

    def __init__(
        self, num_users, num_items, L=5, d=100, nv=2, nh=16, drop=0.5, ac_conv="iden", ac_fc="sigm"
    ):
        super().__init__()
        self.architecture = {
            "L": L, "d": d, "nv": nv, "nh": nh, "drop": drop, "ac_conv": ac_conv, "ac_fc": ac_fc
        }  # fmt: skip
        self.user_embeddings = nn.Embedding(num_users, d)
        self.item_embeddings = nn.Embedding(num_items, d)
        if nv:
            self.conv_v = nn.Conv2d(1, nv, (L, 1))
        if nh:
            self.conv_h = nn.ModuleList(nn.Conv2d(1, nh, (h, d)) for h in range(1, L + 1))
            if L <= BANDED_L:
                self.register_buffer("band", band_index(L, nh), persistent=False)
        self.fc1 = nn.Linear(nv * d + nh * L, d)
        self.W2 = nn.Embedding(num_items, 2 * d)
        self.b2 = nn.Embedding(num_items, 1)
        self.ac_conv = ACTIVATIONS[ac_conv]()
        self.ac_fc = ACTIVATIONS[ac_fc]()
        for table in (self.user_embeddings, self.item_embeddings, self.W2):
            nn.init.normal_(table.weight, std=1 / table.embedding_dim)
        nn.init.zeros_(self.b2.weight)

    @staticmethod
    def architecture_of(state_dict):
        """What the shapes of a bare state dict tell of the architecture: L, d, nv, nh."""
        d = state_dict["user_embeddings.weight"].shape[1]
        heights = [name for name in state_dict if name.startswith("conv_h.") and "bias" in name]
        nv = nh = 0
        if "conv_v.weight" in state_dict:
            nv, _, L, _ = state_dict["conv_v.weight"].shape
        if heights:
            L, nh = len(heights), state_dict[heights[0]].shape[0]
        return {"L": L, "d": d, "nv": nv, "nh": nh}

    def forward(self, sequences, users, items):
        """Score some items: sequences (B, L), users (B,) or (B, 1), items (B, N), all int64.

        Returns (B, N) float32.
        """
        return self.score(self.represent(sequences, users), items)

    def represent(self, sequences, users):
        """What an item's row of W2 is multiplied with: (B, 2d), [z, user embedding].

        sequences: (B, L) int64, users: (B,) or (B, 1) int64.
        """
        E = self.item_embeddings(sequences)  # (B, L, d)
        branches = []
        if self.architecture["nv"]:
            branches.append(self._vertical(E))  # (B, nv * d)
        if self.architecture["nh"]:
            branches.append(self._horizontal(E))  # (B, L * nh)
        features = dropout(torch.cat(branches, 1), self.architecture["drop"], self.training)
        z = self.ac_fc(self.fc1(features))  # (B, d)
        return torch.cat([z, self.user_embeddings(users.flatten())], 1)  # (B, 2d)

    def score(self, x, items):
        """Scores (B, N) of items (B, N) for representations x (B, 2d)."""
        return chosen_products(x, self.W2.weight, items) + self.b2(items).squeeze(2)

    def score_all(self, sequences, users):
        """Scores (B, num_items) of all ids, padding too, in one matrix product.

        sequences: (B, L) int64, users: (B,) or (B, 1) int64. In memory they lie item by item: for
        hundreds of users the product is up to twice as fast that way round on a CPU.
        """
        x = self.represent(sequences, users)
        return torch.addmm(self.b2.weight, self.W2.weight, x.T).T

    def _vertical(self, E):
        """nv filters (L, 1): weighted sums of the window's items, without activation."""
        weight = self.conv_v.weight.flatten(1).expand(len(E), -1, -1)  # (B, nv, L)
        mixed = torch.bmm(weight, E)  # (B, nv, d); several times faster than matmul here
        return (mixed + self.conv_v.bias[:, None]).flatten(1)

    def _horizontal(self, E):
        """nh filters (h, d) for every height h = 1..L, activation, and max over time."""
        B, L, _ = E.shape
        bias = torch.cat([conv.bias.expand(L - h, -1) for h, conv in enumerate(self.conv_h)])
        places = [L - h for h in range(L)]  # where a filter of height h + 1 fits
        if L > BANDED_L:  # the band's zeros would outgrow what one product saves
            rows = [F.conv2d(E[:, None], conv.weight).squeeze(3).mT for conv in self.conv_h]
            response = torch.cat(rows, 1) + bias  # (B, sum of places, nh)
        else:
            flat = torch.matmul(E.flatten(1), self._banded_weight(E).T)
            response = flat.view(B, len(bias), -1) + bias
        response = self.ac_conv(response)
        return torch.cat([part.max(1).values for part in response.split(places, 1)], 1)

    def _banded_weight(self, E):
        """Every horizontal filter at every place where it fits, as rows over the flat window.

        Returns (sum of places * nh, L * d); zeros where a filter does not reach.
        """
        zeros = E.new_zeros(1, E.shape[2])
        rows = torch.cat([zeros, *(conv.weight.flatten(0, 2) for conv in self.conv_h)])
        return F.embedding(self.band, rows, padding_idx=0).flatten(1)


def band_index(L, nh):
    """Which row of all filters' rows stands where in the banded weight, from 1; 0 is a zero row.

    Returns (sum of places * nh, L) int64; filters by height, each at its places from the top.
    """
    blocks, first = [], 1
    for h in range(1, L + 1):
        own = first + torch.arange(nh * h).view(nh, h)
        blocks += [F.pad(own, (top, L - h - top)) for top in range(L - h + 1)]
        first += nh * h
    return torch.cat(blocks)


def dropout(x, p, training):
    """Inverted dropout, its bits cut from 64-bit integers: faster than a Bernoulli draw.

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


def chosen_products(x, table, rows):
    """Dot products (B, n) of x (B, q) with the rows (B, n) int64 of a table (N, q).

    Where no gradient is needed, on a CPU, they are taken as a sampled matrix product, which
    copies no rows (torch has it for n <= N); else as a multiply and a sum.
    """
    copy = torch.is_grad_enabled() or x.device.type != "cpu" or rows.shape[1] > len(table)
    if copy or not _has_sampled_product():
        return (F.embedding(rows, table) * x[:, None, :]).sum(2)
    return _sampled_product(x, table, rows)


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
    """Whether this build of torch can do it, which not every one can."""
    try:
        x, table = torch.eye(2), torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        found = _sampled_product(x, table, torch.tensor([[2, 0, 2], [1, 1, 0]]))
        return found.tolist() == [[5, 1, 5], [4, 4, 2]]
    except RuntimeError:
        return False
