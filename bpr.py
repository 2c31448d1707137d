"""BPR: Bayesian Personalized Ranking from Implicit Feedback (Rendle et al., UAI 2009, arXiv
1205.2618), its matrix factorization. Letters as in caser.py; a window has no item here, L = 0.
"""

from torch import nn

from kernels import all_products, row_products


class BPR(nn.Module):
    """Scores items against the user alone, whatever came before.

    Parameters
    ----------
    num_users: rows of the user table.
    num_items: rows of the item table; counts the padding id 0.
    L: 0, for what cuts windows. d: dimension.
    """

    name = "bpr"
    user_table = "user_embeddings"  # whose mean stands for users that it does not know
    flags = (
        ("L", 0, int, "[0, 0]", "L: the items of a window, which has none"),
        ("d", 50, int, "[1, 100000]", "d: dimension of the embeddings"),
    )

    def __init__(self, num_users, num_items, L=0, d=50):
        super().__init__()
        self.architecture = {"L": 0, "d": d}
        self.user_embeddings = nn.Embedding(num_users, d)
        self.item_embeddings = nn.Embedding(num_items, d)
        self.item_biases = nn.Embedding(num_items, 1)
        for table in (self.user_embeddings, self.item_embeddings):
            nn.init.normal_(table.weight, std=1 / d)
        nn.init.zeros_(self.item_biases.weight)

    def represent(self, sequences, users, history=None):
        """The user embeddings (B, d).

        sequences: (B, 0). users: (B,) or (B, 1) int64. history: of no use to a BPR.
        """
        return self.user_embeddings(users.flatten())

    def score(self, x, items):
        """Scores (B, N) of items (B, N) int64 for representations x (B, d)."""
        biases = self.item_biases(items).squeeze(2)
        return row_products(x, self.item_embeddings.weight, items) + biases

    def score_all(self, sequences, users, history=None):
        """Scores (B, num_items) of all ids, padding too; arguments as for ``represent``."""
        x = self.represent(sequences, users)
        return all_products(x, self.item_embeddings.weight, self.item_biases.weight)

    @staticmethod
    def arguments_of(state_dict):
        """The arguments that the shapes of a bare state dict tell: all but L."""
        num_users, d = state_dict["user_embeddings.weight"].shape
        num_items = len(state_dict["item_embeddings.weight"])
        return {"num_users": num_users, "num_items": num_items, "d": d}
