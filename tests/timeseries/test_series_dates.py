"""Dates as numbers, with offsets from UTC, and by the calendar: read, continued, and refused by name."""

import warnings
from pathlib import Path

import pandas as pd
import pytest

from core.errors import InputError
from timeseries.files import read_series, regular_step, step_name


def _rows(path: Path, dates: list[str]) -> Path:
    path.write_text("\n".join(["date,a", *[f"{date},{i}" for i, date in enumerate(dates)]]) + "\n", encoding="utf-8")
    return path


def _dates(start: str, rows: int, months: int = 1, *, end: bool = False) -> list[str]:
    month = pd.period_range(start, periods=rows * months, freq="M")[::months]
    days = month.end_time if end else [time.replace(day=int(start[8:])) for time in month.start_time]
    return [str(day.date()) for day in days]


@pytest.mark.parametrize(
    ("dates", "first", "ahead"),
    [
        (["1999", "2000", "2001", "2002"], "1999-01-01", "2003-01-01"),
        (["199911", "199912", "200001", "200002"], "1999-11-01", "2000-03-01"),
        (["20000227", "20000228", "20000229"], "2000-02-27", "2000-03-01"),
        (["2000", "", "2002"], "", "row 2: nan is no date in the form of the first row, "),
        (["200001", "200002", "200013"], "", "row 3: 200013 is no date in the form of the first row, 200001"),
        (["200001", "20002", "200003"], "", "row 2: 20002 is no date in the form of the first row, 200001"),
        (["20000228", "20000229", "20000230"], "", "row 3: 20000230 is no date in the form of the first row, 20000228"),
        (["2000", "2000.5", "2001"], "", "row 2: 2000.5 is no date"),
        (["2000-01-01", "2000-01-02", "3"], "", "row 3: '3' is no date in the form of the first row, '2000-01-01'"),
        (["1704067200", "1704070800", "1704074400"], "", "has numbers as dates, the first 1704067200; .* write all"),
        (["2020010100", "2020010101", "2020010102"], "", "the first 2020010100; .* as YYYY-MM-DD HH:MM:SS"),
        (["45000.0", "45000.5", "45001.0"], "", r"has numbers as dates, the first 45000\.0"),
        (["0", "1", "2"], "", "has numbers as dates, the first 0; expected years"),
        (["-2000", "-1999", "-1998"], "", "has numbers as dates, the first -2000"),
        (["inf", "2000", "2001"], "", "has numbers as dates, the first inf"),
    ],
)
def test_numbers_as_dates(dates: list[str], first: str, ahead: str, tmp_path: Path) -> None:
    path = _rows(tmp_path / "a.csv", dates)
    if not first:
        with pytest.raises(InputError, match=rf"{path}.*{ahead}"):
            read_series(path)
        return
    series = read_series(path)
    assert str(series.times[0].date()) == first
    assert len(series) == len(dates)
    assert str(series.ahead(1)[0].date()) == ahead


@pytest.mark.parametrize(
    ("dates", "ahead"),
    [
        (["01/11/2024 00:00", "01/12/2024 00:00", "01/13/2024 00:00"], "2024-01-14 00:00:00"),
        (["1/1/2024 11:00:00 AM", "1/1/2024 12:00:00 PM", "1/1/2024 1:00:00 PM"], "2024-01-01 14:00:00"),
        (["1/1/24 11:00 AM", "1/1/24 12:00 PM", "1/1/24 1:00 PM"], "2024-01-01 14:00:00"),
        (["13/01/2024", "14/01/2024", "15/01/2024"], "2024-01-16 00:00:00"),
        (["11.01.2024 00:00", "12.01.2024 00:00", "13.01.2024 00:00"], "2024-01-14 00:00:00"),
        (["01.01.2024", "01.02.2024", "01.03.2024"], "2024-04-01 00:00:00"),
        (["1.1.24 9:00", "1.1.24 10:00", "1.1.24 11:00"], "2024-01-01 12:00:00"),
    ],
)
def test_dates_of_several_countries(dates: list[str], ahead: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(read_series(_rows(tmp_path / "a.csv", dates)).ahead(1)[0]) == ahead


def test_days_before_months_with_slashes_are_refused_from_the_13th_on(tmp_path: Path) -> None:
    dates = [f"{day:02}/01/2024 00:00" for day in range(1, 15)]
    message = r"row 13: '13/01/2024 00:00' .* first row, '01/01/2024 00:00'; write all as YYYY-MM-DD HH:MM:SS"
    with pytest.raises(InputError, match=message):
        read_series(_rows(tmp_path / "a.csv", dates))


def _berlin(periods: int, freq: str) -> list[str]:
    """Local time over the last night of March 2024, when clocks go from +01:00 to +02:00."""
    return [str(time) for time in pd.date_range("2024-03-29", periods=periods, freq=freq, tz="Europe/Berlin")]


def test_hours_of_local_time_across_a_change_of_clocks(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    hours = _berlin(96, "h")
    assert {time[-6:] for time in hours} == {"+01:00", "+02:00"}
    with caplog.at_level("INFO"):
        series = read_series(_rows(tmp_path / "a.csv", hours))
    assert "several offsets from UTC, as where clocks change; they are read as UTC" in caplog.text
    assert step_name(series.step) == "h"
    assert str(series.times[0]) == "2024-03-28 23:00:00+00:00"
    assert [str(time) for time in series.ahead(2)] == ["2024-04-01 23:00:00+00:00", "2024-04-02 00:00:00+00:00"]
    with pytest.raises(InputError, match="row 97: 'soon' is no date in the form of the first row"):
        read_series(_rows(tmp_path / "b.csv", [*hours, "soon"]))


def test_days_of_local_time_across_a_change_of_clocks(tmp_path: Path) -> None:
    days = _berlin(6, "D")
    message = (
        r"mixes frequencies: most steps are 1 days .*; days of local time have 23 to 25 hours: write dates without"
    )
    with pytest.raises(InputError, match=message):
        read_series(_rows(tmp_path / "a.csv", days))
    series = read_series(_rows(tmp_path / "b.csv", [day[:10] for day in days]))
    assert str(series.ahead(1)[0]) == "2024-04-04 00:00:00"
    with pytest.raises(InputError, match=r"to one frequency first$"):
        read_series(_rows(tmp_path / "c.csv", ["2024-01-01 00:00", "2024-01-02 00:00", "2024-01-04 12:00"]))


CALENDARS: dict[str, tuple[str, int, bool, str]] = {
    "month starts": ("2020-01-01", 1, False, "1 month"),
    "month ends": ("2020-01-31", 1, True, "1 month"),
    "the 15th": ("2020-01-15", 1, False, "1 month"),
    "quarters": ("2019-10-01", 3, False, "3 months"),
    "quarter ends": ("2019-12-31", 3, True, "3 months"),
    "years": ("1990-01-01", 12, False, "12 months"),
    "years from July 15th": ("1990-07-15", 12, False, "12 months"),
    "every other year": ("1950-01-01", 24, False, "24 months"),
}
"""First date, months of a step, whether a date is the last day of its month, and the name of the step."""


@pytest.mark.parametrize("name", CALENDARS)
def test_steps_of_the_calendar(name: str, tmp_path: Path) -> None:
    start, months, end, name_of_step = CALENDARS[name]
    every = _dates(start, 38, months, end=end)
    dates = every[:30]
    whole = read_series(_rows(tmp_path / "whole.csv", dates))
    assert len(whole) == 30
    path = _rows(tmp_path / "gaps.csv", [*dates[:5], *dates[6:20], *dates[22:]])
    with pytest.raises(InputError, match=f"has no row for 3 dates, the first {dates[5]} 00:00:00; fill them with"):
        read_series(path)
    filled = read_series(path, fill="linear")
    assert [str(time.date()) for time in filled.times] == dates
    assert filled.values[4:7, 0].tolist() == [4, 4.5, 5]
    for series in (whole, filled):
        assert [str(time.date()) for time in series.ahead(8)] == every[30:]
    assert step_name(filled.step) == name_of_step


def test_the_30th_of_each_month_is_the_last_day_of_february() -> None:
    times = pd.DatetimeIndex(["2023-01-30", "2023-02-28", "2023-03-30", "2023-04-30", "2023-05-30"])
    step = regular_step(times, "a")
    assert list(pd.date_range(times[0], periods=5, freq=step)) == list(times)
    assert str(pd.date_range("2024-01-30", periods=2, freq=step)[1].date()) == "2024-02-29"


def test_three_years_of_365_days_are_years_and_four_weeks_are_no_month() -> None:
    years = regular_step(pd.DatetimeIndex(["2021-01-01", "2022-01-01", "2023-01-01"]), "a")
    assert str((pd.date_range("2023-01-01", periods=3, freq=years)[-1]).date()) == "2025-01-01"
    weeks = pd.date_range("2021-02-01", periods=20, freq="28D")
    assert list(pd.date_range(weeks[0], periods=20, freq=regular_step(weeks, "a"))) == list(weeks)


@pytest.mark.parametrize(
    ("steps", "unit", "rows"),
    [
        ([0, 2, 5, 7], "MS", 8),
        ([0, 2, 5, 7, 10, 12], "MS", 0),
        ([0, 1, 2, 8, 9, 11], "h", 12),
        ([0, 1, 2, 8, 9, 14], "h", 0),
    ],
)
def test_at_least_half_of_the_steps_must_be_there(steps: list[int], unit: str, rows: int, tmp_path: Path) -> None:
    every = pd.date_range("2020-01-01", periods=20, freq=unit)
    path = _rows(tmp_path / "a.csv", [str(every[i]) for i in steps])
    if rows:
        assert len(read_series(path, fill="linear")) == rows
        return
    with pytest.raises(InputError, match="mixes frequencies"):
        read_series(path, fill="linear")


def test_dates_of_no_calendar_are_refused(tmp_path: Path) -> None:
    path = _rows(tmp_path / "a.csv", ["2020-01-01", "2020-02-03", "2020-03-01", "2020-04-05"])
    with pytest.raises(InputError, match="mixes frequencies"):
        read_series(path, fill="linear")


WEEKS: dict[str, tuple[str, str]] = {
    "Monday to Friday": ("Mon Tue Wed Thu Fri", "B"),
    "Sunday to Thursday": ("Mon Tue Wed Thu Sun", "days (Mon Tue Wed Thu Sun)"),
    "Monday to Saturday": ("Mon Tue Wed Thu Fri Sat", "days (Mon Tue Wed Thu Fri Sat)"),
    "three days": ("Mon Wed Fri", "days (Mon Wed Fri)"),
}
"""Days of the week that a file has, and the name of the step."""


@pytest.mark.parametrize("name", WEEKS)
def test_days_of_the_week(name: str, tmp_path: Path) -> None:
    """Complete, and with holidays missing: forecasts get the dates of that week."""
    weekmask, name_of_step = WEEKS[name]
    every = pd.date_range("2024-01-03", periods=70, freq=pd.offsets.CustomBusinessDay(weekmask=weekmask))
    dates = [str(day.date()) for day in every]
    whole = read_series(_rows(tmp_path / "whole.csv", dates[:60]))
    assert len(whole) == 60
    path = _rows(tmp_path / "gaps.csv", [*dates[:20], *dates[21:40], *dates[42:60]])
    with pytest.raises(InputError, match=f"has no row for 3 dates, the first {dates[20]} 00:00:00; fill them with"):
        read_series(path)
    filled = read_series(path, fill="previous")
    assert [str(time.date()) for time in filled.times] == dates[:60]
    for series in (whole, filled, read_series(path, in_order=True)):
        assert [str(time.date()) for time in series.ahead(10)] == dates[60:]
        assert step_name(series.step) == name_of_step


def test_two_weeks_do_not_show_which_days_are_off(tmp_path: Path) -> None:
    """A Tuesday that is missing twice is a gap, and so is every day that is missing once."""
    days = [str(day.date()) for day in pd.date_range("2024-01-01", periods=60) if day.day_of_week != 1 or day.day > 15]
    with pytest.raises(InputError, match="has no row for 2 dates, the first 2024-01-02"):
        read_series(_rows(tmp_path / "a.csv", [day for day in days if day != "2024-02-06"][:16]))
