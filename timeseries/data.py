"""What all series have in common: windows of history and horizon, splits in time, prediction after the last row."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError, MissingError
from core.training.data import DataModule
from timeseries.dates import step_name
from timeseries.feature_map import dominant_period
from timeseries.files import Fill, Series, read_series

__all__ = ["SeriesDataModule", "Windows", "split_rows"]

Split = tuple[float, float, float]


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """All windows of a series that lie in one split, a step apart, each (history (L, C), horizon (H, C)).

    Args:
        values_TC: the rows of the split, with ``seq_len`` rows of history before the first horizon.
        seq_len: L.
        pred_len: H.
    """

    def __init__(self, values_TC: Tensor, seq_len: int, pred_len: int) -> None:
        self.values, self.seq_len, self.pred_len = values_TC, seq_len, pred_len

    def __len__(self) -> int:
        """Number of windows."""
        return max(0, len(self.values) - self.seq_len - self.pred_len + 1)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The window that begins at a row."""
        middle = index + self.seq_len
        return self.values[index:middle], self.values[middle : middle + self.pred_len]


class _Ahead(Dataset[tuple[Tensor, Any]]):
    """The last rows of a series, and the moments that come after them."""

    def __init__(self, series: Series, seq_len: int, pred_len: int) -> None:
        self.history = series.values[-seq_len:]
        self.dates = [str(time) for time in series.ahead(pred_len)]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        return self.history, self.dates


def split_rows(rows: int, split: Sequence[float]) -> tuple[int, int, int]:
    """Rows that train, validate and test, one after the other.

    Args:
        rows: T.
        split: three numbers of rows, which may leave the end unused, or three shares that add up to 1. Of shares,
            training and test are rounded down and validation gets the rest, as in the field's benchmarks.

    Raises:
        InputError: if that is not possible.

    Example:
        >>> split_rows(17_420, (8640, 2880, 2880)), split_rows(966, (0.7, 0.1, 0.2))
        ((8640, 2880, 2880), (676, 97, 193))
    """
    if len(split) != 3 or min(split) <= 0:
        raise InputError(f"split={tuple(split)}; give three positive numbers: train, validation, test")
    if abs(sum(split) - 1) < 1e-6:
        train, test = int(rows * split[0] + 1e-9), int(rows * split[2] + 1e-9)
        return train, rows - train - test, test
    if sum(split) > rows or any(part != int(part) for part in split):
        raise InputError(
            f"split={tuple(split)} of {rows} rows; give shares that add up to 1, or whole numbers of rows that fit"
        )
    return int(split[0]), int(split[1]), int(split[2])


class SeriesDataModule(DataModule):
    """Base of the series data modules: subclasses say how the series is read.

    Validation and test windows take their history from the rows before their split, so that every row of a split is
    forecast. Batches are (history (B, L, C), horizon (B, H, C)) float32 in the units of the file.

    Args:
        seq_len: L, steps of history.
        pred_len: H, steps that are forecast.
        split: shares of the rows that train, validate and test, or their numbers; in the order of time.
        fill: what takes the place of missing values, 'previous' or 'linear'; None refuses them.
        predict_path: a CSV file to continue with ``predict``; by default the series itself.
        date: name of the date column of a file.
        kwargs: arguments of :class:`core.training.DataModule`.

    Attributes:
        channels: C names.
        columns: those of a file that are read, in this order; None for all but the date.
        mean: (C,) over the training rows.
        std: (C,) over the training rows, as standardisation in the field has it (divided by their number).

    Raises:
        InputError: if a length is below 1.
    """

    def __init__(
        self,
        *,
        seq_len: int = 96,
        pred_len: int = 96,
        split: Split = (0.7, 0.1, 0.2),
        fill: Fill | None = None,
        predict_path: str | None = None,
        date: str = "date",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if min(seq_len, pred_len) < 1:
            raise InputError(f"seq_len={seq_len}, pred_len={pred_len}; both must be at least 1")
        self.seq_len, self.pred_len, self.split, self.fill, self.date = seq_len, pred_len, split, fill, date
        self.predict_path = Path(predict_path) if predict_path else None
        self.channels: list[str] = []
        self.columns: Sequence[str] | None = None
        self.mean, self.std = torch.zeros(0), torch.zeros(0)
        self._series: Series | None = None
        self.collate: Callable[[list[Any]], Any] | None = _collate

    def read(self) -> Series:
        """The whole series; subclasses say how.

        Raises:
            InputError: if it cannot be used.
        """
        raise NotImplementedError

    def check_data(self) -> None:
        """Read the file, the one to continue or the series, before a run folder is made.

        Raises:
            MissingError: if it is not there.
            InputError: if it cannot be used.
        """
        if self._other_file():
            self._read_other()
        else:
            self._splits(self._read_once())

    def setup(self, stage: str | None = None) -> None:
        """Read the series and deal its windows to the splits.

        Raises:
            InputError: if the series cannot be used or is too short.
        """
        if stage == "predict" and self._other_file():
            series = self._read_other()
        else:
            series = self._read_once()
            self._fill_splits(series)
        self.channels = series.channels
        self.predict_set = _Ahead(series, self.seq_len, self.pred_len)

    def training_rows(self) -> Tensor:
        """(T, C), standardised, for the linear baseline."""
        return (self._filled_windows().values - self.mean) / self.std

    def _filled_windows(self) -> Windows:
        windows = self._filled(self.train_set, "train")
        assert isinstance(windows, Windows)
        return windows

    def measure(self) -> dict[str, float]:
        """The dominant period of the training rows, to set ``period`` by; nothing is stored.

        Raises:
            InputError: if the series cannot be used.
        """
        series = self._read_once()
        train = self._splits(series)[0]
        period = dominant_period(train, min(len(train) // 2, self.seq_len))
        print(f"dominant period: {period} steps of {step_name(series.step)}; set --model.period {period}")
        return {"period": period}

    def _read_once(self) -> Series:
        self._series = self._series or self.read()
        return self._series

    def _other_file(self) -> bool:
        return self.predict_path is not None and (self.trainer is None or bool(self.trainer.predicting))

    def _read_other(self) -> Series:
        if self.predict_path is None:
            raise MissingError("no file was given; type --data.predict_path FILE")
        series = read_series(self.predict_path, date=self.date, channels=self.columns, fill=self.fill)
        if len(series) < self.seq_len:
            raise InputError(f"{self.predict_path} has {len(series)} rows; seq_len={self.seq_len} rows are needed")
        return series

    def _fill_splits(self, series: Series) -> None:
        parts = self._splits(series)
        train = parts[0].double()
        self.mean, self.std = train.mean(dim=0).float(), train.std(dim=0, correction=0).float()
        constant = [series.channels[i] for i in (train.amax(dim=0) == train.amin(dim=0)).nonzero().flatten().tolist()]
        if constant:
            raise InputError(f"the training rows of {', '.join(constant)} never change; leave out constant channels")
        self.train_set, self.val_set, self.test_set = (Windows(part, self.seq_len, self.pred_len) for part in parts)

    def _splits(self, series: Series) -> tuple[Tensor, Tensor, Tensor]:
        """The rows of each split, with the history that its first window needs."""
        counts = split_rows(len(series), self.split)
        needed = (self.seq_len + self.pred_len, self.pred_len, self.pred_len)
        for name, rows, least in zip(("training", "validation", "test"), counts, needed, strict=True):
            if rows < least:
                raise InputError(
                    f"the {name} split has {rows} of the {len(series)} rows, too few for one window of "
                    f"seq_len={self.seq_len} and pred_len={self.pred_len}, which needs {least}; choose smaller ones or "
                    "another split"
                )
        train, val, test = counts
        borders = [(0, train), (train - self.seq_len, train + val), (train + val - self.seq_len, train + val + test)]
        first, second, third = (series.values[start:end] for start, end in borders)
        return first, second, third


def _collate(samples: list[tuple[Tensor, Any]]) -> tuple[Tensor, Any]:
    """Windows as (B, L, C) and (B, H, C); in prediction the moments ahead stay a list."""
    targets = [target for _, target in samples]
    ahead = torch.stack(targets) if isinstance(targets[0], Tensor) else targets
    return torch.stack([history for history, _ in samples]), ahead
