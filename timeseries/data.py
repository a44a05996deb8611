"""The base of all data modules of series: windows of history and horizon, splits in time, and prediction.

Shapes: L steps of history, T steps of the horizon, C channels, M calendar features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError, MissingError, listed
from timeseries.feature_map import dominant_period
from timeseries.files import Fill, Series, narrowed, read_series, step_name

__all__ = [
    "MarkedHistory",
    "SeriesDataModule",
    "SeriesSpec",
    "WindowDataModule",
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


class Windows(Dataset[tuple[Any, Tensor]]):
    """All windows of consecutive rows, one step apart: (history (L, C), horizon (T, C)).

    They are float32, or float64 if the type of the rows is wider than float32.

    With calendar features, the first element is a :class:`MarkedHistory`. Its ``marks_ahead`` begin ``label_len`` steps
    before the horizon, where Corrformer's decoder begins.

    Args:
        values_TC: rows of any numeric type; the array may lie on disk.
        seq_len: L.
        pred_len: T.
        marks_TM: calendar features of each row, if the model needs them.
        label_len: number of last steps of the history that ``marks_ahead`` covers too.
    """

    def __init__(
        self,
        values_TC: np.ndarray,
        seq_len: int,
        pred_len: int,
        *,
        marks_TM: Tensor | None = None,
        label_len: int = 0,
    ) -> None:
        self.values = values_TC
        self.seq_len = seq_len
        self.pred_len = pred_len
        self.marks = marks_TM
        self.label_len = label_len

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
        if self.marks is None:
            return history, horizon

        marks = self.marks[index:middle]
        marks_ahead = self.marks[middle - self.label_len : end]
        return MarkedHistory(history, marks, marks_ahead), horizon


def float_rows(values_TC: np.ndarray) -> np.ndarray:
    """Return a copy of some rows in float32, or in float64 if their type is wider."""
    return np.array(values_TC, dtype=np.result_type(values_TC.dtype, np.float32))


def collate_windows(samples: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """Collate windows; in prediction, the targets are the names of the steps to come, which stay a list."""
    inputs = [raw for raw, _ in samples]
    raw: Any
    if isinstance(inputs[0], MarkedHistory):
        raw = MarkedHistory(*(torch.stack(parts) for parts in zip(*inputs, strict=True)))
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
        self._windows: tuple[Windows, Windows, Windows] | None = None

    def windows(self) -> tuple[Windows, Windows, Windows]:
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

    def read_windows(self) -> tuple[Windows, Windows, Windows]:
        """Return the windows of all splits, which are read at the first call."""
        if self._windows is None:
            self._windows = self.windows()
        return self._windows

    def training_rows(self) -> np.ndarray:
        """Return the training rows (T, C) in the units of the data, for the baselines."""
        return self.read_windows()[0].values

    def check_data(self) -> None:
        """Read the data, so that errors show before training starts."""
        self.read_windows()

    def setup(self, stage: str | None = None) -> None:
        """Fill all splits."""
        train, val, test = self.read_windows()
        self.train_set = train
        self.val_set = val
        self.test_set = test
        self.predict_set = self.continuations()  # type: ignore[assignment]


class _Source(NamedTuple):
    """A series to continue.

    Attributes:
        name: of the file, or of the array.
        history: the last rows (L, C).
        steps: names of the steps that follow, see :meth:`WindowDataModule.continuations`.
        channels: names of the channels; empty for an array.
    """

    name: str
    history: Tensor
    steps: list[dict[str, Any]]
    channels: list[str]


class SeriesDataModule(WindowDataModule):
    """Base of the data modules of a single series, which a data set returns in :meth:`read`.

    Validation and test windows take their history from the rows before their split, so that every row of a split is
    forecast. ``predict`` continues the series, or the files that it is given, after the last row.

    Args:
        split: shares or numbers of the rows for training, validation and test, one after the other.
        fill: how missing values are filled: 'previous' or 'linear'; None refuses them.
        in_order: take the rows of a file in order as regular steps, whatever their dates, as the field's long-term
            protocols do.
        predict_path: a CSV file, or a folder of them, to continue in ``predict``; by default the series itself.
        date: name of the date column of a file.
        kwargs: arguments of :class:`WindowDataModule`.
    """

    columns: Sequence[str] | None = None
    """Columns of a file to read, in this order; None for all but the date."""

    def __init__(
        self,
        *,
        split: Split = (0.7, 0.1, 0.2),
        fill: Fill | None = None,
        in_order: bool = False,
        predict_path: str | None = None,
        date: str = "date",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.split = split
        self.fill = fill
        self.in_order = in_order
        self.predict_path = Path(predict_path) if predict_path else None
        self.date = date
        self._series: Series | None = None
        self._sources: list[_Source] | None = None

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
            batch_size=batch_size,
            num_workers=num_workers,
        )
        if spec.channels != numbered_channels(len(spec.channels)):
            data.columns = spec.channels
        return data

    def read(self) -> Series:
        """Return the whole series; :meth:`read_series` calls this once.

        Raises:
            MissingError: if the data are missing.
            InputError: if the data cannot be used.
        """
        raise NotImplementedError

    def read_file(self, path: Path) -> Series:
        """Read a CSV file with the options of this data module; see :func:`timeseries.files.read_series`."""
        return read_series(
            path,
            date=self.date,
            channels=self.columns,
            fill=self.fill,
            in_order=self.in_order,
        )

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
        )

    def spec(self) -> SeriesSpec:
        """Return the settings with the names of the channels, and their statistics over the training rows.

        The variance divides by the number of rows, as in the field's benchmarks.
        """
        train = torch.from_numpy(self.training_rows()).double()
        return replace(
            self.settings(),
            channels=tuple(self.read_series().channels),
            mean=tuple(train.mean(dim=0).tolist()),
            std=tuple(train.std(dim=0, correction=0).tolist()),
        )

    def measure(self) -> dict[str, Any]:
        """Measure the dominant period of the training rows, for ``--data.period``."""
        train = torch.from_numpy(self.training_rows())
        longest = min(len(train) // 2, self.seq_len)
        period = dominant_period(train, longest)
        step = step_name(self.read_series().step)
        if period is None:
            return {
                "dominant period": f"none; no period of 2 to {longest} steps of {step} stands out of red noise "
                f"(--data.period is {self.period})"
            }
        return {"dominant period": f"{period} steps of {step}; set --data.period {period}"}

    # The splits

    def read_series(self) -> Series:
        """Return the series, which is read at the first call."""
        if self._series is None:
            self._series = self.read()
        return self._series

    def windows(self) -> tuple[Windows, Windows, Windows]:
        """Return the windows of each split; those of validation and test begin ``seq_len`` rows before their split."""
        series = self.read_series()
        train, val, test = self._split(series)
        values = series.values.numpy()

        training = values[:train]
        constant = [series.channels[i] for i in np.flatnonzero(_never_changes(training))]
        if constant:
            raise InputError(
                f"the training rows of {listed(constant)} never change; leave constant channels out with "
                "--data.channels"
            )

        first_val = train - self.seq_len
        first_test = train + val - self.seq_len
        return (
            Windows(training, self.seq_len, self.pred_len),
            Windows(values[first_val : train + val], self.seq_len, self.pred_len),
            Windows(values[first_test : train + val + test], self.seq_len, self.pred_len),
        )

    def _split(self, series: Series) -> tuple[int, int, int]:
        counts = split_rows(len(series), self.split)
        needed = (self.seq_len + self.pred_len, self.pred_len, self.pred_len)
        for name, rows, least in zip(("training", "validation", "test"), counts, needed, strict=True):
            if rows < least:
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
        """Return the last rows of each series; with several of them, the steps are named by their file too."""
        sources = self._sources
        if sources is None:
            sources = [self._series_source(self.read_series(), "the series")]

        self.channels = sources[0].channels
        for source in sources[1:]:
            if source.channels != self.channels:
                raise InputError(
                    f"{source.name} has the channels {listed(source.channels)}, {sources[0].name} has "
                    f"{listed(self.channels)}; name the columns to read with --data.channels"
                )

        if len(sources) == 1:
            return [(sources[0].history, sources[0].steps)]
        return [(source.history, [{"file": source.name, **step} for step in source.steps]) for source in sources]

    def _read_sources(self, path: Path) -> list[_Source]:
        """Read a CSV file, or all CSV files of a folder."""
        files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
        if not files:
            raise MissingError(f"there is no CSV file in {path}")
        return [self._series_source(self.read_file(file), str(file)) for file in files]

    def _series_source(self, series: Series, name: str) -> _Source:
        self._check_rows(len(series), name)
        steps = [{"date": str(time)} for time in series.ahead(self.pred_len)]
        return _Source(name, series.values[-self.seq_len :], steps, series.channels)

    def _array_source(self, array: Any, name: str) -> _Source:
        try:
            values = torch.as_tensor(array).cpu().double()
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"cannot continue {type(array).__name__}: {error}; give a file or an array") from error
        if values.ndim != 2 or not values.isfinite().all():
            raise InputError(f"{name} is {tuple(values.shape)}; expected (rows, channels), all finite")
        self._check_rows(len(values), name)
        steps = [{"step": i + 1} for i in range(self.pred_len)]  # an array has no dates
        return _Source(name, narrowed(values)[-self.seq_len :], steps, [])

    def _check_rows(self, rows: int, name: str) -> None:
        if rows < self.seq_len:
            raise InputError(f"{name} has {rows} rows; seq_len={self.seq_len} rows are needed")


def _never_changes(values_TC: np.ndarray) -> np.ndarray:
    """Return for each channel whether it is constant but for the rounding of filled values."""
    largest = values_TC.max(axis=0)
    smallest = values_TC.min(axis=0)
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
