"""Tables and arrays that are written in parts: the same content as at once, in every format."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.data.windows import window_starts
from core.io.writers import open_array, open_table

ODD = b"caf\xe9".decode("utf-8", "surrogateescape")
ROWS: list[dict[str, Any]] = [
    {"file": "a, b.png", "p": 0.25, "n": 3, "error": None},
    {"file": ODD, "error": 'two\nlines "quoted"'},
]


def _write(path: Path, rows: list[dict[str, Any]], size: int) -> None:
    table = open_table(path, path.suffix, rows[0])
    for i in range(0, len(rows), size):
        table.write(rows[i : i + size])
    table.close()


def test_rows_of_every_format(tmp_path: Path) -> None:
    expected = [
        {"file": "a, b.png", "p": 0.25, "n": 3, "error": None},
        {"file": r"caf\xe9", "p": None, "n": None, "error": 'two\nlines "quoted"'},
    ]
    _write(tmp_path / "a.jsonl", ROWS, 1)
    assert [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()] == expected
    _write(tmp_path / "a.csv", ROWS, 1)
    with (tmp_path / "a.csv").open(newline="", encoding="utf-8") as file:
        texts = [{name: "" if value is None else str(value) for name, value in row.items()} for row in expected]
        assert list(csv.DictReader(file)) == texts

    parquet = pytest.importorskip("pyarrow.parquet")
    _write(tmp_path / "a.parquet", ROWS, 1)
    assert parquet.read_table(tmp_path / "a.parquet").to_pylist() == expected


def test_large_parquet_files_have_several_groups_of_rows(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = [{"file": str(i), "p": i / 7} for i in range(10_000)]
    _write(tmp_path / "a.parquet", rows, 100)
    file = parquet.ParquetFile(tmp_path / "a.parquet")
    assert file.num_row_groups == 3
    assert file.read().to_pylist() == rows


@pytest.mark.parametrize("ending", [".npy", ".npz", ".parquet"])
def test_arrays_that_grow(ending: str, tmp_path: Path) -> None:
    if ending == ".parquet":
        pytest.importorskip("pyarrow")
    vectors = np.random.default_rng(0).standard_normal((1_234, 5)).astype(np.float32)
    rows = [{"file": ODD if i == 7 else str(i), "start": i / 2} for i in range(len(vectors))]
    path = tmp_path / f"a{ending}"
    array = open_array(path, ending, 5, rows[0], "embedding")
    for i in range(0, len(rows), 100):
        array.write(vectors[i : i + 100], rows[i : i + 100])
    array.close()
    names = [r"caf\xe9" if i == 7 else str(i) for i in range(len(vectors))]
    if ending == ".npy":
        np.testing.assert_array_equal(np.load(path), vectors)
        assert path.stat().st_size == 128 + vectors.nbytes
    elif ending == ".npz":
        with np.load(path) as content:
            assert sorted(content) == ["embedding", "file", "start"]
            np.testing.assert_array_equal(content["embedding"], vectors)
            assert content["file"].tolist() == names
            assert content["start"].tolist() == [i / 2 for i in range(len(vectors))]
    else:
        from pyarrow import parquet

        columns = parquet.read_table(path).to_pydict()
        np.testing.assert_array_equal(np.array(columns["embedding"], np.float32), vectors)
        assert columns["file"] == names
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@given(st.integers(1, 300), st.integers(1, 50), st.integers(1, 50))
def test_windows_cover_a_sequence(length: int, size: int, step: int) -> None:
    starts = window_starts(length, size, step)
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert starts[-1] == max(0, length - size)
    assert all(b - a == step for a, b in pairwise(starts[:-1]))
