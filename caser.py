"""Caser: Personalized Top-N Sequential Recommendation via Convolutional Sequence Embedding
(Tang and Wang, WSDM 2018), with the parameter names of the authors' code.

Letters, here and everywhere: B batch, L window, T targets, d dimension, N items scored,
K length of the teacher's list, S dynamic samples.
"""

import torch
from torch import nn

from kernels import (
    all_products,
    dropout,
    horizontal_filters,
    row_products,
    row_values,
    vertical_filters,
)
from utils import UserError

ACTIVATIONS = {
    "iden": nn.Identity,
    "relu": nn.ReLU,
    "prelu": nn.PReLU,
    "leaky_relu": nn.LeakyReLU,
    "tanh": nn.Tanh,
    "sigm": nn.Sigmoid,
}


class Caser(nn.Module):
    """Embeds the last L items, convolves them, and scores items against the result and the user.

    Parameters
    ----------
    num_users: rows of the user table.
    num_items: rows of the item tables; counts the padding id 0, which is an ordinary trainable
        row here as in the authors' code.
    L: window. d: dimension. drop: dropout before fc1.
    nv, nh: vertical filters, and horizontal ones per height; 0 leaves a branch out.
    ac_conv, ac_fc: see ACTIVATIONS.

    Raises UserError where both branches are left out.
    """

    name = "caser"  # in checkpoints and in the names of files
    user_table = "user_embeddings"  # whose mean stands for users that it does not know
    flags = (  # name, default, type, range or choices, meaning
        ("L", 5, int, "[1, 1000]", "L: the items of a window"),
        ("d", 100, int, "[1, 100000]", "d: dimension of the embeddings"),
        ("nv", 2, int, "[0, 100000]", "n~: vertical filters"),
        ("nh", 16, int, "[0, 100000]", "n: horizontal filters of each height"),
        ("drop", 0.5, float, "[0, 1)", "dropout before the fully connected layer"),
        ("ac_conv", "iden", str, ACTIVATIONS, "phi_c: activation of the horizontal convolution"),
        ("ac_fc", "sigm", str, ACTIVATIONS, "phi_a: activation of the fully connected layer"),
    )

    def __init__(
        self, num_users, num_items, L=5, d=100, nv=2, nh=16, drop=0.5, ac_conv="iden", ac_fc="sigm"
    ):
        if not nv and not nh:
            raise UserError("--nv 0 and --nh 0 together leave nothing of the window; keep one")
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
        self.fc1 = nn.Linear(nv * d + nh * L, d)
        self.W2 = nn.Embedding(num_items, 2 * d)
        self.b2 = nn.Embedding(num_items, 1)
        self.ac_conv = ACTIVATIONS[ac_conv]()
        self.ac_fc = ACTIVATIONS[ac_fc]()
        for table in (self.user_embeddings, self.item_embeddings, self.W2):
            nn.init.normal_(table.weight, std=1 / table.embedding_dim)
        nn.init.zeros_(self.b2.weight)

    def represent(self, sequences, users, history=None):
        """What an item's row of W2 is multiplied with: (B, 2d), [z, user embedding].

        sequences: (B, L) int32 or int64. users: (B,) or (B, 1) int64. history: of no use to a
        Caser.
        """
        E = self.item_embeddings(sequences)  # (B, L, d)
        branches = []
        if self.architecture["nv"]:
            branches.append(vertical_filters(E, self.conv_v))  # (B, nv * d)
        if self.architecture["nh"]:  # activation and max over time are in it
            branches.append(horizontal_filters(E, self.conv_h, self.ac_conv))  # (B, L * nh)
        features = dropout(torch.cat(branches, 1), self.architecture["drop"], self.training)
        z = self.ac_fc(self.fc1(features))  # (B, d)
        return torch.cat([z, self.user_embeddings(users.flatten())], 1)  # (B, 2d)

    def score(self, x, items):
        """Scores (B, N) of items (B, N) int64 for representations x (B, 2d)."""
        return row_products(x, self.W2.weight, items) + row_values(self.b2.weight, items)

    def score_all(self, sequences, users, history=None):
        """Scores (B, num_items) of all ids, padding too; arguments as for ``represent``."""
        return all_products(self.represent(sequences, users), self.W2.weight, self.b2.weight)

    def forward(self, sequences, users, items):
        """Scores (B, N) of items (B, N); the rest as for ``represent``."""
        return self.score(self.represent(sequences, users), items)

    @staticmethod
    def arguments_of(state_dict):
        """The arguments that the shapes of a bare state dict tell: all but drop and activations."""
        num_users, d = state_dict["user_embeddings.weight"].shape
        heights = [name for name in state_dict if name.startswith("conv_h.") and "bias" in name]
        nv = nh = L = 0
        if "conv_v.weight" in state_dict:
            nv, _, L, _ = state_dict["conv_v.weight"].shape
        if heights:
            L, nh = len(heights), state_dict[heights[0]].shape[0]
        num_items = len(state_dict["item_embeddings.weight"])
        return {"num_users": num_users, "num_items": num_items, "L": L, "d": d, "nv": nv, "nh": nh}
