"""The flags of baselines.py's methods, which the tables' runs are told by as well."""

from support.command_line import data_flags, training_parser
from utils import Parser, numeric_flag, path_flag

DESCRIPTION = "Recommenders without a sequence: POP and ItemCF, which only count, and BPR."


def baseline_parser(method, network):
    """The flags of a method, "pop", "itemcf" or "bpr". network: BPR, the class."""
    if method == network.name:
        parser = training_parser(DESCRIPTION, network, d=50)
        parser.set_defaults(neg_samples=1)
    else:
        parser = Parser(description=DESCRIPTION)
        data_flags(parser)
        path_flag(parser, "--output_dir", "where the records go", "checkpoints", "DIR")
        # Every row counts, as for BPR; nothing is drawn, and nothing is saved to go on from.
        parser.set_defaults(L=0, T=1, seed="none", device="cpu", use_cuda=None, checkpoint=None,
                            evaluate=False)  # fmt: skip
    group = parser.add_argument_group("method")
    method_flag(group)
    if method == "itemcf":
        group.add_argument("--similarity", default="cosine", choices=["cosine", "count", "jaccard"],
                           help="of two items, by the users that they share")  # fmt: skip
        numeric_flag(group, "--neighbours", None, int, "[1, 1e9]",
                     "the most similar items alone, of each item (default: all)")  # fmt: skip
    return parser


def method_flag(group):
    group.add_argument("--method", default="bpr", choices=["pop", "itemcf", "bpr"],
                       help="each has flags of its own: --method NAME --help")  # fmt: skip


def counted_name(args):
    """What the records of POP or ItemCF are named after, behind the data."""
    parts = [args.method]
    if args.method == "itemcf":
        parts.append(args.similarity)
        parts += [f"neighbours={args.neighbours}"] * bool(args.neighbours)
    return "-".join(parts)
