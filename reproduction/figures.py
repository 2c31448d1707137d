"""The paper's figures: lines against one quantity, as a PNG and as the CSV behind it."""

import csv
import json
import statistics
from dataclasses import replace

from reproduction.rows import ROWS, with_flags
from reproduction.runs import parsed
from utils import UserError, atomic_write, require_writable

MARKERS = "os^Dv<>ph*"
DENSE = 30  # points of a line, above which markers would hide it


def draw(points, path, label, quantities, title):
    """Write ``points`` as path.csv and path.png, a panel for each of the quantities.

    points: list of (line, x, {quantity: y}); a quantity may be missing. label: what x is. Raises
    UserError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install -r requirements-dev.txt") from None
    points, title = [(printable(line), x, y) for line, x, y in points], printable(title)
    for suffix in (".csv", ".png"):
        require_writable(path.with_suffix(suffix))
    with atomic_write(path.with_suffix(".csv"), "w") as file:
        rows = ([line, x, *(y.get(name, "") for name in quantities)] for line, x, y in points)
        csv.writer(file, lineterminator="\n").writerows([["line", label, *quantities], *rows])
    figure = Figure(figsize=(6 * len(quantities), 4), layout="constrained")
    figure.suptitle(literal(title))
    drawn = {}
    for axes, name in zip(figure.subplots(1, len(quantities), squeeze=False)[0], quantities,
                          strict=True):  # fmt: skip
        for number, wanted in enumerate(dict.fromkeys(line for line, _, _ in points)):
            xy = [(x, y[name]) for line, x, y in points if line == wanted and name in y]
            if xy:
                marker = MARKERS[number % len(MARKERS)] if len(xy) < DENSE else None
                drawn[wanted] = axes.plot(*zip(*xy, strict=True), f"C{number}", marker=marker)[0]
        axes.set(xlabel=label, ylabel=name)
        axes.grid(alpha=0.3)
        if all(isinstance(x, int) for _, x, _ in points):
            axes.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(drawn.values(), map(literal, drawn), loc="outside lower center", ncols=3)
    with atomic_write(path.with_suffix(".png")) as file:
        figure.savefig(file, dpi=150, format="png")
    print(f"drew {path.with_suffix('.png')}")


def literal(text):
    """``text`` so that matplotlib, which knows formulas, shows it unchanged."""
    return text.replace("$", r"\$")


def printable(text):
    """``text`` without what no file holds: the parts of a file's name that are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


def points_of_runs(paths):
    """The loss and MAP after each epoch, as points for ``draw``, of the records that training
    scripts write. UserError, naming file and line, where a file holds none."""
    stems = [path.name.removesuffix(".jsonl") for path in paths]
    names = stems if len(set(stems)) == len(stems) else map(str, paths)
    points = []
    for path, name in zip(paths, names, strict=True):
        before = len(points)
        try:
            lines = path.read_text("utf-8").splitlines()
        except UnicodeDecodeError:
            raise UserError(f"{path}: no records of a run; name the .jsonl file") from None
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if "epoch" in record:
                    y = {"loss": float(record["loss"])}
                    if "map" in record:
                        y["MAP"] = float(record["map"])
                    if not 0 <= record["epoch"] < 1e9:
                        raise ValueError
                    points.append((name, int(record["epoch"]), y))
            except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
                raise UserError(f"{path}, line {number}: no record of a training run") from None
        if len(points) == before:
            raise UserError(f"{path}: no epoch in it yet")
    return points


def varied(study, row, flag, value):
    """``row`` with one flag changed: d for a student only, the share of instances for its teacher
    as well; the row itself where that is its value anyway."""
    if flag == "d" and row.size == "teacher":
        return row
    flags = ("--d", str(study.settings[row.size][0]), *study.settings["flags"], *row.flags)
    if getattr(parsed(row.network, flags), flag) == value:
        return row
    flags = (f"--{flag}", str(value))
    teacher_flags = flags if flag == "train_fraction" and row.distilled else ()
    return replace(with_flags(row, *flags), teacher_flags=teacher_flags)


TRIO = ("caser-t", "caser-s", "caser-rd")
# figure -> (flag, its values, the rows it is drawn for, the axis' label)
FIGURES = {
    "d": ("d", (10, 20, 50, 100), TRIO, "dimension d of the student (the teacher has its own)"),
    "epochs": (None, (), TRIO, "epoch"),
    "balance": (
        "teach_alpha",
        (0.1, 0.25, 0.5, 1, 2, 4, 9),
        ("caser-rd",),
        "balance a, the share of L^D",
    ),
    "K": ("K", (1, 5, 10, 20, 50), ("caser-rd",), "length K of the teacher's list"),
    "instances": ("train_fraction", (0.2, 0.4, 0.6, 0.8, 1.0), TRIO, "share of training instances"),
}


def figure_rows(study, name):
    """The rows whose runs a figure needs."""
    flag, values, names, _ = FIGURES[name]
    rows = [ROWS[n] for n in names]
    return [varied(study, row, flag, value) for value in values for row in rows] if flag else rows


def figure_points(study, name):
    """The points, for ``draw``, of a figure's finished runs."""
    flag, values, names, _ = FIGURES[name]
    for row in (ROWS[n] for n in names):
        if not flag:  # the searches on the validation split have the whole curve
            search = study.search(row)
            for record in search.records() if search.finished() else ():
                if "map" in record:
                    yield row.title, record["epoch"], {"MAP": record["map"]}
        for value in values:
            runs = study.finished_runs(varied(study, row, flag, value))
            if runs:
                x = value / (1 + value) if name == "balance" else value
                yield row.title, x, {"MAP": statistics.mean(r.result()["map"] for r in runs)}


def draw_figure(study, name):
    """Draw a figure from those of its runs that are finished; UserError where none is."""
    points = list(figure_points(study, name))
    if not points:
        raise UserError(f"--figure {name}: none of its runs is finished")
    if name == "epochs":
        source = "validation split, 1 seed"
    else:
        seeds = {len(study.finished_runs(row)) for row in figure_rows(study, name)} - {0}
        most = f" to {max(seeds)}" if len(seeds) > 1 else ""
        source = f"test split, mean of {min(seeds)}{most} seed(s)"
    label = FIGURES[name][3]
    title = f"MAP against {label}\n{study.dataset}, {source}"
    draw(points, study.folder / "figures" / name, label, ["MAP"], title)
