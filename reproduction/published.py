"""The numbers behind the documents: the tables of reproduction/*.csv, what the finished runs of a
study add to them, and how a user's own stand beside them."""

import functools
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

from evaluation import KS, evaluate_ranking
from reproduction.popularity import by_popularity
from reproduction.rows import COMPARISONS, DATA_SETS, LATER, ROWS, TABLES
from support.list_cache import making_seconds
from support.run import changed_files, version_words
from utils import UserError, atomic_write

FOLDER = Path(__file__).parent
PRINTED = ("reproduction/*.csv", "README.md", "RESULTS.md", "docs")  # that are made from numbers
EVERY_METRIC = [
    f"{name}@{k}" for name in ("precision", "recall", "ndcg_paper", "ndcg") for k in KS
] + ["map"]
# table -> (what tells its lines apart, its other columns)
COLUMNS = {
    "results": (["data_set", "split", "row", "seed"],
                ["network", "flags", "teacher", "epochs", *EVERY_METRIC, "seconds",
                 "lists_seconds", "commit", "device", "threads", "versions"]),
    "curves": (["data_set", "row", "seed", "epoch"], ["map", "commit"]),
    "comparisons": (["data_set", "row", "rival"], ["seeds", "users", "better", "worse", "p"]),
    "popularity": (["data_set", "row", "seed"], ["recall_popular", "recall_other", "coverage"]),
    "data_sets": (["data_set"], ["users", "items", "rows"]),
    "times": (["data_set", "row", "device", "at_once"],
              ["seconds", "parameters", "megabytes", "threads", "versions", "commit"]),
}  # fmt: skip
TOLD = ("epochs", "map", "p", "seconds", "commit")  # whose change is shown in full
SUMMARIES = ("mean", "sd")  # what stands for a seed where the seeds' own metrics are not known


@dataclass
class Numbers:
    """A DataFrame of strings per table of COLUMNS, empty where a number is not known."""

    results: pd.DataFrame
    curves: pd.DataFrame
    comparisons: pd.DataFrame
    popularity: pd.DataFrame
    data_sets: pd.DataFrame
    times: pd.DataFrame

    @classmethod
    def of_lines(cls, **lines):
        """The Numbers of lists of {column: value}; a table without a list is empty."""
        frames = {}
        for table, (keys, others) in COLUMNS.items():
            frame = pd.DataFrame(lines.get(table, []), columns=[*keys, *others])
            frames[table] = frame.map(written).astype(str)
        return cls(**frames)

    @classmethod
    def read(cls, folder=FOLDER):
        """The Numbers of a folder's csv files."""
        frames = {}
        for table, (keys, others) in COLUMNS.items():
            path = Path(folder, f"{table}.csv")
            columns = [*keys, *others]
            if path.exists():
                frame = pd.read_csv(path, dtype=str, keep_default_na=False)
                frames[table] = frame.reindex(columns=columns, fill_value="")
            else:
                frames[table] = pd.DataFrame(columns=columns, dtype=str)
        return cls(**frames)

    def write(self, folder=FOLDER, tables=tuple(COLUMNS)):
        """Write tables as FOLDER/TABLE.csv, sorted as the documents are."""
        for table in tables:
            with atomic_write(Path(folder, f"{table}.csv"), "w") as file:
                sorted_lines(getattr(self, table)).to_csv(file, index=False, lineterminator="\n")

    def of(self, table, **wanted):
        """The lines of a table that have the ``wanted`` values."""
        frame = getattr(self, table)
        return frame[
            np.logical_and.reduce([frame[name] == value for name, value in wanted.items()])
        ]

    def merged(self, new):
        """(these Numbers with the lines of ``new`` in the place of those of the same key, a list
        of sentences on what that changed)."""
        frames, said = {}, []
        for table, (keys, others) in COLUMNS.items():
            before, after = (getattr(one, table).set_index(keys) for one in (self, new))
            for key in after.index.intersection(before.index):
                changed = [c for c in others if before.at[key, c] != after.at[key, c]]
                told = [f"{column} {before.at[key, column] or 'none'} -> {after.at[key, column]}"
                        for column in changed if column in TOLD]  # fmt: skip
                told += [f"{len(changed) - len(told)} other columns"] * (len(changed) > len(told))
                if changed:
                    name = " ".join(key) if isinstance(key, tuple) else key
                    said.append(f"{table}: {name}: {', '.join(told)}")
            added = len(after.index.difference(before.index))
            said += [f"{table}: {added} new"] * (added > 0)
            kept = before[~before.index.isin(after.index)]
            frames[table] = pd.concat([kept, after]).reset_index()
        numbers = Numbers(**frames)
        numbers._drop_what_is_outdated(new)
        return numbers, said

    def _drop_what_is_outdated(self, new):
        """Take out the summaries of rows whose seeds are all there in full, and the tests of rows
        that were run anew without their rivals."""
        results = self.results
        rows = results.groupby(["data_set", "split", "row"])
        whole = rows["precision@3"].transform(
            lambda cells: (cells[~results.loc[cells.index, "seed"].isin(SUMMARIES)] != "").all()
        )
        self.results = results[~(whole & results["seed"].isin(SUMMARIES))]
        again = set(zip(new.results["data_set"], new.results["row"], strict=True))
        tested = set(zip(*(new.comparisons[key] for key in COLUMNS["comparisons"][0]), strict=True))
        self.comparisons = self.comparisons[[
            (data_set, row, rival) in tested or not {(data_set, row), (data_set, rival)} & again
            for data_set, row, rival in zip(
                *(self.comparisons[key] for key in COLUMNS["comparisons"][0]), strict=True)
        ]]  # fmt: skip

    def epochs(self, run):
        """How many epochs a published row has; None where it is none."""
        lines = self.of("results", data_set=run.study.dataset, row=run.row.name)
        return int(lines["epochs"].iloc[0]) if len(lines) else None

    def hold(self, run):
        """Whether a Run is published."""
        key = {"data_set": run.study.dataset, "row": run.row.name, "seed": str(run.seed)}
        return bool(len(self.of("results" if run.final else "curves", **key)))


def written(value):
    """A cell of a csv: a float in six digits, nothing for None or NaN."""
    if value is None or value != value:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def sorted_lines(frame):
    """The lines of a table by data set, row, and seed, in the order that these have elsewhere."""
    places = {
        "data_set": DATA_SETS,
        "row": ROWS,
        "rival": ROWS,
        "seed": ["none", "1234", *map(str, range(1, 100)), *SUMMARIES],
    }

    def place(column):
        order = {name: n for n, name in enumerate(places.get(column.name, ()))}
        numbers = pd.to_numeric(column, errors="coerce")
        return column.map(order).fillna(len(order)) if order else numbers.fillna(0)

    keys = [key for key in frame.columns if key in (*places, "epoch", "at_once")]
    return frame.sort_values(keys, key=place, kind="stable")


# ---------------------------------------------------------------------------- of a study


def numbers_of(study, rows, pairs=(), served=()):
    """The Numbers of the finished runs of some rows of a study.

    pairs: (row's name, rival's name), to be compared. served: names of rows of which it is told
    whom they serve. Both evaluate models again.
    """
    runs = [run for row in rows for run in study.finished_runs(row)]
    searches = filter(None, map(study.search, rows))
    compared = (comparison(study, ROWS[row], ROWS[rival]) for row, rival in dict.fromkeys(pairs))
    return Numbers.of_lines(
        results=[result_line(run) for run in runs],
        curves=[
            {"data_set": study.dataset, "row": search.row.name, "seed": search.seed,
             "epoch": record["epoch"], "map": record["map"], "commit": search.commit}
            for search in searches if search.finished()
            for record in search.records() if "map" in record
        ],
        comparisons=list(filter(None, compared)),
        popularity=[popularity_line(run) for run in runs if run.row.name in served],
        data_sets=[{"data_set": study.dataset, **counts(study.data())}],
        times=Numbers.read(study.folder).times.to_dict("records"),
    )  # fmt: skip


def result_line(run):
    """The line of results.csv of a finished Run."""
    identity, records = run.recorded()
    return {
        "data_set": run.study.dataset,
        "split": run.split,
        "network": run.network_name,
        "row": run.row.name,
        "flags": shlex.join(run.model_flags()),
        "teacher": run.teacher.row.name if run.row.distilled else None,
        "seed": run.seed,
        "epochs": run.epochs(),
        **{metric: records[-1][metric] for metric in EVERY_METRIC},
        "seconds": round(sum(record["train_seconds"] for record in records), 1),
        "lists_seconds": next(map(making_seconds, run.folder.glob("*-top=*.npy")), None),
        "commit": identity["commit"],
        "device": identity["device"],
        "threads": identity["threads"],
        "versions": version_words(identity["versions"]),
    }


def counts(data):
    """{"users", "items", "rows"} of the train and test rows of a DataSet together."""
    parts = ("train", "test", "unknown_test_user")
    return {
        "users": data.counts["users"] + data.counts["unknown_test_users"],
        "items": data.counts["items"] + len(data.test.unknown_items),
        "rows": sum(data.counts[f"{part}_rows"] for part in parts),
    }


def popularity_line(run):
    """The line of popularity.csv of a finished Run, from its checkpoint."""
    found = by_popularity(*ranked(run))
    return {"data_set": run.study.dataset, "row": run.row.name, "seed": run.seed, **found}


def ranked(run):
    """(network, train, test) that the ranking of a finished Run is of, from its checkpoint."""
    data = run.study.data(row=run.row)
    return data.network(run.trained())[0], data.train, data.test


@functools.cache  # teacher and student alone are compared with every distilled row
def average_precision(run):
    """(users,) float64: each user's average precision, from the checkpoint of a finished run."""
    return evaluate_ranking(*ranked(run))["map"]


def comparison(study, row, rival):
    """The line of comparisons.csv of two rows, over the seeds that both have; None without one.

    A user's average precision is averaged over the seeds; Wilcoxon's signed-rank test takes the
    trained models as given and the users as drawn at random.
    """
    of_row, of_rival = ({run.seed: run for run in study.finished_runs(r)} for r in (row, rival))
    seeds = [seed for seed in of_row if seed in of_rival]
    if not seeds:
        return None
    first, second = (
        np.mean([average_precision(runs[seed]) for seed in seeds], axis=0)
        for runs in (of_row, of_rival)
    )
    differ = (first != second).any()
    return {
        "data_set": study.dataset,
        "row": row.name,
        "rival": rival.name,
        "seeds": " ".join(map(str, seeds)),
        "users": len(first),
        "better": float((first > second).mean()),
        "worse": float((first < second).mean()),
        "p": float(scipy.stats.wilcoxon(first, second).pvalue) if differ else 1.0,
    }


def publish(study, rows):
    """Add what is finished of some rows of a study to the csv files, and say what that changed."""
    try:
        changed = changed_files(".", *(f":!{path}" for path in PRINTED))
    except (OSError, subprocess.CalledProcessError):
        raise UserError("--publish: this is no git repository, so no commit to name") from None
    if changed:
        raise UserError(
            f"--publish: {', '.join(changed)}: changed; commit first, since published numbers name"
            " the code that made them"
        )
    names = {row.name for row in rows}
    pairs = [pair for pairs in COMPARISONS.values() for pair in pairs if names & {*pair}]
    served = [name for table in LATER for name in TABLES[table]]
    new = numbers_of(study, rows, pairs, served)
    clean = new.results["commit"].str.fullmatch(r"[0-9a-f]{40}(, then [0-9a-f]{40})*")
    for _, line in new.results[~clean].iterrows():
        print(f"not published: {line['row']}, seed {line['seed']}: trained by changed code")
    new.results = new.results[clean]
    numbers, said = Numbers.read().merged(new)
    numbers.write()
    print("\n".join(said) or f"{study.dataset}: nothing new")
