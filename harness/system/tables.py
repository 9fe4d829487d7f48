"""Tables of numbers as files, the one place that writes them: CSV, and Parquet where pyarrow is installed."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from harness.system.errors import UsageError

TableForm = Literal["csv", "parquet"]


def form_of(path: Path) -> TableForm:
    """A table's form by the ending of its file's name; everything but ``.parquet`` is CSV."""
    return "parquet" if path.suffix == ".parquet" else "csv"


def require_form(form: str) -> None:
    """Raises UsageError where pyarrow is needed and not installed."""
    if form == "parquet" and find_spec("pyarrow") is None:
        raise UsageError("Parquet needs pyarrow: pip install 'sam-peft-harness[parquet]', or take CSV")


def table_bytes(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, form: TableForm = "csv") -> bytes:
    """The content of a file with one table.

    Args:
        rows: by column; what is missing is empty. A column of Parquet has one type, and None is null there.
        columns: in their order.
    """
    if form == "csv":
        out = io.StringIO()
        writer = csv.DictWriter(out, columns, lineterminator="\n", restval="")
        writer.writeheader()
        writer.writerows(rows)
        return out.getvalue().encode(errors="replace")
    import pyarrow
    from pyarrow import parquet

    kept = list(rows)
    table = pyarrow.table({name: [row.get(name) for row in kept] for name in columns})
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()
