"""The rows of the paper's tables, and what was chosen for each on a data set: data, from which
runs.py makes training runs."""

from dataclasses import dataclass, replace

from bpr import BPR
from caser import Caser
from evaluation import KS
from fossil import Fossil

METRICS = [f"{name}@{k}" for name in ("precision", "ndcg_paper") for k in KS] + ["map"]


@dataclass(frozen=True)
class Row:
    """One line of a table: a model, and the flags that its command adds to the data set's."""

    name: str
    title: str
    network: type | None = None  # None: it only counts
    size: str = "teacher"  # "student" or "small": which Setting it has
    distilled: bool = False
    flags: tuple = ()
    teacher: str = "caser-t"  # the row that teaches it
    teacher_flags: tuple = ()  # what its teacher has besides
    most_epochs: int | None = None  # where it may have more than its data set's
    chosen: str = ""  # its key in CHOSEN, where it has flags of its own there
    paper: tuple = ()  # METRICS on the paper's Gowalla, None where it gives none

    @property
    def script(self):
        """The script that does it."""
        if self.method:
            return "baselines.py"
        return f"{'distill' if self.distilled else 'train'}_{self.network.name}.py"

    @property
    def method(self):
        """Which of the script's baselines it is; None for another."""
        return dict(flag_pairs(self.flags)).get("--method")


def flag_pairs(flags):
    """The (flag, value) of the words of a command line."""
    return zip(flags[::2], flags[1::2], strict=True)


PAPERS_FORMULAS = ("--hybrid_weight", "normalized", "--teacher_exclude", "observed")
# The paper's numbers are those of Tang and Wang 2018, Tables 2 and 4 (a third party's
# transcription).
ROWS = {
    row.name: row
    for row in (
        Row("pop", "POP", flags=("--method", "pop"),
            paper=(0.0341, 0.0362, 0.0281, 0.0517, 0.0386, 0.0344, 0.0229)),
        Row("itemcf", "ItemCF (cosine)", flags=("--method", "itemcf"),
            paper=(0.0686, 0.0610, 0.0503, 0.0717, 0.0675, 0.0640, 0.0622)),
        Row("itemcf-count", "ItemCF (count)",
            flags=("--method", "itemcf", "--similarity", "count")),
        Row("bpr", "BPR", BPR, flags=("--method", "bpr"),
            paper=(0.1204, 0.0983, 0.0726, 0.1301, 0.1155, 0.1037, 0.0767)),
        Row("fossil-t", "Fossil-T", Fossil,
            paper=(0.1299, 0.1062, 0.0791, 0.1429, 0.1270, 0.1140, 0.0866)),
        Row("fossil-s", "Fossil-S", Fossil, "student",
            paper=(0.1217, 0.0995, 0.0739, 0.1335, 0.1185, 0.1060, 0.0792)),
        Row("fossil-rd", "Fossil-RD", Fossil, "student", True, teacher="fossil-t",
            paper=(0.1355, 0.1096, 0.0808, 0.1490, 0.1314, 0.1172, 0.0874)),
        Row("fossil-rd-paper", "Fossil-RD, the paper's formulas", Fossil, "student", True,
            PAPERS_FORMULAS, teacher="fossil-t"),
        Row("caser-t", "Caser-T", Caser, "teacher",
            paper=(0.1408, 0.1149, 0.0856, 0.1546, 0.1376, 0.1251, 0.0958)),
        Row("caser-s", "Caser-S", Caser, "student",
            paper=(0.1333, 0.1094, 0.0818, 0.1456, 0.1304, 0.1188, 0.0919)),
        Row("caser-rd", "Caser-RD", Caser, "student", True,
            paper=(0.1458, 0.1183, 0.0878, 0.1603, 0.1423, 0.1283, 0.0969)),
        Row("caser-rd-from-fossil", "Caser-RD, taught by Fossil-T", Caser, "student", True,
            teacher="fossil-t"),
        Row("fossil-rd-from-caser", "Fossil-RD, taught by Caser-T", Fossil, "student", True),
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
            PAPERS_FORMULAS),
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
# Later losses beside RD, each with the factor that validation chose, and the student alone with as
# many settings searched.
LATER_STUDENTS = {  # table -> what its rows' names begin with, the network, its size
    "later": ("caser", Caser, "student"),
    "later-small": ("caser-small", Caser, "small"),
    "later-fossil": ("fossil", Fossil, "student"),
}
LATER_METHODS = {
    "s-tuned": ("S, tuned", ()),
    "rd-tuned": ("RD, tuned", ()),
    "rd-paper-tuned": ("RD, the paper's formulas, tuned", PAPERS_FORMULAS),
    "rrd": ("RRD", ("--distillation", "rrd")),
    "listwise": ("list-wise", ("--distillation", "listwise")),
    "cd": ("CD", ("--distillation", "cd")),
}
LATER = {
    table: [
        Row(f"{prefix}-{name}", f"{prefix.capitalize()}-{title}", network, size, name != "s-tuned",
            flags, f"{network.name}-t", chosen=f"{prefix}-{name}")
        for name, (title, flags) in LATER_METHODS.items()
    ]
    for table, (prefix, network, size) in LATER_STUDENTS.items()
}  # fmt: skip
ROWS |= {row.name: row for rows in LATER.values() for row in rows}
TABLES = {
    "1": (),
    "first": ("pop", "itemcf", "itemcf-count", "caser-t", "caser-s", "caser-rd"),
    "2": ("pop", "itemcf", "itemcf-count", "bpr", "fossil-t", "fossil-s", "fossil-rd", "caser-t",
          "caser-s", "caser-rd", "caser-rd-from-fossil", "fossil-rd-from-caser"),
    "3": ("caser-t", "caser-rd", "fossil-t", "fossil-rd"),
    "4": ("uniform", "position", "discrepancy", "caser-rd", "rd-normalized"),
    "readings": ("caser-rd", "rd-normalized", "rd-observed", "rd-paper", "fossil-rd",
                 "fossil-rd-paper"),
    "convergence": tuple(CONVERGED),
}  # fmt: skip
TABLES |= {table: (rows[0].teacher, *(row.name for row in rows)) for table, rows in LATER.items()}
# table -> (row, rival): what is tested against what
COMPARISONS = {
    "first": [("caser-rd", rival) for rival in ("caser-s", "caser-t")],
    "2": [
        *((f"{name}-rd", f"{name}-{rival}") for name in ("caser", "fossil") for rival in "st"),
        *(("caser-rd-from-fossil", rival) for rival in ("caser-s", "caser-rd")),
        *(("fossil-rd-from-caser", rival) for rival in ("fossil-s", "fossil-rd")),
        *(("caser-t", rival) for rival in ("fossil-t", "bpr")),
        ("fossil-t", "bpr"),
    ],
    "4": [
        *((row, "uniform") for row in ("position", "discrepancy")),
        *((hybrid, row) for hybrid in ("caser-rd", "rd-normalized")
          for row in ("uniform", "position", "discrepancy")),
    ],
    "readings": [
        *((row, rival) for row in ("rd-normalized", "rd-observed", "rd-paper")
          for rival in ("caser-s", "caser-t", "caser-rd")),
        *(("fossil-rd-paper", rival) for rival in ("fossil-s", "fossil-t", "fossil-rd")),
    ],
    "convergence": [
        (f"{row}-converged", f"{rival}-converged")
        for row in ("caser-rd", "rd-paper")
        for rival in ("caser-s", "caser-t")
    ],
}  # fmt: skip
COMPARISONS |= {
    table: [
        (alone.teacher, alone.name),
        *(
            (row.name, rival)
            for row in others
            for rival in (alone.name, row.teacher, others[0].name)
            if row.name != rival
        ),
    ]
    for table, (alone, *others) in LATER.items()
}
AUTHORS = {  # rows that the authors' released code gave
    "authors-caser-t": "the authors' code: teacher",
    "authors-caser-s": "the authors' code: student alone",
    "authors-caser-rd": "the authors' code: distilled",
}
DATA_SETS = ("ml-100k", "ml-1m", "gowalla-tail", "gowalla")


@dataclass(frozen=True)
class Setting:
    """What a network has on a data set: its d, the most epochs that it may have, and flags."""

    d: int
    epochs: int
    flags: tuple = ()


# (network, size) -> its Setting, on any data set; the data sets' own are below.
DEFAULTS = {
    ("caser", "teacher"): Setting(100, 50),
    ("caser", "student"): Setting(50, 50),
    ("caser", "small"): Setting(20, 50),
    ("fossil", "teacher"): Setting(50, 60, ("--history_alpha", "0.5")),
    ("fossil", "student"): Setting(20, 60, ("--history_alpha", "0.5")),
    ("bpr", "teacher"): Setting(100, 100, ("--learning_rate", "0.001", "--l2", "1e-5")),
}
_ML_1M = ("--T", "3")
_ML_1M_CASER = (*_ML_1M, "--nv", "4", "--ac_conv", "relu", "--ac_fc", "relu")
SETTINGS = {
    "ml-100k": {
        ("caser", "teacher"): Setting(100, 25),
        ("caser", "student"): Setting(20, 50),
        ("fossil", "student"): Setting(10, 60, ("--history_alpha", "0.5")),
        ("bpr", "teacher"): Setting(100, 200, ("--learning_rate", "0.001", "--l2", "1e-5")),
    },
    "ml-1m": {
        ("caser", "teacher"): Setting(50, 20, _ML_1M_CASER),
        ("caser", "student"): Setting(10, 40, _ML_1M_CASER),
        ("fossil", "teacher"): Setting(50, 40, (*_ML_1M, "--history_alpha", "0.5")),
        ("fossil", "student"): Setting(10, 40, (*_ML_1M, "--history_alpha", "0.5")),
        ("bpr", "teacher"): Setting(100, 40, ("--learning_rate", "0.001", "--l2", "1e-5")),
    },
    "gowalla-tail": {
        ("bpr", "teacher"): Setting(200, 200, ("--learning_rate", "0.001", "--l2", "1e-6"))
    },
}
# Learning rate and L2 that were chosen for the student alone.
_AS_PLAIN = ("--learning_rate", "0.001", "--l2", "1e-6")
_TUNED = ("--learning_rate", "0.01", "--l2", "1e-4")
_TUNED_SMALL = ("--learning_rate", "0.01", "--l2", "1e-5")
# Row.chosen -> the flags that it has beside its Setting's: on any data set (what ml-100k chose by
# the plain student's learning rate and L2: the defaults of --teach_alpha as well), and on some.
CHOSEN = {
    f"{prefix}-{name}": flags
    for prefix, *_ in LATER_STUDENTS.values()
    for name, flags in (
        ("s-tuned", _TUNED),
        ("rd-tuned", ("--teach_alpha", "1")),
        ("rd-paper-tuned", ("--teach_alpha", "1")),
        ("rrd", ("--teach_alpha", "0.03")),
        ("listwise", ("--teach_alpha", "3")),
        ("cd", ("--teach_alpha", "1")),
    )
}
CHOSEN_ON = {  # data set -> the same
    "ml-100k": {
        "caser-rd-tuned": ("--teach_alpha", "3", *_TUNED),
        "caser-rd-paper-tuned": ("--teach_alpha", "0.3", *_TUNED),
        "caser-rrd": ("--teach_alpha", "0.003", *_TUNED),
        "caser-listwise": ("--teach_alpha", "1", *_TUNED),
        "caser-cd": ("--teach_alpha", "0.3"),
    },
    "ml-1m": {"caser-s-tuned": _AS_PLAIN},
    "gowalla-tail": {
        "caser-s-tuned": _AS_PLAIN,
        "caser-rd-tuned": ("--teach_alpha", "3"),
        "caser-rd-paper-tuned": ("--teach_alpha", "0.3"),
        "caser-rrd": ("--teach_alpha", "0.01"),
        "caser-listwise": ("--teach_alpha", "0.03"),
        "caser-cd": ("--teach_alpha", "0.3"),
        "caser-small-s-tuned": _TUNED_SMALL,
        "caser-small-rd-tuned": ("--teach_alpha", "3", *_TUNED_SMALL),
        "caser-small-rd-paper-tuned": ("--teach_alpha", "0.3", *_TUNED_SMALL),
        "caser-small-rrd": ("--teach_alpha", "0.1"),
        "caser-small-listwise": ("--teach_alpha", "0.001", *_TUNED_SMALL),
        "fossil-s-tuned": ("--learning_rate", "0.001", "--l2", "1e-4"),
        "fossil-rd-tuned": ("--teach_alpha", "10"),
        "fossil-rd-paper-tuned": ("--teach_alpha", "3"),
        "fossil-rrd": ("--teach_alpha", "3"),
        "fossil-listwise": ("--teach_alpha", "0.1", "--l2", "1e-4"),
        "fossil-cd": ("--teach_alpha", "0.3"),
    },
}
# How flags were chosen: of each the values that were tried on the validation split with the first
# seed, the other flags as chosen. row -> {flag: values}, or {"flag,flag": tuples of their values}
GRIDS = {
    "fossil-t": {"history_alpha": (0, 0.2, 0.5, 0.8, 1)},
    "fossil-s": {"history_alpha": (0, 0.2, 0.5, 0.8, 1)},
    "bpr": {
        "d": (50, 100, 200),
        "learning_rate": (3e-4, 1e-3, 3e-3),
        "l2": (1e-7, 1e-6, 1e-5, 1e-4),
    },
}
_PLAIN = (1e-3, 1e-6)  # the plain student's learning rate and L2
_TUNED_OF = {"caser": (1e-2, 1e-4), "caser-small": (1e-2, 1e-5), "fossil": (1e-3, 1e-4)}  # S, tuned
_FACTORS = {
    "rd-tuned": (0.1, 0.3, 1, 3, 10, 30),
    "rd-paper-tuned": (0.1, 0.3, 1, 3, 10),
    "rrd": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    "listwise": (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10),
    "cd": (0.01, 0.03, 0.1, 0.3, 1, 3),
}
for prefix, tuned in _TUNED_OF.items():
    GRIDS[f"{prefix}-s-tuned"] = {
        "learning_rate": (3e-4, 1e-3, 3e-3, 1e-2, 3e-2),
        "l2": (1e-7, 1e-6, 1e-5, 1e-4, 1e-3),
    }
    for name, factors in _FACTORS.items():
        grid = {"teach_alpha": factors, "learning_rate,l2": (_PLAIN, tuned)}
        if prefix == "caser":  # whose choices by the plain two are the defaults of --teach_alpha
            grid["teach_alpha,learning_rate,l2"] = [(factor, *_PLAIN) for factor in factors]
        GRIDS[f"{prefix}-{name}"] = grid


def setting_of(data_set, row):
    """The Setting of a row that trains a network."""
    key = row.network.name, row.size
    setting = SETTINGS.get(data_set, {}).get(key) or DEFAULTS[key]
    chosen = CHOSEN_ON.get(data_set, {}).get(row.chosen) or CHOSEN.get(row.chosen, ())
    return replace(setting, flags=setting.flags + chosen)


def teacher_of(row):
    """The row whose runs teach ``row``."""
    return with_flags(ROWS[row.teacher], *row.teacher_flags)


def with_flags(row, *flags):
    """``row`` with more flags, and a name that tells them."""
    told = (f"{flag.lstrip('-')}={value}" for flag, value in flag_pairs(flags))
    return replace(row, name="-".join((row.name, *told)), flags=row.flags + flags)
