"""Tables written as TSV, CSV, JSON lines or Parquet: to a file, which appears whole, or on standard
output."""

import contextlib
import csv
import json
import sys
from pathlib import Path

from utils import UserError, atomic_write

ENDINGS = (".tsv", ".csv", ".jsonl", ".parquet")


def check_output(path):
    """UserError where there is no format for the ending of ``path``."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise UserError(f"--output {path}: end it in one of {', '.join(ENDINGS)}")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(f"--output {path}: needs pyarrow; pip install pyarrow") from None


@contextlib.contextmanager
def open_output(path):
    """Give a function that writes DataFrames of the same columns, one behind the other: to the
    file ``path`` in the format of its ending, or as TSV to standard output where it is None."""
    ending = Path(path).suffix.lower() if path else ".tsv"
    if not path:
        with contextlib.suppress(AttributeError):  # a stand-in
            sys.stdout.reconfigure(encoding="utf-8")  # as files are, in any locale
    mode = "wb" if ending == ".parquet" else "w"
    whole = atomic_write(path, mode) if path else contextlib.nullcontext(sys.stdout)
    with whole as file, contextlib.ExitStack() as stack:
        if ending == ".parquet":
            yield _parquet_writer(file, stack)
        elif ending == ".jsonl":
            yield lambda table: file.writelines(
                json.dumps(row) + "\n" for row in table.to_dict("records")
            )
        else:
            yield _csv_writer(file, ending)


def _csv_writer(file, ending):
    # Between tabs ids stand as they are: none holds white space.
    form = {"sep": "\t", "quoting": csv.QUOTE_NONE} if ending == ".tsv" else {}
    headers = iter([True])

    def write(table):
        header = next(headers, False)
        table.to_csv(file, index=False, header=header, lineterminator="\n", **form)

    return write


def _parquet_writer(file, stack):
    import pyarrow
    import pyarrow.parquet

    kinds = {"rank": pyarrow.int32(), "score": pyarrow.float32()}
    writers = []

    def write(table):
        schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in table])
        if not writers:
            writers.append(stack.enter_context(pyarrow.parquet.ParquetWriter(file, schema)))
        writers[0].write_table(pyarrow.Table.from_pandas(table, schema, preserve_index=False))

    return write
