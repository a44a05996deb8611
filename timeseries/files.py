"""Reading series from CSV files with a date column; the errors name the file, and the row or the column."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor

from core.errors import InputError, MissingError, listed

__all__ = [
    "Fill",
    "Series",
    "as_series",
    "narrowed",
    "read_dates",
    "read_group",
    "read_series",
    "regular_step",
    "step_name",
]

Fill = Literal["previous", "linear"]
_DECIMALS = {",": ".", ";": ",.", "\t": ".,"}
"""Decimal signs that may go with each separator of columns, the usual one first."""
_DATE_FORMATS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d"}
"""Formats of dates that are whole numbers, by the number of digits; pandas would read them as nanoseconds."""
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_LARGEST = torch.finfo(torch.float32).max
_WANTED = "YYYY-MM-DD HH:MM:SS"


@dataclass(frozen=True)
class Series:
    """Channels over regular time steps.

    Attributes:
        values: (T, C) in the units of the file, without gaps; see :func:`narrowed` for the dtype.
        times: ``pandas.DatetimeIndex`` of length T; regular, unless the rows were taken in order.
        step: pandas offset from one timestamp to the next.
        channels: C names.
        known: (T + A, K) values of the columns that are known ahead, if there are any; the A later rows of a file hold
            no values of the channels.
        name: what tells the series apart from the others of its file; empty for the only one.
    """

    values: Tensor
    times: Any
    step: Any
    channels: list[str]
    known: Tensor | None = None
    name: str = ""

    def __len__(self) -> int:
        """Number of time steps."""
        return len(self.values)

    def ahead(self, steps: int) -> Any:
        """Return the timestamps of the ``steps`` steps after the last row."""
        return pd.date_range(self.times[-1], periods=steps + 1, freq=self.step)[1:]


def read_series(
    path: Path,
    *,
    date: str = "date",
    channels: Sequence[str] | None = None,
    fill: Fill | None = None,
    in_order: bool = False,
    known: Sequence[str] = (),
) -> Series:
    """Read a CSV file with one row for each time step: a date column, and numbers in all other columns.

    Columns are separated by commas, semicolons or tabs. With semicolons and tabs, decimal commas are read too.

    Args:
        path: the file, in UTF-8.
        date: name of the date column. Dates are text in a single format that pandas parses, or whole numbers of the
            form YYYY, YYYYMM or YYYYMMDD. Text with several offsets from UTC, as where clocks change, is converted to
            UTC.
        channels: columns to read, in this order; by default all but the date.
        fill: how missing values and missing rows are filled: with the value before ('previous'), or on a line between
            the neighbors ('linear'). The number of filled values is printed. None refuses them.
        in_order: take the rows in the order of the file as regular steps, whatever their dates.
        known: columns whose values are known ahead, which are no channels. Rows at the end may hold these alone.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is not such a table, or its dates are not regular.
    """
    table, _ = _read_numbers(path, date, channels, known)
    return as_series(table, str(path), fill=fill, in_order=in_order, known=known)


def read_group(
    path: Path,
    *,
    series_column: str,
    date: str = "date",
    channels: Sequence[str] | None = None,
    fill: Fill | None = None,
    in_order: bool = False,
    known: Sequence[str] = (),
    shortest: int = 3,
) -> list[Series]:
    """Read several series from one CSV file in long form: a column names the series to which a row belongs.

    The series may begin and end at different dates; their steps are the same.

    Args:
        path: the file, in UTF-8.
        series_column: name of that column, which holds text or numbers.
        date: as for :func:`read_series`, like the next four.
        channels: columns to read; by default all but the date and the series column.
        fill: how missing values and rows are filled.
        in_order: take the rows of each series in the order of the file.
        known: columns whose values are known ahead.
        shortest: number of rows; series with fewer rows are left out, and a warning names them.

    Returns:
        The series in the order in which they begin in the file.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is not such a table, no series is long enough, or their steps differ.
    """
    table, names = _read_numbers(path, date, channels, known, series_column)
    series = []
    short = []
    for name, rows in table.groupby(names.to_numpy(), sort=False):
        if len(rows) < max(3, shortest):
            short.append(str(name))
            continue
        where = f"{path}, {series_column} {name}"
        series.append(replace(as_series(rows, where, fill=fill, in_order=in_order, known=known), name=str(name)))

    if not series:
        raise InputError(
            f"{path} has {len(short)} series by {series_column}, and each has fewer than {max(3, shortest)} rows; "
            "choose a smaller --seq_len"
        )
    if short:
        rank_zero_warn(
            f"{path}: {len(short)} series with fewer than {max(3, shortest)} rows are left out: {listed(short)}"
        )
    for other in series[1:]:
        if step_name(other.step) != step_name(series[0].step):
            raise InputError(
                f"{path}: {series[0].name} has steps of {step_name(series[0].step)}, {other.name} of "
                f"{step_name(other.step)}; bring all series to one frequency"
            )
    return series


def _read_numbers(
    path: Path,
    date: str,
    channels: Sequence[str] | None,
    known: Sequence[str],
    series_column: str | None = None,
) -> tuple[Any, Any]:
    """Read a table of numbers, the channels first and the known columns last, with timestamps as its index.

    Returns:
        The table, and for each row what the series column holds, or None without such a column.
    """
    if not path.is_file():
        raise MissingError(
            f"there is no series {path}; expected a CSV file with a column {date!r} and a column for each channel"
        )
    try:
        table = _read_table(path, date)
    except ValueError as error:  # the errors of pandas' parser and of UTF-8 are ValueErrors
        raise InputError(
            f"{path} is not a CSV file in UTF-8: {error}; save it as 'CSV UTF-8', as spreadsheets call it"
        ) from error

    if date not in table.columns:
        raise InputError(f"{path} has the columns {listed(table.columns)}; none is called {date!r}: set --data.date")
    if series_column is not None and series_column not in table.columns.drop(date):
        raise InputError(
            f"{path} has the columns {listed(table.columns.drop(date))}; none is called {series_column!r}: set "
            "--data.series_column"
        )
    names = None if series_column is None else table.pop(series_column)
    _check_columns(path, table, date, channels, known)
    if names is not None and names.isna().any():
        raise InputError(
            f"{path}, row {int(names.isna().to_numpy().argmax()) + 1}: {series_column!r} is empty; name the series of "
            "each row"
        )

    times = read_dates(table[date], str(path))
    own = list(channels) if channels else [name for name in table.columns if name not in (date, *known)]
    if not own:
        raise InputError(f"{path} has no column besides {date!r}; expected a column of numbers for each channel")
    values = table[[*own, *known]]
    text = _text_columns(values)
    if text:
        raise InputError(f"{path}: {listed(text)} holds no numbers; name the columns that do with --data.channels")
    return values.set_axis(times, axis=0), names


def _check_columns(path: Path, table: Any, date: str, channels: Sequence[str] | None, known: Sequence[str]) -> None:
    """Raise an error if a table lacks a column that was asked for, or a column has no name."""
    absent = [name for name in channels or () if name not in table.columns or name == date]
    if absent:
        raise InputError(f"{path} has no channel {listed(absent)}; it has {listed(table.columns.drop(date))}")
    absent = [name for name in known if name not in table.columns or name == date]
    if absent:
        raise InputError(
            f"{path} has no column {listed(absent)} for --data.known; it has {listed(table.columns.drop(date))}"
        )
    both = sorted(set(known) & set(channels or ()))
    if both:
        raise InputError(
            f"{listed(both)} is in --data.channels and in --data.known; a column is forecast or known ahead"
        )

    # Pandas gives columns without a name the name 'Unnamed: NUMBER'.
    unnamed = [i for i, name in enumerate(table.columns) if name == f"Unnamed: {i}" and name != date]
    if unnamed and not channels:
        raise InputError(
            f"{path}: column {unnamed[0] + 1} has no name, as when pandas writes row numbers; leave it out with "
            "--data.channels, or write the file with index=False"
        )


def _read_table(path: Path, date: str) -> Any:
    """Read all columns with the separator and the decimal sign that fit the file."""
    headers = {}
    for separator in _DECIMALS:
        headers[separator] = pd.read_csv(path, sep=separator, nrows=0, skipinitialspace=True).columns

    # A name may hold another separator, as in 'date;Temperature, °C', so that the name of the date column decides.
    separator = max(headers, key=lambda sign: (date in headers[sign], len(headers[sign])))
    decimal = _DECIMALS[separator][0]
    table = _read_columns(path, separator, decimal)
    if separator == ",":
        return table

    if set(_text_columns(table)) - {date}:
        other = _DECIMALS[separator][1]
        second = _read_columns(path, separator, other)
        if set(_text_columns(second)) < set(_text_columns(table)):
            table = second
            decimal = other
    rank_zero_info(
        f"{path}: read with {'semicolons' if separator == ';' else 'tabs'} between columns and decimal "
        f"{'points' if decimal == '.' else 'commas'}"
    )
    return table


def _read_columns(path: Path, separator: str, decimal: str) -> Any:
    """Read a table whose rows may end with a separator that the header lacks.

    Raises:
        ValueError: if rows hold more values than the header has names.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            return pd.read_csv(path, sep=separator, decimal=decimal, skipinitialspace=True, index_col=False)
        except pd.errors.ParserWarning as error:
            raise ValueError("its rows hold more values than its header has names") from error


def _text_columns(table: Any) -> list[str]:
    return [str(name) for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])]


def as_series(
    table: Any, where: str, *, fill: Fill | None = None, in_order: bool = False, known: Sequence[str] = ()
) -> Series:
    """Turn a ``pandas.DataFrame`` of numbers with timestamps as its index into a series.

    Args:
        table: one row for each time step, one column for each channel and each known column.
        where: name of the table in messages.
        fill: as for :func:`read_series`.
        in_order: as for :func:`read_series`.
        known: columns whose values are known ahead. Rows at the end without any value of a channel are the horizon.

    Raises:
        InputError: if the timestamps are not regular, or values are missing and ``fill`` is None.
    """
    if fill not in (None, "previous", "linear"):
        raise InputError(f"fill={fill!r}; expected 'previous', 'linear', or none to refuse gaps")

    if in_order:
        step = _step_in_order(table.index, where)
    else:
        step = regular_step(table.index, where)
        table = _with_all_rows(table, step, where, fill)
    table = table.astype("float64")

    ahead = table[list(known)]
    rows = len(table)
    if known:
        table = table.drop(columns=list(known))
        filled = table.notna().any(axis=1).to_numpy()
        rows = int(filled.nonzero()[0][-1]) + 1 if filled.any() else 0
        if rows < 3:
            raise InputError(f"{where} has {rows} rows with values of {listed(table.columns)}; at least 3 are needed")
    values = _complete(table.iloc[:rows], where, fill)
    channels = [str(name) for name in table.columns]
    return Series(
        values,
        table.index[:rows],
        step,
        channels,
        known=_complete(ahead, where, fill) if known else None,
    )


def _complete(table: Any, where: str, fill: Fill | None) -> Tensor:
    """Return the values of a table (T, C), with the missing ones filled; see :func:`narrowed` for the dtype."""
    infinite = table.columns[(table.abs() > _LARGEST).any()]
    if len(infinite):
        raise InputError(
            f"{where} holds infinity in {listed(infinite)}, or numbers beyond {_LARGEST:.1e}, which float32 cannot "
            "hold; correct the file, or leave the channels out with --data.channels"
        )

    missing = table.isna().sum()
    missing = missing[missing > 0]
    if len(missing):
        found = ", ".join(f"{name} ({count})" for name, count in missing.items())
        if fill is None:
            raise InputError(
                f"{where} has missing values in {found}; fill them with --data.fill previous or --data.fill linear, or "
                "leave the channels out with --data.channels"
            )
        rank_zero_info(f"{where}: missing values filled ({fill}) in {found}")
        table = (table.ffill() if fill == "previous" else table.interpolate()).bfill()
        empty = table.columns[table.isna().any()]
        if len(empty):
            raise InputError(f"{where} has no value at all in {listed(empty)}; leave it out with --data.channels")

    return narrowed(torch.from_numpy(table.to_numpy(copy=True)))


def narrowed(values_TC: Tensor) -> Tensor:
    """Return float64 values in float32, unless its seven digits are too few for one of the channels.

    A channel far from zero, such as 1.7e9 + 100 sin(t), would be left with a few distinct values. All channels stay in
    float64 if rounding would move a value by more than a ten thousandth of its channel's standard deviation.

    Args:
        values_TC: (T, C) float64.

    Returns:
        (T, C) float32 or float64.
    """
    rounded = values_TC.float()
    error = (values_TC - rounded).abs().amax(dim=0)
    spread = values_TC.std(dim=0, correction=0)
    return rounded if bool((error <= 1e-4 * spread).all()) else values_TC


def _with_all_rows(table: Any, step: Any, where: str, fill: Fill | None) -> Any:
    """Return the table with a row for each step; those that were missing hold NaN."""
    every = pd.date_range(table.index[0], table.index[-1], freq=step)
    absent = every.difference(table.index)
    if not len(absent):
        return table
    if fill is None:
        raise InputError(
            f"{where} has no row for {len(absent)} dates, the first {absent[0]}; fill them with --data.fill previous "
            "or --data.fill linear"
        )
    rank_zero_info(f"{where}: {len(absent)} missing rows filled ({fill}), the first {absent[0]}")
    return table.reindex(every)


def read_dates(column: Any, where: str) -> Any:
    """Parse a column of dates into a ``pandas.DatetimeIndex``.

    Args:
        column: ``pandas.Series`` of text in any one format that pandas parses, or of the numbers YYYY, YYYYMM,
            YYYYMMDD. 01/02/2024 is January 2nd, and 01.02.2024 is February 1st, as in countries that write dots.
        where: name of the table in messages.

    Raises:
        InputError: if a row holds no date; the message names the first one.
    """
    if pd.api.types.is_numeric_dtype(column) and column.notna().any():
        times = _dates_from_numbers(column, where)
    else:
        times = _dates_from_text(column, where)
    if times.isna().any():
        row = int(times.isna().to_numpy().argmax())
        first, found = column.iloc[[0, row]].tolist()
        form = f" in the form of the first row, {first!r}; write all as {_WANTED}" if row else f"; expected {_WANTED}"
        raise InputError(f"{where}, row {row + 1}: {found!r} is no date{form}")
    return pd.DatetimeIndex(times)


def _dates_from_numbers(column: Any, where: str) -> Any:
    first = column.dropna().iloc[0]
    digits = f"{first:.0f}" if float(first).is_integer() else ""
    if len(digits) not in _DATE_FORMATS or not digits.isdigit():
        raise InputError(
            f"{where} has numbers as dates, the first {first}; expected years (YYYY), months (YYYYMM) or days "
            f"(YYYYMMDD): write all other dates as {_WANTED}"
        )
    text = column.map(lambda number: f"{number:.0f}" if float(number).is_integer() else "")
    same_length = text.where(text.str.len() == len(digits))
    return pd.to_datetime(same_length, format=_DATE_FORMATS[len(digits)], errors="coerce")


def _dates_from_text(column: Any, where: str) -> Any:
    day_first = bool(len(column)) and re.match(r"\s*\d{1,2}\.\d{1,2}\.\d{2}", str(column.iloc[0])) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # pandas 2 warns of several offsets, pandas 3 raises
        warnings.simplefilter("ignore", UserWarning)  # days before months, and hours without a zero, as in 1:00 AM
        try:
            times = pd.to_datetime(column, errors="coerce", dayfirst=day_first)
            if pd.api.types.is_datetime64_any_dtype(times):
                return times
        except ValueError:
            pass  # several offsets from UTC
        times = pd.to_datetime(column, errors="coerce", utc=True, dayfirst=day_first)
    rank_zero_info(f"{where}: the dates have several offsets from UTC, as where clocks change; they are read as UTC")
    return times


def regular_step(times: Any, where: str) -> Any:
    """Find the pandas offset between neighboring timestamps, some of which may be missing.

    Args:
        times: a ``pandas.DatetimeIndex``.
        where: name of the series in messages.

    Raises:
        InputError: if timestamps repeat, are not sorted, or have no common step.
    """
    if len(times) < 3:
        raise InputError(f"{where} has {len(times)} time steps; at least 3 are needed to know their distance")

    twice = times.duplicated()
    if twice.any():
        raise InputError(
            f"{where} has the date {times[twice][0]} twice; keep one row of each date, or name the column that tells "
            "several series apart with --data.series_column"
        )

    gaps = times[1:] - times[:-1]
    if not times.is_monotonic_increasing:
        row = int((gaps < pd.Timedelta(0)).argmax()) + 1
        raise InputError(f"{where} is not sorted: {times[row]} follows {times[row - 1]}; sort it by date")

    # Months and years have no constant length.
    step = _calendar_step(times) if gaps.min() >= pd.Timedelta(days=28) else None
    if step is None and gaps.min() == gaps.max():
        step = gaps[0]
    if step is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # pandas 4 will return the offset instead of its name
            step = pd.infer_freq(times)
    if step is None:
        step = _business_day(times, gaps)
    if step is None:
        step = _most_frequent_step(times, gaps, where)
    return pd.tseries.frequencies.to_offset(step)


def _calendar_step(times: Any) -> Any | None:
    """Return the offset of some months that reaches all timestamps, or None if more than half would be missing."""
    number = 12 * times.year + times.month
    months = math.gcd(*(number[1:] - number[:-1]).tolist())
    if not months:
        return None

    day = 31 if times.is_month_end.all() else int(times.day.max())  # the 31st stands for the last day of any month
    offset = pd.DateOffset(months=months, day=day)
    every = pd.date_range(times[0], times[-1], freq=offset)
    return offset if len(every) <= 2 * len(times) and times.isin(every).all() else None


def _step_in_order(times: Any, where: str) -> Any:
    """Return the step of rows that are taken in order: the regular one, or else the most frequent positive gap."""
    try:
        return regular_step(times, where)
    except InputError:
        pass

    gaps = times[1:] - times[:-1]
    rising = gaps[gaps > pd.Timedelta(0)]
    if not len(rising):
        raise InputError(f"{where} has no date that is later than the one before; at least one step must be known")
    return pd.tseries.frequencies.to_offset(pd.Series(rising).mode().iloc[0])


def _business_day(times: Any, gaps: Any) -> Any | None:
    """Return the offset of days that leave out the same days of every week; some others may be missing (holidays).

    Three weeks of data show which days those are. In a shorter series, only Saturday and Sunday are expected to be.
    """
    if (gaps % pd.Timedelta(days=1) != pd.Timedelta(0)).any():
        return None

    span = (times[-1] - times[0]).days
    working = sorted(set(times.day_of_week))
    if span < 21 and working[-1] <= 4:
        working = [0, 1, 2, 3, 4]
    elif span < 21 or not 1 < len(working) < 7:
        return None

    if working == [0, 1, 2, 3, 4]:
        offset = pd.offsets.BusinessDay()
    else:
        offset = pd.offsets.CustomBusinessDay(weekmask=" ".join(_WEEKDAYS[day] for day in working))
    every = pd.date_range(times[0], times[-1], freq=offset)
    has_days_off = span >= len(every)
    return offset if has_days_off and len(every) <= 2 * len(times) else None


def _most_frequent_step(times: Any, gaps: Any, where: str) -> Any:
    """Return the most frequent gap between timestamps.

    Raises:
        InputError: if other gaps are no multiples of it, or more than half of the rows would be missing.
    """
    usual = pd.Series(gaps).mode().iloc[0]
    is_other = gaps != usual
    is_odd = (gaps % usual) != pd.Timedelta(0)
    steps = (times[-1] - times[0]) / usual + 1
    if not is_odd.any() and steps <= 2 * len(times):
        return usual

    row = int((is_odd if is_odd.any() else is_other).argmax()) + 1
    advice = "bring it to one frequency first"
    if times.tz is not None:
        advice += "; days of local time have 23 to 25 hours: write dates without an offset"
    raise InputError(
        f"{where} mixes frequencies: most steps are {usual}, but {times[row]} follows {times[row - 1]}; {advice}"
    )


def step_name(step: Any) -> str:
    """Return the name of a step, as in 'h', 'MS', '3 months' or 'days (Sun Mon Tue Wed Thu)'."""
    months = getattr(step, "kwds", {}).get("months")
    if months is not None:
        return f"{months} month{'s' if months > 1 else ''}"
    if isinstance(step, pd.offsets.CustomBusinessDay):
        return f"days ({step.weekmask})"
    return str(step.freqstr)
