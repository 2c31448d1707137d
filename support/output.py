"""Rows written as TSV, CSV, JSON lines or Parquet: to a file, which appears whole, or on standard
output.
"""

import contextlib
import csv
import json
import sys
from pathlib import Path

from utils import UserError, atomic_write


class TabSeparated:
    """Writes rows between tabs, as they are: no id holds white space."""

    def __init__(self, file, columns):
        self.file = file
        self.write([columns])

    def write(self, rows):
        self.file.writelines("\t".join(map(str, row)) + "\n" for row in rows)


class CommaSeparated:
    """Writes rows as CSV."""

    def __init__(self, file, columns):
        self.rows = csv.writer(file, lineterminator="\n")
        self.write([columns])

    def write(self, rows):
        self.rows.writerows(rows)


class JsonLines:
    """Writes rows as a JSON object each."""

    def __init__(self, file, columns):
        self.file, self.columns = file, columns

    def write(self, rows):
        for row in rows:
            self.file.write(json.dumps(dict(zip(self.columns, row, strict=True))) + "\n")


class Parquet:
    """Writes rows as Parquet, through pyarrow."""

    def __init__(self, file, columns):
        import pyarrow
        import pyarrow.parquet

        kinds = {"rank": pyarrow.int32(), "score": pyarrow.float32()}
        fields = [(column, kinds.get(column, pyarrow.string())) for column in columns]
        self.schema, self.table = pyarrow.schema(fields), pyarrow.table
        self.file = pyarrow.parquet.ParquetWriter(file, self.schema)

    def write(self, rows):
        if rows:
            columns = list(map(list, zip(*rows, strict=True)))
            self.file.write_table(self.table(columns, schema=self.schema))

    def close(self):
        self.file.close()


FORMATS = {".tsv": TabSeparated, ".csv": CommaSeparated, ".jsonl": JsonLines, ".parquet": Parquet}


@contextlib.contextmanager
def open_output(path, columns):
    """Something to ``write`` rows to: the file ``path`` in the format of its ending, which appears
    whole or not at all; standard output, as TSV, where ``path`` is None."""
    ending = Path(path).suffix.lower() if path else ".tsv"
    if not path:
        with contextlib.suppress(AttributeError):  # a stand-in
            sys.stdout.reconfigure(encoding="utf-8")  # as files are, in any locale
    binary = ending == ".parquet"
    whole = atomic_write(path, "wb" if binary else "w") if path else contextlib.nullcontext()
    with whole as file:
        output = FORMATS[ending](file or sys.stdout, columns)
        with contextlib.closing(output) if binary else contextlib.nullcontext():
            yield output


def check_output(path):
    """UserError where there is no format for the ending of ``path``."""
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise UserError(f"--output {path}: end it in one of {', '.join(FORMATS)}")
    if ending == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            raise UserError(f"--output {path}: needs pyarrow; pip install pyarrow") from None
