"""The rows of the paper's tables, and each data set's d and epochs: data, from which runs.py makes
training runs."""

from dataclasses import dataclass, replace

from caser import Caser
from evaluation import KS

METRICS = [f"{name}@{k}" for name in ("precision", "ndcg_paper") for k in KS] + ["map"]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, and the flags that its command adds to the data set's."""

    name: str
    title: str
    network: type
    size: str  # "teacher" or "student": which d it has
    distilled: bool = False
    flags: tuple = ()
    teacher: str = "caser-t"  # the row that teaches it
    teacher_flags: tuple = ()  # what its teacher has besides
    most_epochs: int | None = None  # where it may have more than its data set's
    paper: tuple = ()  # METRICS on the paper's Gowalla, None where it gives none

    @property
    def script(self):
        """The training script of the row's network that does it."""
        return f"{'distill' if self.distilled else 'train'}_{self.network.name}.py"


# The paper's numbers are those of Tang and Wang 2018, Tables 2 and 4 (a third party's
# transcription).
ROWS = {
    row.name: row
    for row in (
        Row("caser-t", "Caser-T", Caser, "teacher",
            paper=(0.1408, 0.1149, 0.0856, 0.1546, 0.1376, 0.1251, 0.0958)),
        Row("caser-s", "Caser-S", Caser, "student",
            paper=(0.1333, 0.1094, 0.0818, 0.1456, 0.1304, 0.1188, 0.0919)),
        Row("caser-rd", "Caser-RD", Caser, "student", True,
            paper=(0.1458, 0.1183, 0.0878, 0.1603, 0.1423, 0.1283, 0.0969)),
        Row("uniform", "w = 1/K", Caser, "student", True, ("--weights", "uniform"),
            paper=(None, None, 0.0843, None, None, 0.1198, 0.0925)),
        Row("position", "position importance only", Caser, "student", True,
            ("--weights", "position"),
            paper=(None, None, 0.0850, None, None, 0.1230, 0.0945)),
        Row("discrepancy", "ranking discrepancy only", Caser, "student", True,
            ("--weights", "discrepancy"),
            paper=(None, None, 0.0851, None, None, 0.1227, 0.0937)),
        Row("rd-normalized", "Caser-RD, weights normalized", Caser, "student", True,
            ("--hybrid_weight", "normalized")),
        Row("rd-observed", "Caser-RD, own items out of the lists", Caser, "student", True,
            ("--teacher_exclude", "observed")),
        Row("rd-paper", "Caser-RD, the paper's formulas", Caser, "student", True,
            ("--hybrid_weight", "normalized", "--teacher_exclude", "observed")),
    )
}  # fmt: skip
# What is left of a gain when training has ended: the most epochs lie far beyond the best number.
CONVERGED = {
    f"{name}-converged": replace(
        ROWS[name],
        name=f"{name}-converged",
        title=f"{ROWS[name].title}, to convergence",
        teacher="caser-t-converged",
        most_epochs=200,
        paper=(),
    )
    for name in ("caser-t", "caser-s", "caser-rd", "rd-paper")
}
ROWS |= CONVERGED
TABLES = {
    "1": (),
    "2": ("caser-t", "caser-s", "caser-rd"),
    "3": ("caser-t", "caser-rd"),
    "4": ("uniform", "position", "discrepancy", "caser-rd", "rd-normalized"),
    "readings": ("caser-rd", "rd-normalized", "rd-observed", "rd-paper"),
    "convergence": tuple(CONVERGED),
}
# table -> (row, rival): what is tested against what
COMPARISONS = {
    "2": [("caser-rd", rival) for rival in ("caser-s", "caser-t")],
    "4": [
        *((row, "uniform") for row in ("position", "discrepancy")),
        *((hybrid, row) for hybrid in ("caser-rd", "rd-normalized")
          for row in ("uniform", "position", "discrepancy")),
    ],
    "readings": [
        (row, rival)
        for row in ("rd-normalized", "rd-observed", "rd-paper")
        for rival in ("caser-s", "caser-t", "caser-rd")
    ],
    "convergence": [
        (f"{row}-converged", f"{rival}-converged")
        for row in ("caser-rd", "rd-paper")
        for rival in ("caser-s", "caser-t")
    ],
}  # fmt: skip
AUTHORS = {  # rows that the authors' released code gave
    "authors-caser-t": "the authors' code: teacher",
    "authors-caser-s": "the authors' code: student alone",
    "authors-caser-rd": "the authors' code: distilled",
}
DATA_SETS = ("ml-100k", "ml-1m", "gowalla-tail", "gowalla")
# d of teacher and student, the most epochs of each, and the flags that all rows share.
DEFAULTS = {"teacher": (100, 50), "student": (50, 50), "flags": ()}
SETTINGS = {
    "ml-100k": {"teacher": (100, 25), "student": (20, 50), "flags": ()},
    "ml-1m": {"teacher": (50, 20), "student": (10, 40),
              "flags": ("--T", "3", "--nv", "4", "--ac_conv", "relu", "--ac_fc", "relu")},
}  # fmt: skip


def teacher_of(row):
    """The row whose runs teach ``row``."""
    return with_flags(ROWS[row.teacher], *row.teacher_flags)


def with_flags(row, *flags):
    """``row`` with more flags, (flag, value) or none, and a name that tells them."""
    name = "-".join((row.name, *("=".join(flags).lstrip("-") for _ in flags[:1])))
    return replace(row, name=name, flags=row.flags + flags)
