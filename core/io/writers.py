"""Tables and arrays that are written as they come: CSV, JSON lines and Parquet, .npy and .npz."""

import csv
import json
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from core.errors import InputError, listed, printable

__all__ = ["ARRAYS", "TABLES", "ArrayWriter", "Row", "TableWriter", "check_ending", "open_array", "open_table"]

Row = Mapping[str, Any]
"""Values by the name of their column: numbers, texts, or None."""

TABLES = (".csv", ".jsonl", ".parquet")
"""Endings of the tables that can be written."""

ARRAYS = (".npy", ".npz", ".parquet")
"""Endings of the files of arrays that can be written."""

_ROW_GROUP = 4_096
"""Number of rows that Parquet stores together, which are held until then."""


def check_ending(path: Path, endings: Sequence[str], option: str) -> None:
    """Check that a file of this name can be written, before anything is computed for it.

    Args:
        path: the file.
        endings: endings that are possible, in lower case.
        option: option with which the user named the file.

    Raises:
        InputError: if the ending is unknown, the path is a folder, or the package that writes the format is missing.
    """
    suffix = path.suffix.lower()
    if suffix not in endings:
        found = f"the ending {suffix!r}" if suffix else "no ending"
        raise InputError(f"{option} {path} has {found}; expected a file ending in {listed(endings)}")
    if path.is_dir():
        raise InputError(f"{option} {path} is a folder; name a file in it, such as {path / ('predictions' + suffix)}")
    if suffix == ".parquet" and find_spec("pyarrow") is None:
        raise InputError(
            f"{option} {path} needs pyarrow; type: pip install pyarrow, or in LarKit's folder: "
            "pip install -e '.[parquet]'"
        )


# Tables


class TableWriter(Protocol):
    """A table that is being written."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows; a column that a row lacks stays empty."""
        ...

    def close(self) -> None:
        """Write what is left, and close the file."""
        ...


def open_table(path: Path, ending: str, example: Row) -> TableWriter:
    """Open a table for writing.

    Args:
        path: file to write, whatever its own ending is.
        ending: one of :data:`TABLES`.
        example: a row with all columns. Its values decide the types of a Parquet file; None stands for a text.
    """
    if ending == ".csv":
        return _CsvWriter(path, list(example))
    if ending == ".jsonl":
        return _JsonLinesWriter(path, list(example))
    return _ParquetWriter(path, {name: _parquet_type(value) for name, value in example.items()})


class _CsvWriter:
    """Writes CSV with a header; None is an empty cell."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.file = path.open("w", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, [printable(name) for name in columns])
        self.writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        self.writer.writerows(_plain(row) for row in rows)

    def close(self) -> None:
        self.file.close()


class _JsonLinesWriter:
    """Writes a JSON object a line, with all columns in each."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.file = path.open("w", encoding="utf-8")
        self.columns = columns

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            full = _plain({name: row.get(name) for name in self.columns})
            self.file.write(json.dumps(full, ensure_ascii=False, default=str) + "\n")

    def close(self) -> None:
        self.file.close()


class _ParquetWriter:
    """Writes Parquet in groups of rows with pyarrow; pandas would hold the whole table."""

    def __init__(self, path: Path, types: Mapping[str, Any]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        self.schema = pa.schema([(printable(name), kind) for name, kind in types.items()])
        self.writer = parquet.ParquetWriter(path, self.schema)
        self.waiting: list[Row] = []

    def write(self, rows: Sequence[Row]) -> None:
        self.waiting += [_plain(row) for row in rows]
        if len(self.waiting) >= _ROW_GROUP:
            self._flush()

    def close(self) -> None:
        self._flush()
        self.writer.close()

    def _flush(self) -> None:
        import pyarrow as pa

        if self.waiting:
            self.writer.write_table(pa.Table.from_pylist(self.waiting, schema=self.schema))
        self.waiting = []


def _parquet_type(value: Any) -> Any:
    """Return pyarrow's type for the values of a column."""
    import pyarrow as pa

    if isinstance(value, np.ndarray):
        return pa.list_(pa.float32(), len(value))
    if isinstance(value, bool):
        return pa.bool_()
    if isinstance(value, int):
        return pa.int64()
    return pa.float64() if isinstance(value, float) else pa.string()


def _plain(row: Row) -> dict[str, Any]:
    """Return a row whose texts can be written as UTF-8."""
    return {printable(name): printable(value) if isinstance(value, str) else value for name, value in row.items()}


# Arrays


class ArrayWriter(Protocol):
    """An array (N, D) float32 that is being written, with a row of a table for each of its rows."""

    def write(self, vectors_ND: np.ndarray, rows: Sequence[Row]) -> None:
        """Add N vectors and the rows to which they belong."""
        ...

    def close(self) -> None:
        """Write what is left, and close the file."""
        ...


def open_array(path: Path, ending: str, size: int, example: Row, name: str) -> ArrayWriter:
    """Open an array (N, size) float32 for writing; N need not be known.

    Args:
        path: file to write, whatever its own ending is.
        ending: '.npy' for the array alone, '.npz' for the array and an array of each column of the rows, '.parquet'
            for a table with the columns of the rows and a last one with the vectors.
        size: number of values of a vector.
        example: a row with the columns that are written beside the vectors.
        name: name of the array in the file.
    """
    if ending == ".npy":
        return _NpyWriter(path.open("wb"), size)
    if ending == ".npz":
        return _NpzWriter(path, size, list(example), name)
    return _ParquetVectors(path, size, example, name)


class _NpyWriter:
    """Writes an .npy file whose length is entered at the end; NumPy's header leaves room for it."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self.file = file
        self.size = size
        self.count = 0
        self._write_header()

    def write(self, vectors_ND: np.ndarray, rows: Sequence[Row]) -> None:
        self.file.write(np.ascontiguousarray(vectors_ND, np.float32).tobytes())
        self.count += len(vectors_ND)

    def finish(self) -> None:
        self.file.seek(0)
        self._write_header()

    def close(self) -> None:
        self.finish()
        self.file.close()

    def _write_header(self) -> None:
        header = {"descr": "<f4", "fortran_order": False, "shape": (self.count, self.size)}
        np.lib.format.write_array_header_1_0(self.file, header)


class _NpzWriter:
    """Writes an .npz file: the vectors go to a temporary file first, since a zip file cannot be corrected later."""

    def __init__(self, path: Path, size: int, columns: Sequence[str], name: str) -> None:
        self.path = path
        self.name = name
        self.columns: dict[str, list[Any]] = {column: [] for column in columns}
        self.vectors = _NpyWriter(tempfile.TemporaryFile(dir=path.parent), size)  # noqa: SIM115

    def write(self, vectors_ND: np.ndarray, rows: Sequence[Row]) -> None:
        self.vectors.write(vectors_ND, rows)
        for column, values in self.columns.items():
            values += [row.get(column) for row in map(_plain, rows)]

    def close(self) -> None:
        self.vectors.finish()
        self.vectors.file.seek(0)
        with zipfile.ZipFile(self.path, "w") as archive:
            with archive.open(f"{self.name}.npy", "w", force_zip64=True) as target:
                shutil.copyfileobj(self.vectors.file, target)
            for column, values in self.columns.items():
                with archive.open(f"{column}.npy", "w", force_zip64=True) as target:
                    is_text = any(isinstance(value, str) for value in values)
                    array = np.array(values, np.str_) if is_text else np.array(values, np.float64)
                    np.lib.format.write_array(target, array, allow_pickle=False)
        self.vectors.file.close()


class _ParquetVectors:
    """Writes a Parquet file whose last column holds the vectors."""

    def __init__(self, path: Path, size: int, example: Row, name: str) -> None:
        self.name = name
        types = {column: _parquet_type(value) for column, value in example.items()}
        self.table = _ParquetWriter(path, types | {name: _parquet_type(np.zeros(size))})

    def write(self, vectors_ND: np.ndarray, rows: Sequence[Row]) -> None:
        self.table.write([{**row, self.name: vector} for row, vector in zip(rows, vectors_ND, strict=True)])

    def close(self) -> None:
        self.table.close()
