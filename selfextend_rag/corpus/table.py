"""Rows as a table of Parquet."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from selfextend_rag.corpus.rows import CorpusRow

_AS_JSON = ("documents", "value", "plan", "evidence")


def check_parquet() -> None:
    """Look whether tables can be written.

    Raises:
        ImportError: pyarrow is not installed.
    """
    try:
        import pyarrow.parquet  # noqa: F401  is it installed?
    except ImportError as error:
        raise ImportError(
            'tables of Parquet need pyarrow; pip install "selfextend-rag[ray]", or name a file '
            "of JSON lines"
        ) from error


def write_parquet(path: Path, rows: Sequence[CorpusRow]) -> None:
    """Write rows as a table, with what is no text or number in JSON; it appears whole or not.

    Raises:
        ImportError: pyarrow is not installed.
    """
    check_parquet()
    import pyarrow
    import pyarrow.parquet

    written = []
    for row in rows:
        values = asdict(row)
        more = {name: json.dumps(values[name], ensure_ascii=False) for name in _AS_JSON}
        written.append({**values, **more})
    table = pyarrow.Table.from_pylist(written)
    partial = path.with_name(f"{path.name}.partial")
    pyarrow.parquet.write_table(table, partial)
    os.replace(partial, path)
