"""The paper's tables and figures, each by one command.

    python reproduce_tables.py                          Table 2's first rows on ml-100k, one seed
    python reproduce_tables.py --table 4 --seeds 3 --dataset gowalla-tail --jobs 2
    python reproduce_tables.py --figure d
    python reproduce_tables.py --grid bpr               the searches behind a row's settings
    python reproduce_tables.py --report                 Markdown from the runs that are finished
    python reproduce_tables.py --plot checkpoints/*.jsonl

What the tables hold is in reproduction/rows.py, the runs behind them in reproduction/runs.py, the
published numbers in reproduction/*.csv.
"""

import shlex
from pathlib import Path

from reproduction.documents import write_documents
from reproduction.execution import execute_all, in_order
from reproduction.figures import FIGURES, draw, draw_figure, figure_rows, points_of_runs
from reproduction.grids import grid_rows, table_of_grids
from reproduction.published import numbers_of, publish
from reproduction.report import TITLES, report, rivals_of
from reproduction.rows import COMPARISONS, GRIDS, LATER, ROWS, TABLES
from reproduction.runs import Study
from reproduction.timing import measure
from support.torchrun import refuse_several
from utils import Parser, UserError, numeric_flag, path_flag, run_command

DESCRIPTION = "The paper's tables and figures, each by one command."


def get_args_parser():
    parser = Parser(description=DESCRIPTION)
    path_flag(parser, "--dataset", "the data set, prepared: datasets/NAME", "ml-100k", "NAME")
    parser.add_argument(
        "--table", choices=[*TABLES, "all"], help="run and print a table (default: first)"
    )
    parser.add_argument("--row", choices=ROWS, help="run one row of a table")
    parser.add_argument("--figure", choices=[*FIGURES, "all"], help="run and draw a figure")
    parser.add_argument("--grid", choices=[*GRIDS, "all"],
                        help="search the flags of a row on the validation split")  # fmt: skip
    numeric_flag(parser, "--seeds", 1, int, "[1, 100]", "how many seeds: 1234, then 1, 2, ...")
    numeric_flag(parser, "--eval_every", 5, int, "[1, 1e9]", "epochs between the search's looks")
    numeric_flag(parser, "--jobs", 1, int, "[1, 1000]",
                 "runs at once, each with its share of the threads or its GPU")  # fmt: skip
    parser.add_argument("--again", action="store_true",
                        help="do anew what another commit has done")  # fmt: skip
    parser.add_argument("--missing", action="store_true",
                        help="run only what the published numbers lack")  # fmt: skip
    instead = parser.add_mutually_exclusive_group()  # of running
    instead.add_argument(
        "--plot",
        nargs="+",
        type=Path,
        metavar="FILE.jsonl",
        help="draw loss and MAP against epochs from the records of runs",
    )
    instead.add_argument("--list", action="store_true", help="list tables, rows and figures")
    instead.add_argument("--dry_run", action="store_true", help="print the commands, run nothing")
    instead.add_argument("--report", action="store_true",
                         help="print the finished results, run nothing")  # fmt: skip
    instead.add_argument(
        "--publish",
        action="store_true",
        help="add the data set's finished runs to reproduction/*.csv; --row: its and its grid's",
    )
    instead.add_argument("--documents", action="store_true",
                         help="print RESULTS.md, README's numbers, docs/ from them")  # fmt: skip
    path_flag(parser, "--results_dir", "where runs and figures go", "results", "DIR")
    return parser


def names_meant(name, known):
    """The names out of ``known`` that a flag's value means: one, "all", or none for None."""
    if name == "all":
        return list(known)
    return [name] if name else []


def print_list():
    """What --list prints."""
    for number, names in TABLES.items():
        print(f"--table {number}: {', '.join(names) or 'statistics of the data set'}")
    for row in ROWS.values():
        print(f"--row {row.name}: {row.title}, by {shlex.join([row.script, *row.flags])}")
    for name, (flag, values, _, label) in FIGURES.items():
        points = f", by --{flag} {', '.join(map(str, values))}" if flag else ""
        print(f"--figure {name}: MAP against {label}{points}")


def print_tables(study, tables, rows, grids):
    """Print the tables, the single rows and the grids from the runs that are finished."""
    pairs = [pair for number in tables for pair in COMPARISONS.get(number, ())] + rivals_of(rows)
    names = [name for number in tables for name in TABLES[number]] + rows
    names = dict.fromkeys(names + [name for pair in pairs for name in pair])
    searched = [row for name in grids for row in grid_rows(study.dataset, name)]
    served = [name for number in tables if number in LATER for name in TABLES[number]]
    numbers = numbers_of(study, [*(ROWS[name] for name in names), *searched], pairs, served)
    for number in tables:
        print("\n".join(report(numbers, study.published, study.dataset, number)))
    for name in rows:
        print("\n".join(report(numbers, study.published, study.dataset, None, [name])))
    if lines := table_of_grids(numbers, study.dataset, grids):
        print("\n".join([f"### {study.dataset}: {TITLES['grids']}", "", *lines]))


def draw_figures(study, figures):
    """Draw the figures from the runs that are finished; UserError names those without one."""
    undrawn = []
    for name in figures:
        numbers = numbers_of(study, figure_rows(study.dataset, name))
        try:
            draw_figure(numbers, study.dataset, name, study.folder / "figures" / name)
        except UserError as error:  # what the others show is not to be lost with it
            undrawn.append(str(error))
    if undrawn:
        raise UserError("; ".join(undrawn))


def main(argv=None):
    args = get_args_parser().parse_args(argv)
    refuse_several()
    if args.list:
        print_list()
        return 0
    if args.plot:
        path = Path(args.results_dir, "plot")
        draw(points_of_runs(args.plot), path, "epoch", ["loss", "MAP"], "Training runs")
        return 0
    if args.documents:
        write_documents()
        return 0
    study = Study(args, look=args.report or args.dry_run or args.publish)
    if not study.has_data and not args.dry_run:
        raise UserError(f"datasets/{args.dataset}: not there, so no result is of it; see --dry_run")
    if args.publish:
        names = names_meant(args.row or "all", ROWS)
        rows = [ROWS[name] for name in names]
        rows += [row for name in names if name in GRIDS for row in grid_rows(args.dataset, name)]
        if not args.row:
            rows += [row for name in FIGURES for row in figure_rows(args.dataset, name)]
        publish(study, {row.name: row for row in rows}.values())
        return 0
    asked = args.table or args.row or args.figure or args.grid
    everything = args.report and not asked
    known = [name for name in TABLES if name != "first"]  # which is a part of another
    tables = names_meant("all" if everything else args.table, known)
    figures = names_meant(args.figure, FIGURES)
    grids = names_meant("all" if everything else args.grid, GRIDS)
    rows = [args.row] if args.row else []
    if not asked and not everything:
        tables = ["first"]
    wanted = [ROWS[name] for number in tables for name in TABLES[number]]
    wanted = [ROWS[name] for name in rows] + wanted
    wanted += [row for name in figures for row in figure_rows(args.dataset, name)]
    runs = [run for row in wanted for run in study.runs(row)]
    runs += study.unpublished(
        study.search(row) for name in grids for row in grid_rows(args.dataset, name)
    )
    if args.dry_run:
        for run in in_order(runs):
            state = "  # finished" if run.finished() else ""
            print(f"python {shlex.join(run.command())}{state}")
        return 0
    if not args.report:
        execute_all(runs, args.jobs)
        if "3" in tables:
            study.keep_times(measure(study, TABLES["3"]))
    print_tables(study, tables, rows, grids)
    draw_figures(study, figures)
    return 0


if __name__ == "__main__":
    run_command(main)
