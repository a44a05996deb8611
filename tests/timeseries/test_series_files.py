"""CSV files: what is read, what is filled by choice, and what is refused by name."""

import re
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


SEMICOLONS = ["date;Våg höjd, m;n", "2020-01-01;1,5;1", "2020-01-02;2,25;2", "2020-01-03;-3e1;3"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("\n".join(SEMICOLONS), "read with semicolons between columns and decimal commas"),
        ("\r\n".join(["\ufeff" + SEMICOLONS[0], *SEMICOLONS[1:], ""]), "semicolons .* decimal commas"),
        ("\n".join(SEMICOLONS).replace(",", ".").replace(". m", ", m"), "semicolons .* decimal points"),
        ("\n".join(SEMICOLONS).replace(";", "\t"), "read with tabs between columns and decimal commas"),
        ("\n".join(SEMICOLONS).replace(";", "\t").replace(",", ".").replace(". m", ", m"), "tabs .* decimal points"),
        ('date,"Våg höjd, m",n\n2020-01-01,1.5,1\n2020-01-02,2.25,2\n2020-01-03,-3e1,3\n', ""),
    ],
)
def test_semicolons_and_tabs(text: str, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text.encode())
    with caplog.at_level("INFO"):
        series = read_series(path)
    assert series.channels == ["Våg höjd, m", "n"]
    assert series.values.tolist() == [[1.5, 1], [2.25, 2], [-30, 3]]
    assert re.search(said, caplog.text) if said else not caplog.records


def test_points_of_thousands_are_not_taken_for_decimals(tmp_path: Path) -> None:
    path = _lines(tmp_path / "a.csv", ["date;a;b", *[f"2020-01-0{i};{i},5;{i}.234" for i in (1, 2, 3)]])
    with pytest.raises(InputError, match="b holds no numbers"):
        read_series(path)
    assert read_series(path, channels=["a"]).values[:, 0].tolist() == [1.5, 2.5, 3.5]
    with pytest.raises(InputError, match="has the columns date, a, b; none is called 'day'"):
        read_series(path, date="day")


def test_columns_without_a_name(tmp_path: Path) -> None:
    path, values = tmp_path / "a.csv", waves(40, 2)
    table = pd.read_csv(write_series(path, values))
    table.to_csv(path)
    with pytest.raises(InputError, match=r"a\.csv: column 1 has no name, .* with --data\.channels, or .* index=False"):
        read_series(path)
    for channels in (["b"], ["Unnamed: 0", "b"]):
        assert read_series(path, channels=channels).channels == channels
    table.set_index("date").rename_axis(None).to_csv(path)
    assert read_series(path, date="Unnamed: 0").channels == ["a", "b"]
    table[["date", "a"]].assign(x=1).rename(columns={"x": ""}).to_csv(path, index=False)
    with pytest.raises(InputError, match="column 3 has no name"):
        read_series(path)


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
        (["date", "2020-01-01"], "has no column besides 'date'; expected a column of numbers"),
        (["date,a", *[f"2020-01-0{i},inf" for i in (1, 2, 3)]], "holds infinity in a"),
        (["date,a", *[f"2020-01-0{i},1e39" for i in (1, 2, 3)]], "holds infinity in a, or numbers beyond 3.4e"),
        (["date,a", *[f"2020-01-0{i},1,{i}" for i in (1, 2, 3)]], "its rows hold more values than its header"),
        (["date,a,b", *[f"2020-01-0{i},,1" for i in (1, 2, 3)]], "no value at all in a"),
        ([], "is not a CSV file in UTF-8: .*; save it as 'CSV UTF-8'"),
    ],
)
def test_tables_that_cannot_be_used(lines: list[str], text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=text):
        read_series(_lines(tmp_path / "a.csv", lines), fill="linear")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_rows_with_a_separator_at_their_ends(separator: str, tmp_path: Path) -> None:
    rows = [separator.join((f"2020-01-0{i}", f"{i}.5", "")) for i in (1, 2, 3)]
    series = read_series(_lines(tmp_path / "a.csv", [separator.join(("date", "a")), *rows]))
    assert series.channels == ["a"]
    assert series.values[:, 0].tolist() == [1.5, 2.5, 3.5]


def test_rows_are_taken_in_order_on_request(tmp_path: Path) -> None:
    """One date twice and one gap, as in the field's Weather file."""
    dates = [f"2020-01-01 00:{minute}0" for minute in (0, 1, 1, 2)] + ["2020-01-01 02:00", "2020-01-01 02:10"]
    path = _rows(tmp_path / "a.csv", dates)
    with pytest.raises(InputError, match="the date 2020-01-01 00:10:00 twice"):
        read_series(path)

    series = read_series(path, in_order=True)
    assert series.values[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert [str(time) for time in series.ahead(2)] == ["2020-01-01 02:20:00", "2020-01-01 02:30:00"]


def test_business_days_without_a_holiday(tmp_path: Path) -> None:
    days = pd.date_range("2024-01-01", periods=60, freq="B").delete(20)
    path = _rows(tmp_path / "a.csv", [str(day.date()) for day in days])
    with pytest.raises(InputError, match=r"no row for 1 dates, the first 2024-01-29 00:00:00"):
        read_series(path)

    series = read_series(path, fill="previous")
    assert len(series) == 60
    assert series.times.day_of_week.max() == 4


def test_letters_of_windows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("date;Temp °C\n2020-01-01;1,5\n".encode("cp1252"))
    with pytest.raises(InputError, match=r"is not a CSV file in UTF-8: .*; save it as 'CSV UTF-8'"):
        read_series(path)


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
