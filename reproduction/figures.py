"""The paper's figures: lines against one quantity, as a PNG and as the CSV behind it."""

import csv
import io
import json

from reproduction.cells import by_seed, mean_and_deviation
from reproduction.grids import varied
from reproduction.rows import LATER, ROWS, TABLES
from utils import UserError, atomic_write, require_writable

MARKERS = "os^Dv<>ph*"
DENSE = 30  # points of a line, above which markers would hide it
LONG = 30  # letters of a line's name, from which three do not fit side by side


def points_csv(points, label, quantities):
    """The text of the csv file behind a figure; the arguments are those of ``draw``."""
    file = io.StringIO()
    rows = ([line, x, *(y.get(name, "") for name in quantities)] for line, x, y in points)
    csv.writer(file, lineterminator="\n").writerows([["line", label, *quantities], *rows])
    return printable(file.getvalue())


def draw(points, path, label, quantities, title):
    """Write ``points`` as path.csv and path.png, a panel for each of the quantities.

    points: list of (line, x, {quantity: y}); a quantity may be missing. label: what x is. Raises
    UserError where matplotlib is missing.
    """
    figure = new_figure(figsize=(6 * len(quantities), 4))
    points, title = [(printable(line), x, y) for line, x, y in points], printable(title)
    for suffix in (".csv", ".png"):
        require_writable(path.with_suffix(suffix))
    with atomic_write(path.with_suffix(".csv"), "w") as file:
        file.write(points_csv(points, label, quantities))
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
    columns = 3 if max(map(len, drawn), default=0) < LONG else 2
    figure.legend(drawn.values(), map(literal, drawn), loc="outside lower center", ncols=columns)
    save(figure, path)


def new_figure(**options):
    """An empty matplotlib Figure; UserError where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("figures need matplotlib: pip install -r requirements-dev.txt") from None
    return Figure(layout="constrained", **options)


def save(figure, path):
    """Write a figure as path.png."""
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
} | {table: (None, (), TABLES[table], "epoch") for table in LATER}


def figure_rows(data_set, name):
    """The rows whose runs a figure needs."""
    flag, values, names, _ = FIGURES[name]
    rows = [ROWS[n] for n in names]
    if not flag:
        return rows
    return [point_row(data_set, row, flag, value) for value in values for row in rows]


def point_row(data_set, row, flag, value):
    """The row behind a point of a figure: the teacher keeps its d."""
    return row if flag == "d" and row.size == "teacher" else varied(data_set, row, flag, value)


def figure_maps(numbers, data_set, name):
    """{row's name: a Series of MAP by seed} of a figure's finished rows, over the seeds that all of
    these have."""
    lines = (
        (row.name, numbers.of("results", data_set=data_set, split="test", row=row.name))
        for row in figure_rows(data_set, name)
    )
    maps = {row: by_seed(of_row) for row, of_row in lines if len(of_row)}
    common = set.intersection(*(set(of_row.index) for of_row in maps.values())) if maps else set()
    return {row: of_row[of_row.index.isin(common)] for row, of_row in maps.items()}


def figure_points(numbers, data_set, name):
    """The points, for ``draw``, of a figure's finished runs."""
    flag, values, names, _ = FIGURES[name]
    maps = figure_maps(numbers, data_set, name)
    for row in (ROWS[n] for n in names):
        if not flag:  # the searches on the validation split have the whole curve
            curves = numbers.of("curves", data_set=data_set)
            curve = curves[curves["row"] == row.name]
            points = dict(zip(curve["epoch"].astype(int), curve["map"].astype(float), strict=True))
            if name in LATER and row.size == "teacher" and points:  # its level, as a line
                epochs = curves[curves["row"].isin(names)]["epoch"].astype(int)
                points = dict.fromkeys((epochs.min(), epochs.max()), max(points.values()))
            yield from ((row.title, int(x), {"MAP": y}) for x, y in points.items())
        for value in values:
            seeds = maps.get(point_row(data_set, row, flag, value).name, ())
            if len(seeds):
                x = value / (1 + value) if name == "balance" else value
                yield row.title, round(x, 4), {"MAP": round(float(seeds.mean()), 6)}


def figures_of(numbers, data_set):
    """The names of the figures of which every line, and of a flag's every point, is there; of later
    losses one beside the teacher and the student alone is enough."""
    names = []
    for name, (_, values, rows, _) in FIGURES.items():
        places = {(line, x) for line, x, _ in figure_points(numbers, data_set, name)}
        lines = {line for line, _ in places}
        wanted = 3 if name in LATER else len(rows)
        if len(lines) >= wanted and len(places) >= wanted * max(len(values), 2):
            names.append(name)
    return names


def figure_title(numbers, data_set, name):
    """What stands above a figure: data, split, and how many seeds."""
    source = "validation split, 1 seed"
    if FIGURES[name][0]:
        seeds = max(map(len, figure_maps(numbers, data_set, name).values()))
        source = f"test split, {f'mean of {seeds} seeds' if seeds > 1 else '1 seed'}"
    return f"MAP against {FIGURES[name][3]}\n{data_set}, {source}"


def draw_figure(numbers, data_set, name, path):
    """Draw a figure from those of its runs that are finished; UserError where none is."""
    points = list(figure_points(numbers, data_set, name))
    if not points:
        raise UserError(f"--figure {name}: none of its runs is finished")
    draw(points, path, FIGURES[name][3], ["MAP"], figure_title(numbers, data_set, name))


# ---------------------------------------------------------------------------- the main result

HEADLINE = {  # what dots stand for -> their rows, and colour
    "teacher": (("caser-t", "fossil-t"), "C7"),
    "student alone": (("caser-s", "fossil-s"), "C0"),
    "distilled": (("caser-rd", "fossil-rd"), "C3"),
    "distilled, the\npaper's formulas": (("rd-paper", "fossil-rd-paper"), "C1"),
}
NETWORKS = {"Caser": "o", "Fossil": "D"}  # marker


def headline_points(numbers):
    """(row's title, data set, {"MAP": mean, "sd": standard deviation}) of the main result."""
    for data_set in dict.fromkeys(numbers.results["data_set"]):
        for row in (ROWS[name] for names, _ in HEADLINE.values() for name in names):
            lines = numbers.of("results", data_set=data_set, row=row.name, split="test")
            if len(lines):
                mean, deviation, _ = mean_and_deviation(lines, "map")
                y = {"MAP": round(float(mean), 6), "sd": round(float(deviation), 6)}
                yield row.title, data_set, y


def draw_headline(numbers, path):
    """Draw the main result: a dot a model with the deviation over its seeds, a panel a data set;
    in letters that can be read on a phone."""
    points = {(title, data_set): y for title, data_set, y in headline_points(numbers)}
    data_sets = list(dict.fromkeys(data_set for _, data_set in points))
    figure = new_figure(figsize=(2.6 * len(data_sets), 3.8))
    from matplotlib.lines import Line2D  # slow to import, and not everybody's

    panels = figure.subplots(1, len(data_sets), sharey=True, squeeze=False)[0]
    shown = {}
    for axes, data_set in zip(panels, data_sets, strict=True):
        for place, (names, colour) in enumerate(HEADLINE.values()):
            for row, up in zip((ROWS[name] for name in names), (0.14, -0.14), strict=True):
                if y := points.get((row.title, data_set)):
                    network = row.network.__name__
                    marker = NETWORKS[network]
                    axes.errorbar(y["MAP"], place - up, xerr=y["sd"], fmt=marker, color=colour,
                                  markersize=10, capsize=6, linewidth=2.5)  # fmt: skip
                    shown[network] = Line2D([], [], ls="", color="k", marker=marker)
        axes.set_title(data_set, fontsize=17)
        axes.set_yticks(range(len(HEADLINE)), HEADLINE, fontsize=16)
        axes.set_ylim(len(HEADLINE) - 0.5, -0.5)
        axes.margins(x=0.15)
        axes.locator_params(axis="x", nbins=3, min_n_ticks=2)
        axes.tick_params(axis="x", labelsize=14)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:.3f}".lstrip("0"))
        axes.grid(axis="x", alpha=0.3)
    figure.supxlabel("MAP, mean ± sd of the seeds (scales differ)", fontsize=15)
    figure.legend(shown.values(), shown, loc="outside upper center", ncols=2, fontsize=15,
                  markerscale=1.6, frameon=False)  # fmt: skip
    save(figure, path)
