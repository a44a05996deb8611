"""Series on disk: a CSV file with a date column, read, checked and named where it is broken."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor

from core.errors import InputError, MissingError, listed
from timeseries.dates import read_dates, regular_step

__all__ = ["Fill", "Series", "as_series", "read_series"]

Fill = Literal["previous", "linear"]


@dataclass(frozen=True)
class Series:
    """Channels over regular time steps.

    Attributes:
        values: (T, C) float32, in the units of the file, without gaps.
        times: ``pandas.DatetimeIndex`` of length T, rising in steps of ``step``.
        step: a pandas offset: what lies between two times.
        channels: C names.
    """

    values: Tensor
    times: Any
    step: Any
    channels: list[str]

    def __len__(self) -> int:
        """Number of time steps."""
        return len(self.values)

    def ahead(self, steps: int) -> Any:
        """The times of the next ``steps`` steps after the last one."""
        return pd.date_range(self.times[-1], periods=steps + 1, freq=self.step)[1:]


def read_series(
    path: Path, *, date: str = "date", channels: Sequence[str] | None = None, fill: Fill | None = None
) -> Series:
    """A CSV file with one row a time step: a date column, and numbers in all others.

    Args:
        path: the file.
        date: name of the column with the moments: words in any form that pandas parses, or whole numbers of the form
            YYYY, YYYYMM or YYYYMMDD. Words with several offsets from UTC, as where clocks change, become UTC.
        channels: columns to read, in this order; by default all others.
        fill: what takes the place of missing values and of missing rows: the value before ('previous'), or a line
            between the neighbours ('linear'). How many there are is printed. None refuses them.

    Raises:
        MissingError: if there is no such file.
        InputError: if it is not such a table, or its dates are not regular.
    """
    if not path.is_file():
        raise MissingError(f"there is no series {path}; expected a CSV file with a column {date!r} and one a channel")
    try:
        table = pd.read_csv(path, skipinitialspace=True)
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path} is not a CSV file in UTF-8: {error}") from error
    if date not in table.columns:
        raise InputError(f"{path} has the columns {listed(table.columns)}; none is called {date!r}: set --data.date")
    absent = [name for name in channels or () if name not in table.columns or name == date]
    if absent:
        raise InputError(f"{path} has no channel {listed(absent)}; it has {listed(table.columns.drop(date))}")
    times = read_dates(table[date], str(path))
    values = table[list(channels)] if channels else table.drop(columns=date)
    words = [str(name) for name in values.columns if not pd.api.types.is_numeric_dtype(values[name])]
    if words:
        raise InputError(f"{path}: {listed(words)} holds no numbers; name the channels that do with --data.channels")
    if not len(values.columns):
        raise InputError(f"{path} has no column beside {date!r}; expected one column of numbers for each channel")
    return as_series(values.set_axis(times, axis=0), str(path), fill=fill)


def as_series(table: Any, where: str, *, fill: Fill | None = None) -> Series:
    """A series from a ``pandas.DataFrame`` of numbers whose index are moments.

    Args:
        table: one row a time step, one column a channel.
        where: what it is called in messages.
        fill: as for :func:`read_series`.

    Raises:
        InputError: if the moments are not regular, or a value is missing and not to be filled.
    """
    step = regular_step(table.index, where)
    table = _with_all_rows(table, step, where, fill)
    infinite = table.columns[table.isin([float("inf"), float("-inf")]).any()]
    if len(infinite):
        raise InputError(f"{where} holds infinity in {listed(infinite)}; correct it")
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
    values = torch.from_numpy(table.to_numpy(dtype="float32", copy=True))
    return Series(values, table.index, step, [str(name) for name in table.columns])


def _with_all_rows(table: Any, step: Any, where: str, fill: Fill | None) -> Any:
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
