"""Fossil: Fusing Similarity Models with Markov Chains for Sparse Sequential Recommendation
(He and McAuley, ICDM 2016, arXiv 1609.09152). Letters as in caser.py.
"""

import torch
from torch import nn

from interactions import PADDING
from kernels import all_products, history_sums, row_products, row_values


class Fossil(nn.Module):
    """Sums what a user had, long ago and lately, and scores items against the sum.

        x     = |H|^-alpha sum_{i in H} P_i + sum_{k=1..L} (eta_k + eta^u_k) P_{S_{t-k}}
        score = b_j + < x, Q_j >

    H: the items before the (first) target, repeats counted. Padding adds nothing in either term.

    Parameters
    ----------
    num_users: rows of the users' weights.
    num_items: rows of the item tables; counts the padding id 0, whose row of P counts nowhere.
    L: window, the order of the Markov chain. d: dimension.
    history_alpha: how far a long history is scaled down, from 0, a sum, to 1, a mean.
    """

    name = "fossil"  # in checkpoints and in the names of files
    user_table = "user_eta"  # whose mean stands for users that it does not know
    flags = (  # name, default, type, range or choices, meaning
        ("L", 5, int, "[1, 1000]", "L: the items of a window, the order of the Markov chain"),
        ("d", 50, int, "[1, 100000]", "d: dimension of the embeddings"),
        ("history_alpha", 0.5, float, "[0, 10]", "alpha: the history's sum times |H|^-alpha"),
    )

    def __init__(self, num_users, num_items, L=5, d=50, history_alpha=0.5):
        super().__init__()
        self.architecture = {"L": L, "d": d, "history_alpha": float(history_alpha)}
        # The window's gradient, of few rows, is added to the history's, which has them all.
        self.P = nn.Embedding(num_items, d, sparse=True)
        self.Q = nn.Embedding(num_items, d)
        self.b = nn.Embedding(num_items, 1)
        self.eta = nn.Parameter(torch.zeros(L))  # the last is the paper's k = 1
        self.user_eta = nn.Embedding(num_users, L)
        for table in (self.P, self.Q):
            nn.init.normal_(table.weight, std=1 / d)
        for table in (self.b, self.user_eta):
            nn.init.zeros_(table.weight)

    def represent(self, sequences, users, history):
        """What an item's row of Q is multiplied with: x (B, d).

        sequences: (B, L) int32 or int64. users: (B,) or (B, 1) int64. history: the History of B
        windows.
        """
        lengths = (history.ends - history.starts).clamp(min=1).float()
        scale = lengths ** -self.architecture["history_alpha"]  # (B,)
        long = history_sums(self.P.weight, history.items, history.starts, history.ends)  # (B, d)
        eta = (self.eta + self.user_eta(users.flatten())) * (sequences != PADDING)  # (B, L)
        return scale[:, None] * long + torch.bmm(eta[:, None], self.P(sequences)).squeeze(1)

    def score(self, x, items):
        """Scores (B, N) of items (B, N) int64 for representations x (B, d)."""
        return row_products(x, self.Q.weight, items) + row_values(self.b.weight, items)

    def score_all(self, sequences, users, history):
        """Scores (B, num_items) of all ids, padding too; arguments as for ``represent``."""
        return all_products(self.represent(sequences, users, history), self.Q.weight, self.b.weight)

    @staticmethod
    def arguments_of(state_dict):
        """The arguments that the shapes of a bare state dict tell: all but history_alpha."""
        num_users, L = state_dict["user_eta.weight"].shape
        num_items, d = state_dict["P.weight"].shape
        return {"num_users": num_users, "num_items": num_items, "L": L, "d": d}
