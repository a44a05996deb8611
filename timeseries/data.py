"""The base of all data modules of series: windows of history and horizon, splits in time, and prediction.

Shapes: L steps of history, T steps of the horizon, C channels, K covariates, M calendar features of the global system.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError, MissingError, listed
from timeseries.covariates import CalendarFeature, Covariates
from timeseries.feature_map import dominant_period
from timeseries.files import Fill, Series, narrowed, read_group, read_series, step_name

__all__ = [
    "HistoryAndCovariates",
    "MarkedHistory",
    "Place",
    "SeriesDataModule",
    "SeriesSpec",
    "WindowDataModule",
    "WindowSet",
    "Windows",
    "float_rows",
    "numbered_channels",
    "split_rows",
]

Split = tuple[float, float, float]


@dataclass(frozen=True)
class SeriesSpec(DataSpec):
    """What a forecaster must know about its series.

    Attributes:
        channels: C names, in the order of the columns.
        seq_len: L.
        pred_len: T.
        period: steps of a season, such as 24 hours.
        mean: C means over the training rows, in the units of the file; empty until they are measured.
        std: C standard deviations over the training rows, in the units of the file.
        date: name of the date column of a file.
        fill: how missing values of a file are filled.
        in_order: whether the rows of a file are taken in order, whatever their dates.
        series_column: name of the column of a file that tells several series apart; None for a single series.
        known: columns that are known ahead, see :class:`timeseries.covariates.Covariates`.
        calendar: features of the timestamps.
        holidays: country of the holidays.
        known_mean: mean of each known column over the training rows; empty until they are measured.
        known_std: standard deviation of each known column over the training rows.
    """

    channels: tuple[str, ...] = ()
    seq_len: int = 96
    pred_len: int = 96
    period: int = 24
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    date: str = "date"
    fill: Fill | None = None
    in_order: bool = False
    series_column: str | None = None
    known: tuple[str, ...] = ()
    calendar: tuple[CalendarFeature, ...] = ()
    holidays: str | None = None
    known_mean: tuple[float, ...] = ()
    known_std: tuple[float, ...] = ()

    @property
    def covariates(self) -> Covariates:
        """The covariates, in their order."""
        return Covariates(self.known, self.calendar, self.holidays)


def numbered_channels(count: int) -> tuple[str, ...]:
    """Return the channel names 'channel_0', 'channel_1', ... for a model whose data are not known."""
    return tuple(f"channel_{i}" for i in range(count))


class MarkedHistory(NamedTuple):
    """A history with its calendar features: the inputs of the global forecaster, for one sample or a batch.

    Attributes:
        history: values (..., L, C).
        marks: features (..., L, M) of the steps of the history.
        marks_ahead: features (..., label_len + T, M) of the last steps of the history and of the steps to come.
    """

    history: Tensor
    marks: Tensor
    marks_ahead: Tensor


class HistoryAndCovariates(NamedTuple):
    """A history with its covariates: the inputs of a forecaster that reads them, for one sample or a batch.

    Attributes:
        history: values (..., L, C) in the units of the file.
        covariates: (..., L + T, K) of the steps of the history and of the steps to come, known columns in the units of
            the file.
    """

    history: Tensor
    covariates: Tensor


class Place(NamedTuple):
    """Where a window lies.

    Attributes:
        series: index of its series among those of the split.
        name: name of the series; empty for the only one.
        times: ``pandas.DatetimeIndex`` of its L + T steps; None if it has no timestamps.
    """

    series: int
    name: str
    times: Any | None


class Windows(Dataset[tuple[Any, Tensor]]):
    """All windows of consecutive rows, one step apart: (history (L, C), horizon (T, C)).

    They are float32, or float64 if the type of the rows is wider than float32.

    With covariates, the first element is a :class:`HistoryAndCovariates`. With calendar features of the global system,
    it is a :class:`MarkedHistory`. Its ``marks_ahead`` begin ``label_len`` steps before the horizon, where Corrformer's
    decoder begins.

    Args:
        values_TC: rows of any numeric type; the array may lie on disk.
        seq_len: L.
        pred_len: T.
        marks_TM: calendar features of each row, if the model needs them.
        label_len: number of last steps of the history that ``marks_ahead`` covers too.
        covariates_TK: covariates of each row, if the model needs them.
        times: ``pandas.DatetimeIndex`` of the rows, if they have timestamps.
        name: name of the series.
    """

    def __init__(
        self,
        values_TC: np.ndarray,
        seq_len: int,
        pred_len: int,
        *,
        marks_TM: Tensor | None = None,
        label_len: int = 0,
        covariates_TK: Tensor | None = None,
        times: Any | None = None,
        name: str = "",
    ) -> None:
        self.values = values_TC
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.marks = marks_TM
        self.label_len = label_len
        self.covariates = covariates_TK
        self.times = times
        self.name = name

    def __len__(self) -> int:
        """Number of windows."""
        return max(0, len(self.values) - self.seq_len - self.pred_len + 1)

    def __getitem__(self, index: int) -> tuple[Any, Tensor]:
        """Return the window that begins at a row."""
        middle = index + self.seq_len
        end = middle + self.pred_len
        rows = torch.from_numpy(float_rows(self.values[index:end]))
        history = rows[: self.seq_len]
        horizon = rows[self.seq_len :]
        if self.covariates is not None:
            return HistoryAndCovariates(history, self.covariates[index:end]), horizon
        if self.marks is None:
            return history, horizon

        marks = self.marks[index:middle]
        marks_ahead = self.marks[middle - self.label_len : end]
        return MarkedHistory(history, marks, marks_ahead), horizon


WindowSet = Windows | ConcatDataset[tuple[Any, Tensor]]
"""The windows of one series, or those of several, one series after the other."""


def window_parts(windows: WindowSet) -> list[Windows]:
    """Return the windows of each series."""
    return [windows] if isinstance(windows, Windows) else list(windows.datasets)  # type: ignore[arg-type]


def place_of(windows: WindowSet, index: int) -> Place:
    """Return where a window of a split lies."""
    series = 0 if isinstance(windows, Windows) else bisect_right(windows.cumulative_sizes, index)
    part = window_parts(windows)[series]
    if series and isinstance(windows, ConcatDataset):
        index -= windows.cumulative_sizes[series - 1]
    times = None if part.times is None else part.times[index : index + part.seq_len + part.pred_len]
    return Place(series, part.name, times)


def float_rows(values_TC: np.ndarray) -> np.ndarray:
    """Return a copy of some rows in float32, or in float64 if their type is wider."""
    return np.array(values_TC, dtype=np.result_type(values_TC.dtype, np.float32))


def collate_windows(samples: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Collate windows; in prediction, the targets are the names of the steps to come, which stay a list."""
    inputs = [raw for raw, _ in samples]
    raw: Any
    if isinstance(inputs[0], MarkedHistory | HistoryAndCovariates):
        raw = type(inputs[0])(*(torch.stack(parts) for parts in zip(*inputs, strict=True)))
    else:
        raw = torch.stack(inputs)

    targets = [target for _, target in samples]
    return raw, torch.stack(targets) if isinstance(targets[0], Tensor) else targets


class WindowDataModule(DataModule):
    """Base of the data modules of series: windows over the training, validation and test rows.

    Batches are (history (B, L, C), horizon (B, T, C)) in the units of the data, float32, or float64 for channels that
    are too far from zero for float32. A data set says in
    :meth:`windows` which rows belong to which split, and in :meth:`continuations` what ``predict`` continues.

    Args:
        seq_len: steps of history.
        pred_len: steps to forecast.
        period: steps of a season, such as 24 hours; one row of the map, and what the seasonal baseline repeats.
        batch_size: windows for each process and step.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.

    Raises:
        InputError: if a length is below 1.
    """

    def __init__(
        self,
        *,
        seq_len: int = 96,
        pred_len: int = 96,
        period: int = 24,
        batch_size: int = 64,
        num_workers: int = 2,
        drop_last: bool = True,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers, drop_last=drop_last)
        if min(seq_len, pred_len, period) < 1:
            raise InputError(f"seq_len={seq_len}, pred_len={pred_len}, period={period}; all must be at least 1")
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.period = period
        self.channels: list[str] = []
        self.collate = collate_windows
        self._windows: tuple[WindowSet, WindowSet, WindowSet] | None = None

    def windows(self) -> tuple[WindowSet, WindowSet, WindowSet]:
        """Return the windows of the training, validation and test rows; :meth:`read_windows` calls this once.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """
        raise NotImplementedError

    def continuations(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return the samples of ``predict``: inputs of the model, and the names of the T steps that follow.

        The name of a step holds the first columns of its row in ``predictions.csv``, as in ``{"date": "2024-01-01"}``.
        """
        raise NotImplementedError

    def read_windows(self) -> tuple[WindowSet, WindowSet, WindowSet]:
        """Return the windows of all splits, which are read at the first call."""
        if self._windows is None:
            self._windows = self.windows()
        return self._windows

    def training_parts(self) -> list[np.ndarray]:
        """Return the training rows (T, C) of each series in the units of the data, for the baselines."""
        return [part.values for part in window_parts(self.read_windows()[0])]

    def training_rows(self) -> np.ndarray:
        """Return the training rows (T, C) of all series, one after the other, in the units of the data."""
        parts = self.training_parts()
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def season(self) -> int:
        """Return the number of steps after which the data repeat, for the scale of the error MASE."""
        return self.period

    def has_one_sign(self) -> np.ndarray:
        """Return for each channel whether no value is zero and all have the same sign, (C,) bool."""
        return np.zeros(self.training_parts()[0].shape[1], dtype=bool)

    def series_names(self) -> list[str]:
        """Return the names of the series; one empty name for a single series."""
        return [part.name for part in window_parts(self.read_windows()[0])]

    def series_of(self, split: str, indices: Sequence[int]) -> Tensor:
        """Return the index of the series of some windows of a split, (windows,) int64."""
        windows = self.val_set if split == "val" else self.test_set
        ends = windows.cumulative_sizes if isinstance(windows, ConcatDataset) else []
        return torch.tensor([bisect_right(ends, i) if ends else 0 for i in indices])

    def place(self, split: str, index: int) -> Place:
        """Return where a window of a split lies.

        Args:
            split: 'val' or 'test', or 'predict' for a series to continue.
            index: index of the window in the split.
        """
        windows = self.val_set if split == "val" else self.test_set
        if split == "predict" or not isinstance(windows, Windows | ConcatDataset):
            return Place(0, "", None)
        return place_of(windows, index)

    def check_data(self) -> None:
        """Read the data, so that errors show before training starts."""
        self.read_windows()

    def setup(self, stage: str | None = None) -> None:
        """Fill all splits; what ``predict`` continues is read when it is needed."""
        train, val, test = self.read_windows()
        self.train_set = train
        self.val_set = val
        self.test_set = test
        if stage == "predict":
            self.predict_set = self.continuations()  # type: ignore[assignment]

    def predict_dataloader(self) -> DataLoader[Any]:
        """Return a loader of the series to continue."""
        if self.predict_set is None:
            self.predict_set = self.continuations()  # type: ignore[assignment]
        return super().predict_dataloader()


class _Source(NamedTuple):
    """A series to continue.

    Attributes:
        file: name of the file, or of the array.
        inputs: the last rows (L, C), or those with covariates.
        steps: names of the steps that follow, see :meth:`WindowDataModule.continuations`.
        channels: names of the channels; empty for an array.
        place: name and timestamps.
    """

    file: str
    inputs: Tensor | HistoryAndCovariates
    steps: list[dict[str, Any]]
    channels: list[str]
    place: Place


class SeriesDataModule(WindowDataModule):
    """Base of the data modules of a single series, which a data set returns in :meth:`read`, or of several.

    Validation and test windows take their history from the rows before their split, so that every row of a split is
    forecast. ``predict`` continues the series, or the files that it is given, after the last row. Several series
    (:meth:`read_all`) are split one by one, and no window crosses from one to the next.

    Args:
        split: shares or numbers of the rows for training, validation and test, one after the other.
        fill: how missing values are filled: 'previous' or 'linear'; None refuses them.
        in_order: take the rows of a file in order as regular steps, whatever their dates, as the field's long-term
            protocols do.
        predict_path: a CSV file, or a folder of them, to continue in ``predict``; by default the series itself.
        date: name of the date column of a file.
        known: columns that are known ahead, such as [temperature_forecast]. The forecaster reads them for the history
            and for the horizon, which later rows of the file hold; there, the channels are left empty.
        calendar: what the forecaster reads of the timestamps, for the history and for the horizon: some of 'hour' (of
            the day), 'weekday', and 'month' (how far the year has gone).
        holidays: country of the public holidays that the forecaster reads, such as DE, or with a subdivision DE-BY.
        kwargs: arguments of :class:`WindowDataModule`.
    """

    columns: Sequence[str] | None = None
    """Columns of a file to read, in this order; None for all but the date."""
    series_column: str | None = None
    """Column of a file that tells several series apart."""

    def __init__(
        self,
        *,
        split: Split = (0.7, 0.1, 0.2),
        fill: Fill | None = None,
        in_order: bool = False,
        predict_path: str | None = None,
        date: str = "date",
        known: Sequence[str] = (),
        calendar: Sequence[CalendarFeature] = (),
        holidays: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.split = split
        self.fill = fill
        self.in_order = in_order
        self.predict_path = Path(predict_path) if predict_path else None
        self.date = date
        self.covariates = Covariates(tuple(known), tuple(calendar), holidays)
        self._series: list[Series] | None = None
        self._season: int | None = None
        self._sources: list[_Source] | None = None
        self._continued: list[_Source] = []

    @classmethod
    def from_spec(cls, spec: SeriesSpec, *, batch_size: int, num_workers: int) -> Self:
        """Build a data module that reads files as a model with this spec needs them."""
        data = cls(
            seq_len=spec.seq_len,
            pred_len=spec.pred_len,
            period=spec.period,
            date=spec.date,
            fill=spec.fill,
            in_order=spec.in_order,
            known=spec.known,
            calendar=spec.calendar,
            holidays=spec.holidays,
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if spec.channels != numbered_channels(len(spec.channels)):
            data.columns = spec.channels
        data.series_column = spec.series_column
        return data

    def read(self) -> Series:
        """Return the whole series; :meth:`read_all` calls this.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """
        raise NotImplementedError

    def read_all(self) -> list[Series]:
        """Return all series, of which most data sets have one; :meth:`series` calls this once."""
        return [self.read()]

    def read_file(self, path: Path) -> list[Series]:
        """Read the series of a CSV file with the options of this data module; see :mod:`timeseries.files`."""
        options: dict[str, Any] = {
            "date": self.date,
            "channels": self.columns,
            "fill": self.fill,
            "in_order": self.in_order,
            "known": self.covariates.known,
        }
        if self.series_column is None:
            return [read_series(path, **options)]
        return read_group(path, series_column=self.series_column, shortest=self.seq_len, **options)

    # What a model must know about the data

    def settings(self) -> SeriesSpec:
        """Return the options of this data module; without channels, unless their names are an option too."""
        return SeriesSpec(
            channels=tuple(self.columns or ()),
            seq_len=self.seq_len,
            pred_len=self.pred_len,
            period=self.period,
            date=self.date,
            fill=self.fill,
            in_order=self.in_order,
            series_column=self.series_column,
            known=self.covariates.known,
            calendar=self.covariates.calendar,
            holidays=self.covariates.holidays,
        )

    def spec(self) -> SeriesSpec:
        """Return the settings with the names of the channels, and their statistics over the training rows.

        The variance divides by the number of rows, as in the field's benchmarks. Several series have common statistics.
        """
        train = torch.from_numpy(self.training_rows()).double()
        spec = replace(
            self.settings(),
            channels=tuple(self.series()[0].channels),
            mean=tuple(train.mean(dim=0).tolist()),
            std=tuple(train.std(dim=0, correction=0).tolist()),
        )
        if not self.covariates.known:
            return spec

        parts = [part.covariates for part in window_parts(self.read_windows()[0])]
        known = torch.cat([part[:, : len(spec.known)].double() for part in parts if part is not None])
        std = known.std(dim=0, correction=0)
        std[std == 0] = 1  # a column that is constant in training tells nothing there
        return replace(spec, known_mean=tuple(known.mean(dim=0).tolist()), known_std=tuple(std.tolist()))

    def measure(self) -> dict[str, Any]:
        """Measure the dominant period of the training rows, for ``--data.period``."""
        longest, period = self._dominant_period()
        step = step_name(self.series()[0].step)
        if period is None:
            return {
                "dominant period": f"none; no period of 2 to {longest} steps of {step} stands out of red noise "
                f"(--data.period is {self.period})"
            }
        return {"dominant period": f"{period} steps of {step}; set --data.period {period}"}

    def _dominant_period(self) -> tuple[int, int | None]:
        """Return the longest period to consider, and the dominant one of the series with the most training rows."""
        train = torch.from_numpy(max(self.training_parts(), key=len))
        longest = min(len(train) // 2, self.seq_len)
        return longest, dominant_period(train, longest)

    def season(self) -> int:
        """Return the dominant period of the training rows, as ``lightning stats`` finds it, or 1 if there is none."""
        if self._season is None:
            rows = max(map(len, self.training_parts()))
            can_be_found = min(rows // 2, self.seq_len) >= 2
            self._season = (self._dominant_period()[1] or 1) if can_be_found else 1
        return self._season

    def has_one_sign(self) -> np.ndarray:
        """Return for each channel whether no value is zero and all have the same sign, (C,) bool."""
        lowest = torch.stack([series.values.amin(dim=0) for series in self.series()]).amin(dim=0)
        highest = torch.stack([series.values.amax(dim=0) for series in self.series()]).amax(dim=0)
        return ((lowest > 0) | (highest < 0)).numpy()

    # The splits

    def series(self) -> list[Series]:
        """Return all series, which are read at the first call."""
        if self._series is None:
            self._series = self.read_all()
        return self._series

    def windows(self) -> tuple[WindowSet, WindowSet, WindowSet]:
        """Return the windows of each split; those of validation and test begin ``seq_len`` rows before their split."""
        every = self.series()
        counts = [self._split(series) for series in every]
        short = [series.name for series, count in zip(every, counts, strict=True) if count is None]
        kept = [(series, count) for series, count in zip(every, counts, strict=True) if count is not None]
        if not kept:
            raise InputError(
                f"each of the {len(every)} series has a split that is too short for one window of "
                f"seq_len={self.seq_len} and pred_len={self.pred_len}; choose smaller ones or another split"
            )
        if short:
            rank_zero_warn(
                f"{len(short)} series have a split that is too short for one window of seq_len={self.seq_len} and "
                f"pred_len={self.pred_len}; they are left out: {listed(short)}"
            )
        self._series = [series for series, _ in kept]
        self.channels = kept[0][0].channels

        parts = [self._split_windows(series, *count) for series, count in kept]
        train, val, test = ([part[i] for part in parts] for i in range(3))
        constant = [self.channels[i] for i in np.flatnonzero(_never_changes([part.values for part in train]))]
        if constant:
            raise InputError(
                f"the training rows of {listed(constant)} never change; leave constant channels out with "
                "--data.channels"
            )
        for part in train:
            self.covariates.check_steps(part.times, part.name or "the series")
        if len(parts) == 1:
            return parts[0]
        return ConcatDataset(train), ConcatDataset(val), ConcatDataset(test)

    def _split_windows(self, series: Series, train: int, val: int, test: int) -> tuple[Windows, Windows, Windows]:
        """Return the windows of one series in each split, of so many rows."""
        values = series.values.numpy()
        covariates = self._covariates_of(series)

        def rows(first: int, end: int) -> Windows:
            return Windows(
                values[first:end],
                self.seq_len,
                self.pred_len,
                covariates_TK=None if covariates is None else covariates[first:end],
                times=series.times[first:end],
                name=series.name,
            )

        first_val = train - self.seq_len
        first_test = train + val - self.seq_len
        return rows(0, train), rows(first_val, train + val), rows(first_test, train + val + test)

    def _split(self, series: Series) -> tuple[int, int, int] | None:
        """Return the numbers of rows of each split, or None for one of several series that is too short.

        Raises:
            InputError: if the only series is too short.
        """
        is_one_of_several = bool(series.name)
        if is_one_of_several and sum(self.split) > max(len(series), 1.5):
            return None
        counts = split_rows(len(series), self.split)
        needed = (self.seq_len + self.pred_len, self.pred_len, self.pred_len)
        for name, rows, least in zip(("training", "validation", "test"), counts, needed, strict=True):
            if rows >= least:
                continue
            if is_one_of_several:
                return None
            raise InputError(
                f"the {name} split has {rows} of the {len(series)} rows, too few for one window of "
                f"seq_len={self.seq_len} and pred_len={self.pred_len}, which needs {least}; choose smaller ones or "
                "another split"
            )
        return counts

    # Prediction

    @property
    def predicts_files(self) -> bool:
        """Whether this is a run of ``predict`` with a ``predict_path``."""
        return self.predict_path is not None and self.trainer is not None and bool(self.trainer.predicting)

    def check_data(self) -> None:
        """Read the files to continue, or the whole series, so that errors show before the run starts.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """
        if self.predicts_files:
            self.use_sources(self.predict_path)
        else:
            super().check_data()

    def setup(self, stage: str | None = None) -> None:
        """Fill all splits; for ``predict`` with a path, read only the files there."""
        if stage == "predict" and self.predict_path is not None:
            self.use_sources(self.predict_path)
        else:
            super().setup(stage)

    def use_sources(self, given: Any) -> None:
        """Set what ``predict`` continues, in place of ``predict_path``.

        Args:
            given: a file, a folder of files, an array (rows, C) in the units of the files, or a list of these. Each
                series needs at least ``seq_len`` rows.

        Raises:
            MissingError: if there is no such file.
            InputError: if a file or an array cannot be used.
        """
        self._sources = []
        for item in given if isinstance(given, list | tuple) else [given]:
            if isinstance(item, str | Path):
                self._sources += self._read_sources(Path(item))
            else:
                self._sources.append(self._array_source(item, f"array {len(self._sources)}"))
        self.predict_set = self.continuations()  # type: ignore[assignment]

    def continuations(self) -> list[tuple[Any, list[dict[str, Any]]]]:
        """Return the last rows of each series; with several files, the steps are named by their file too."""
        sources = self._sources
        if sources is None:
            sources = [self._series_source(series, "the series") for series in self.series()]

        self.channels = sources[0].channels
        for source in sources[1:]:
            if source.channels != self.channels:
                raise InputError(
                    f"{source.file} has the channels {listed(source.channels)}, {sources[0].file} has "
                    f"{listed(self.channels)}; name the columns to read with --data.channels"
                )

        self._continued = sources
        if len({source.file for source in sources}) == 1:
            return [(source.inputs, source.steps) for source in sources]
        return [(source.inputs, [{"file": source.file, **step} for step in source.steps]) for source in sources]

    def place(self, split: str, index: int) -> Place:
        """Return where a window of a split, or a series to continue, lies."""
        if split != "predict":
            return super().place(split, index)
        return self._continued[index].place if index < len(self._continued) else Place(0, "", None)

    def _read_sources(self, path: Path) -> list[_Source]:
        """Read a CSV file, or all CSV files of a folder."""
        files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not files:
            raise MissingError(f"there is no CSV file in {path}")
        return [self._series_source(series, str(file)) for file in files for series in self.read_file(file)]

    def _series_source(self, series: Series, file: str) -> _Source:
        self._check_rows(len(series), file)
        history = series.values[-self.seq_len :]
        covariates = self._covariates_ahead(series, file)
        ahead = series.ahead(self.pred_len)
        name = {self.series_column: series.name} if self.series_column else {}
        return _Source(
            file,
            history if covariates is None else HistoryAndCovariates(history, covariates),
            [{**name, "date": str(time)} for time in ahead],
            series.channels,
            Place(0, series.name, series.times[-self.seq_len :].append(ahead)),
        )

    def _covariates_of(self, series: Series) -> Tensor | None:
        """Return the covariates (T, K) of all rows of a series, or None if there are none."""
        if not self.covariates.names:
            return None
        known = None if series.known is None else series.known[: len(series)]
        return self.covariates.features(series.times, known)

    def _covariates_ahead(self, series: Series, file: str) -> Tensor | None:
        """Return the covariates (L + T, K) of the last rows and of the horizon, or None if there are none."""
        if not self.covariates.names:
            return None
        ahead = series.ahead(self.pred_len)
        first = len(series) - self.seq_len
        end = len(series) + self.pred_len
        known = series.known
        if known is not None and len(known) < end:
            last = ([series.times[-1], *ahead])[len(known) - len(series)]
            raise InputError(
                f"{' '.join([file, series.name]).strip()}: the horizon of {self.pred_len} steps ends at {ahead[-1]}, "
                f"beyond the covariates {listed(self.covariates.known)}, which end at {last}; append rows with the "
                "dates and known values of the horizon, and leave the channels empty there"
            )
        times = series.times[first:].append(ahead)
        return self.covariates.features(times, None if known is None else known[first:end])

    def _array_source(self, array: Any, name: str) -> _Source:
        if self.covariates.names:
            raise InputError(
                f"the model reads {listed(self.covariates.names)}, which an array does not hold; give a file, or call "
                "task(history, covariates)"
            )
        try:
            values = torch.as_tensor(array).cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot continue {type(array).__name__}: {error}; give a file or an array") from error
        if values.ndim != 2 or not values.isfinite().all():
            raise InputError(f"{name} is {tuple(values.shape)}; expected (rows, channels), all finite")
        self._check_rows(len(values), name)
        steps = [{"step": i + 1} for i in range(self.pred_len)]  # an array has no dates
        return _Source(name, narrowed(values)[-self.seq_len :], steps, [], Place(0, "", None))

    def _check_rows(self, rows: int, name: str) -> None:
        if rows < self.seq_len:
            raise InputError(f"{name} has {rows} rows; seq_len={self.seq_len} rows are needed")


def _never_changes(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Return for each channel whether it is constant but for the rounding of filled values, in all series together."""
    largest = np.max([part.max(axis=0) for part in parts], axis=0)
    smallest = np.min([part.min(axis=0) for part in parts], axis=0)
    rounding = 8 * np.finfo(np.float64).eps * np.maximum(np.abs(largest), np.abs(smallest))
    return largest - smallest <= rounding


def split_rows(rows: int, split: Sequence[float]) -> tuple[int, int, int]:
    """Return the numbers of rows for training, validation and test, one after the other.

    Args:
        rows: number of rows of the series.
        split: three numbers of rows, which may leave rows at the end unused, or three shares that add up to 1. The
            shares of training and test are rounded down, and validation gets the rest, as in the field's benchmarks.

    Raises:
        InputError: if that is not possible.

    Example:
        >>> split_rows(17_420, (8640, 2880, 2880)), split_rows(966, (0.7, 0.1, 0.2))
        ((8640, 2880, 2880), (676, 97, 193))
    """
    if len(split) != 3 or min(split) <= 0:
        raise InputError(f"split={tuple(split)}; give three positive numbers: train, validation, test")
    if abs(sum(split) - 1) < 1e-6:
        train = int(rows * split[0] + 1e-9)
        test = int(rows * split[2] + 1e-9)
        return train, rows - train - test, test
    if sum(split) > rows or any(part != int(part) for part in split):
        raise InputError(
            f"split={tuple(split)} of {rows} rows; give shares that add up to 1, or whole numbers of rows that fit"
        )
    return int(split[0]), int(split[1]), int(split[2])
