"""Draw lines against one quantity, as a PNG and as the CSV behind it (for reproduce_tables.py)."""

import csv
import json

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
