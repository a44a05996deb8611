"""Data sets on disk: CSV files, and the weather stations of the papers' global system."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
import torch

from core.errors import InputError, MissingError
from timeseries.data import (
    MarkedHistory,
    SeriesDataModule,
    SeriesSpec,
    WindowDataModule,
    Windows,
    WindowSet,
    float_rows,
)
from timeseries.feature_map import time_marks
from timeseries.files import Series

__all__ = ["CSVSeries", "GlobalSpec", "GlobalWeather"]

SPLITS = ("train", "val", "test")
"""The names of the splits in the published arrays."""


class CSVSeries(SeriesDataModule):
    """A CSV file: a date column, and one column of numbers for each channel.

    ETT, Weather, Electricity, Traffic and ILI are published in this layout. Rows may have any constant frequency, such
    as minutes, hours, days, business days, weeks or months.

    Args:
        path: the file; not needed for ``predict`` with ``predict_path``.
        channels: columns to read, in this order; by default all but the date, the series column, and the columns that
            are known ahead.
        series_column: column that names the series of each row, for a file with several series one below the other.
        kwargs: arguments of :class:`SeriesDataModule`.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        channels: Sequence[str] | None = None,
        series_column: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.path = Path(path) if path else None
        self.columns = channels
        self.series_column = series_column

    def read(self) -> Series:
        """Read the series of the file, or the first one.

        Raises:
            MissingError: if no file was given, or it is missing.
            InputError: if the file cannot be used.
        """
        return self.read_all()[0]

    def read_all(self) -> list[Series]:
        """Read all series of the file.

        Raises:
            MissingError: if no file was given, or it is missing.
            InputError: if the file cannot be used.
        """
        if self.path is None:
            raise MissingError("no series was given; type --data.path FILE, a CSV file with a date column")
        return _of_one_dtype(self.read_file(self.path))


def _of_one_dtype(every: list[Series]) -> list[Series]:
    """Return the series in float64 if one of them needs it, since batches mix them; the known columns alike."""
    if any(series.values.dtype == torch.float64 for series in every):
        every = [replace(series, values=series.values.double()) for series in every]
    if any(series.known is not None and series.known.dtype == torch.float64 for series in every):
        every = [replace(series, known=None if series.known is None else series.known.double()) for series in every]
    return every


@dataclass(frozen=True)
class GlobalSpec(SeriesSpec):
    """What the global forecaster must know about its stations.

    Attributes:
        seq_len: L.
        pred_len: T.
        label_len: number of last steps of the history that the decoder sees too.
        variable: 'temp' or 'wind'.
        value_scale: factor from the quantity to the stored values.
        places: K coordinates of each of N stations, in the order of the tree's leaves.
    """

    seq_len: int = 48
    pred_len: int = 24
    label_len: int = 24
    variable: Literal["temp", "wind"] = "temp"
    value_scale: float = 10.0
    places: tuple[tuple[float, ...], ...] = ()


class GlobalWeather(WindowDataModule):
    """Global temperature or wind speed in the published layout, with one array for each split.

    For each split in 'train', 'val' and 'test', ``root`` holds ``<variable>_global_hourly_<split>.npy``, (rows, N) or
    (rows, N, 1), and ``data_time_<split>.npy`` with a timestamp for each row. ``stations_sorted.npy`` (N, K) holds the
    coordinates of the stations, which stand in the order of the tree's leaves. The arrays of Corrformer's authors have
    N = 3850 and K = 3 (Code Ocean capsule 0341365), and their values are ten times the quantity.

    Batches are (:class:`timeseries.data.MarkedHistory`, horizon (B, T, N)) in stored values. ``predict`` continues the
    test split.

    Args:
        root: the folder.
        variable: 'temp' or 'wind'.
        seq_len: steps of history.
        pred_len: steps to forecast.
        label_len: number of last steps of the history that the decoder sees too.
        period: steps of a season, for the baseline that repeats the last one.
        value_scale: factor from the quantity to the stored values.
        batch_size: windows for each process and step.
        kwargs: the other arguments of :class:`core.data.module.DataModule`.

    Raises:
        InputError: if a number is out of range, or the variable is unknown.
    """

    def __init__(
        self,
        root: str,
        *,
        variable: Literal["temp", "wind"] = "temp",
        seq_len: int = 48,
        pred_len: int = 24,
        label_len: int = 24,
        period: int = 24,
        value_scale: float = 10.0,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(seq_len=seq_len, pred_len=pred_len, period=period, batch_size=batch_size, **kwargs)
        if variable not in ("temp", "wind"):
            raise InputError(f"variable={variable!r}; expected 'temp' or 'wind'")
        if not 0 <= label_len <= seq_len or value_scale <= 0:
            raise InputError(
                f"seq_len={seq_len}, label_len={label_len}, value_scale={value_scale}; expected label_len up to "
                "seq_len, and a positive scale"
            )
        self.root = Path(root)
        self.variable = variable
        self.label_len = label_len
        self.value_scale = value_scale

    @classmethod
    def from_spec(cls, spec: GlobalSpec, *, batch_size: int, num_workers: int) -> Self:
        """Build a data module that reads folders as a model with this spec needs them."""
        return cls(
            root=".",
            variable=spec.variable,
            seq_len=spec.seq_len,
            pred_len=spec.pred_len,
            label_len=spec.label_len,
            period=spec.period,
            value_scale=spec.value_scale,
            batch_size=batch_size,
            num_workers=num_workers,
        )

    def settings(self) -> GlobalSpec:
        """Return the options of this data module, without the stations."""
        return GlobalSpec(
            seq_len=self.seq_len,
            pred_len=self.pred_len,
            label_len=self.label_len,
            period=self.period,
            variable=self.variable,
            value_scale=self.value_scale,
        )

    def spec(self) -> GlobalSpec:
        """Return the settings with the numbers of the stations as their names, and their coordinates."""
        self.check_data()
        stations = self.read_stations()
        return replace(
            self.settings(),
            channels=tuple(f"station_{i}" for i in range(len(stations))),
            places=tuple(tuple(place) for place in stations.tolist()),
        )

    def windows(self) -> tuple[WindowSet, WindowSet, WindowSet]:
        """Return the windows of each split; the arrays stay on disk."""
        train, val, test = (self._split_windows(split) for split in SPLITS)
        return train, val, test

    def continuations(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return the last history of the test split, and the timestamps of the steps that follow."""
        values, times = self.read_split("test")
        step = times[-1] - times[-2]
        ahead = pd.DatetimeIndex([times[-1] + step * (i + 1) for i in range(self.pred_len)])

        history = torch.from_numpy(float_rows(values[-self.seq_len :]))
        marks = time_marks(times[-self.seq_len :])
        marks_ahead = torch.cat([marks[self.seq_len - self.label_len :], time_marks(ahead)])
        return [(MarkedHistory(history, marks, marks_ahead), [{"date": str(time)} for time in ahead])]

    def use_sources(self, given: Any) -> None:
        """Continue the test split of another folder in the published layout.

        Raises:
            MissingError: if an array is missing.
            InputError: if ``given`` is no path, or an array cannot be used.
        """
        if not isinstance(given, str | Path):
            raise InputError(f"cannot continue {type(given).__name__}; give a folder in the published layout")
        self.root = Path(given)
        self.predict_set = self.continuations()  # type: ignore[assignment]

    # Reading

    def _split_windows(self, split: str) -> Windows:
        values, times = self.read_split(split)
        return Windows(
            values,
            self.seq_len,
            self.pred_len,
            marks_TM=time_marks(times),
            label_len=self.label_len,
            times=times,
        )

    def read_stations(self) -> np.ndarray:
        """Read the coordinates of the stations, (N, K) float64."""
        stations = self._array("stations_sorted.npy")
        if stations.ndim != 2 or not np.isfinite(stations).all():
            raise InputError(f"{self.root / 'stations_sorted.npy'} is {stations.shape}; expected (N, K), all finite")
        return np.array(stations, dtype=np.float64)

    def read_split(self, split: str) -> tuple[np.ndarray, Any]:
        """Return the values (rows, N) of a split, which stay on disk, and their ``pandas.DatetimeIndex``."""
        stations = len(self.read_stations())
        name = f"{self.variable}_global_hourly_{split}.npy"
        values = self._array(name)
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        timestamps = self._array(f"data_time_{split}.npy")

        if values.ndim != 2 or values.shape[1] != stations or len(values) != len(timestamps):
            raise InputError(
                f"{self.root / name} is {values.shape}, with {len(timestamps)} timestamps and {stations} stations; "
                "expected (timestamps, stations)"
            )
        if len(values) < self.seq_len + self.pred_len:
            raise InputError(
                f"the {split} split has {len(values)} steps; seq_len={self.seq_len} and pred_len={self.pred_len} need "
                f"{self.seq_len + self.pred_len}"
            )

        for first in range(0, len(values), 1000):  # in parts, since the published arrays have half a gigabyte
            if not np.isfinite(values[first : first + 1000]).all():
                raise InputError(f"{self.root / name} holds NaN or infinity; replace them first")
        return values, self._timestamps(timestamps, split)

    def _timestamps(self, stored: np.ndarray, split: str) -> Any:
        try:
            times = pd.DatetimeIndex(pd.to_datetime(np.asarray(stored).ravel()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.root}/data_time_{split}.npy holds no timestamps: {error}") from error
        if times.has_duplicates or not times.is_monotonic_increasing:
            raise InputError(
                f"the timestamps in {self.root}/data_time_{split}.npy do not rise; expected each one once, in order"
            )
        return times

    def _array(self, name: str) -> np.ndarray:
        path = self.root / name
        if not path.is_file():
            raise MissingError(f"there is no {path}; expected the arrays of Corrformer's authors in {self.root}")
        try:
            array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(
                f"{path} is no array of plain numbers or timestamps: {error}. Arrays of Python objects are not opened, "
                "since that could run code; convert the file with .astype('datetime64[s]') in an environment you trust"
            ) from error
        return array
