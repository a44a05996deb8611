"""CSV files: what is read, what is filled by choice, and what is refused by name."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from small_series import waves, write_series
from torch.testing import assert_close

from core.errors import InputError, MissingError
from timeseries.files import read_series


def _lines(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _rows(path: Path, dates: list[str]) -> Path:
    return _lines(path, ["date,a", *[f"{date},{i}" for i, date in enumerate(dates)]])


@pytest.mark.parametrize("freq", ["10min", "h", "D", "W", "MS", "YS"])
def test_any_frequency(freq: str, tmp_path: Path) -> None:
    values = waves(40, 3)
    series = read_series(write_series(tmp_path / "a.csv", values, freq=freq))
    assert series.channels == ["a", "b", "c"]
    assert_close(series.values, torch.tensor(values, dtype=torch.float32))
    every = pd.date_range("2020-01-01", periods=45, freq=freq)
    assert list(series.times) == list(every[:40])
    assert list(series.ahead(5)) == list(every[40:])


def test_channels_in_the_order_asked_for_and_another_date_column(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.csv", ["x,when,y", "1,01/02/2020,2", "3,01/03/2020,4", "5,01/04/2020,6"])
    series = read_series(path, date="when", channels=["y", "x"])
    assert series.values.tolist() == [[2, 1], [4, 3], [6, 5]]
    assert str(series.ahead(1)[0]) == "2020-01-05 00:00:00"


@pytest.mark.parametrize(("fill", "filled"), [("previous", [1, 1, 1, 4, 4]), ("linear", [1, 2, 3, 4, 4])])
def test_missing_values_are_filled_as_chosen(
    fill: str, filled: list[float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = _lines(tmp_path / "a.csv", ["date,a,b", *[f"2020-01-0{i + 1},{v},1" for i, v in enumerate("1  4 ")]])
    with pytest.raises(InputError, match=r"missing values in a \(3\); fill them with --data\.fill previous or"):
        read_series(path)
    with caplog.at_level("INFO"):
        assert read_series(path, fill=fill).values[:, 0].tolist() == filled  # type: ignore[arg-type]
    assert f"missing values filled ({fill}) in a (3)" in caplog.text


def test_missing_rows_are_filled_as_chosen(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = _rows(tmp_path / "a.csv", ["2020-01-01", "2020-01-02", "2020-01-03", "2020-01-05", "2020-01-06"])
    with pytest.raises(InputError, match=r"no row for 1 dates, the first 2020-01-04 00:00:00; fill them"):
        read_series(path)
    with caplog.at_level("INFO"):
        assert read_series(path, fill="linear").values[:, 0].tolist() == [0, 1, 2, 2.5, 3, 4]
    assert "1 missing rows filled (linear), the first 2020-01-04" in caplog.text


@pytest.mark.parametrize(
    ("dates", "text"),
    [
        (["2020-01-01", "2020-01-02", "2020-01-02", "2020-01-03"], "the date 2020-01-02 00:00:00 twice"),
        (["2020-01-01", "2020-01-03", "2020-01-02"], "not sorted: 2020-01-02 00:00:00 follows 2020-01-03"),
        (["2020-01-01 00:00", "2020-01-02 00:00", "2020-01-03 12:00"], "mixes frequencies: most steps are 1 days"),
        (["2020-01-01 01:00", "2020-01-01 02:00", "2020-01-03 01:00", "2020-01-04 01:00"], "mixes frequencies"),
        (["2020-01-01", "soon", "2020-01-03"], "row 2: 'soon' is no date in the form of the first row, '2020-01-01'"),
        (["2020-01-01", "2020-01-02"], "has 2 time steps; at least 3"),
    ],
)
def test_dates_that_cannot_be_used(dates: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        read_series(_rows(tmp_path / "a.csv", dates), fill="linear")


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        (["time,a", "2020-01-01,1"], "has the columns time, a; none is called 'date': set --data.date"),
        (["date,a,b", *[f"2020-01-0{i},1,low" for i in (1, 2, 3)]], r"b holds no numbers; name .* --data\.channels"),
        (["date", "2020-01-01"], "has no column beside 'date'; expected one column of numbers"),
        (["date,a", *[f"2020-01-0{i},inf" for i in (1, 2, 3)]], "holds infinity in a"),
        (["date,a,b", *[f"2020-01-0{i},,1" for i in (1, 2, 3)]], "no value at all in a"),
        ([], "is not a CSV file"),
    ],
)
def test_tables_that_cannot_be_used(lines: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        read_series(_lines(tmp_path / "a.csv", lines), fill="linear")


@pytest.mark.parametrize("fill", ["zero", "Linear", ""])
def test_unknown_ways_to_fill(fill: str, tmp_path: Path) -> None:
    path = write_series(tmp_path / "a.csv", np.ones((5, 2)))  # nothing is missing
    with pytest.raises(InputError, match=rf"^fill='{fill}'; expected 'previous', 'linear', or none to refuse gaps$"):
        read_series(path, fill=fill)  # type: ignore[arg-type]


def test_files_and_channels_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"there is no series .*a\.csv"):
        read_series(tmp_path / "a.csv")
    path = write_series(tmp_path / "b.csv", np.ones((5, 2)))
    with pytest.raises(InputError, match="has no channel z; it has a, b"):
        read_series(path, channels=["a", "z"])
