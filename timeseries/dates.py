"""Moments of a series: a column of dates read, and what lies between them."""

import math
import re
import warnings
from typing import Any

import pandas as pd
from lightning_utilities.core.rank_zero import rank_zero_info

from core.errors import InputError

__all__ = ["read_dates", "regular_step", "step_name"]

_NUMBERS = {4: "%Y", 6: "%Y%m", 8: "%Y%m%d"}
"""Whole numbers that are dates, by their digits. pandas takes any number for nanoseconds since 1970."""
_DOTS = re.compile(r"\s*\d{1,2}\.\d{1,2}\.\d{2}")
"""Days that are written with dots come before the month; of others, pandas takes the first number for the month."""
_WANTED = "YYYY-MM-DD HH:MM:SS"


def read_dates(column: Any, where: str) -> Any:
    """A column of moments as a ``pandas.DatetimeIndex``; moments with several offsets from UTC become UTC.

    Args:
        column: ``pandas.Series`` of words in any one form that pandas parses (01/02/2024 is January 2nd, 01.02.2024
            February 1st), or of the numbers YYYY, YYYYMM, YYYYMMDD.
        where: what the table is called in messages.

    Raises:
        InputError: naming the first row that is no date, or numbers that are none.
    """
    if pd.api.types.is_numeric_dtype(column) and column.notna().any():
        times = _from_numbers(column, where)
    else:
        times = _from_words(column, where)
    if times.isna().any():
        row = int(times.isna().to_numpy().argmax())
        first, found = column.iloc[[0, row]].tolist()
        form = f" in the form of the first row, {first!r}; write all as {_WANTED}" if row else f"; expected {_WANTED}"
        raise InputError(f"{where}, row {row + 1}: {found!r} is no date{form}")
    return pd.DatetimeIndex(times)


def _from_numbers(column: Any, where: str) -> Any:
    first = column.dropna().iloc[0]
    digits = str(int(first)) if float(first).is_integer() else ""
    if len(digits) not in _NUMBERS or pd.api.types.is_bool_dtype(column):
        raise InputError(
            f"{where} has numbers as dates, the first {first}; of numbers, years (YYYY), months (YYYYMM) and days "
            f"(YYYYMMDD) are read: write all others as {_WANTED}"
        )
    words = column.map(lambda number: f"{number:.0f}" if float(number).is_integer() else "")
    return pd.to_datetime(words.where(words.str.len() == len(digits)), format=_NUMBERS[len(digits)], errors="coerce")


def _from_words(column: Any, where: str) -> Any:
    dots = bool(len(column)) and _DOTS.match(str(column.iloc[0])) is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # pandas 2 warns of several offsets, pandas 3 stops
        warnings.simplefilter("ignore", UserWarning)  # days before months, and hours without a zero, as in 1:00 AM
        try:
            times = pd.to_datetime(column, errors="coerce", dayfirst=dots)
        except ValueError:
            times = None
        if times is not None and pd.api.types.is_datetime64_any_dtype(times):
            return times
        times = pd.to_datetime(column, errors="coerce", utc=True, dayfirst=dots)
    rank_zero_info(f"{where}: the dates have several offsets from UTC, as where clocks change; they are read as UTC")
    return times


def regular_step(times: Any, where: str) -> Any:
    """The pandas offset between neighbours, some of which may be missing, once duplicates and disorder are ruled out.

    Args:
        times: ``pandas.DatetimeIndex``.
        where: what the series is called in messages.

    Raises:
        InputError: if there is none.
    """
    if len(times) < 3:
        raise InputError(f"{where} has {len(times)} time steps; at least 3 are needed to know their distance")
    twice = times.duplicated()
    if twice.any():
        raise InputError(f"{where} has the date {times[twice][0]} twice; keep one row of each date")
    gaps = times[1:] - times[:-1]
    if not times.is_monotonic_increasing:
        row = int((gaps < pd.Timedelta(0)).argmax()) + 1
        raise InputError(f"{where} is not sorted: {times[row]} follows {times[row - 1]}; sort it by date")
    months = _months(times) if gaps.min() >= pd.Timedelta(days=28) else None
    if months is None and (gaps == gaps[0]).all():
        return pd.tseries.frequencies.to_offset(gaps[0])
    with warnings.catch_warnings():  # pandas 4 will answer with an offset instead of its name; both are understood
        warnings.simplefilter("ignore")
        regular = None if (gaps == gaps[0]).all() else pd.infer_freq(times)  # months and years have no constant length
    if regular is not None:
        return pd.tseries.frequencies.to_offset(regular)
    return _usual(times, gaps, where) if months is None else months


def _months(times: Any) -> Any | None:
    """The offset of so many months whose steps reach all dates, if at least half of the steps have one."""
    number = 12 * times.year + times.month
    months = math.gcd(*(number[1:] - number[:-1]).tolist())
    if not months:
        return None
    day = 31 if times.is_month_end.all() else int(times.day.max())  # the 31st is the last day of any month
    offset = pd.DateOffset(months=months, day=day)
    every = pd.date_range(times[0], times[-1], freq=offset)
    return offset if len(every) <= 2 * len(times) and times.isin(every).all() else None


def _usual(times: Any, gaps: Any, where: str) -> Any:
    """The most frequent of the gaps, if all others are its multiples."""
    usual = pd.Series(gaps).mode().iloc[0]
    odd = (gaps % usual) != pd.Timedelta(0)
    if odd.any() or (times[-1] - times[0]) / usual + 1 > 2 * len(times):
        row = int((odd if odd.any() else gaps != usual).argmax()) + 1
        zone = "; days of local time have 23 to 25 hours: write dates without an offset" if times.tz is not None else ""
        raise InputError(
            f"{where} mixes frequencies: most steps are {usual}, but {times[row]} follows {times[row - 1]}; bring it "
            f"to one frequency first{zone}"
        )
    return pd.tseries.frequencies.to_offset(usual)


def step_name(step: Any) -> str:
    """What a step is called, as in 'h', 'MS' or '3 months'."""
    months = getattr(step, "kwds", {}).get("months")
    return str(step.freqstr) if months is None else f"{months} month{'s' if months > 1 else ''}"
