"""The weather of thousands of stations, in the published layout of arrays."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset

from core.errors import InputError, MissingError
from core.training.data import DataModule
from timeseries.feature_map import time_marks

__all__ = ["SPLITS", "GlobalWeather", "StationWindows"]

SPLITS = ("train", "val", "test")
"""As the arrays are named."""

Inputs = tuple[Tensor, Tensor, Tensor]


class StationWindows(Dataset[tuple[Inputs, Any]]):
    """Windows of all stations, a step apart: ((history (L, N), its marks, marks ahead), horizon (H, N)).

    The marks ahead begin ``label_len`` steps before the horizon, as the decoder reads them.

    Args:
        values_TN: an array of any float or integer type, which may lie on disk.
        marks_TM: calendar features of each step.
        lengths: (seq_len, label_len, pred_len).
    """

    def __init__(self, values_TN: Any, marks_TM: Tensor, lengths: tuple[int, int, int]) -> None:
        self.array, self.marks = values_TN, marks_TM
        self.seq_len, self.label_len, self.pred_len = lengths

    def __len__(self) -> int:
        """Number of windows."""
        return max(0, len(self.array) - self.seq_len - self.pred_len + 1)

    def __getitem__(self, index: int) -> tuple[Inputs, Tensor]:
        """The window that begins at a step."""
        middle, end = index + self.seq_len, index + self.seq_len + self.pred_len
        values = torch.from_numpy(np.array(self.array[index:end], dtype=np.float32))
        ahead = self.marks[middle - self.label_len : end]
        return (values[: self.seq_len], self.marks[index:middle], ahead), values[self.seq_len :]


class _Ahead(Dataset[tuple[Inputs, list[str]]]):
    """The last window of the test split, and the hours after it."""

    def __init__(self, windows: StationWindows, times: Any) -> None:
        self.windows = windows
        length = len(times) - windows.seq_len
        self.history = torch.from_numpy(np.array(windows.array[length:], dtype=np.float32))
        step = times[-1] - times[-2]
        self.ahead = pd.DatetimeIndex([times[-1] + step * (i + 1) for i in range(windows.pred_len)])
        marks = torch.cat([windows.marks[len(times) - windows.label_len :], time_marks(self.ahead)])
        self.inputs = self.history, windows.marks[length:], marks

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Inputs, list[str]]:
        return self.inputs, [str(time) for time in self.ahead]


class GlobalWeather(DataModule):
    """Global temperature or wind in the published layout, values ten times the quantity, one array for each split.

    ``root`` holds ``<variable>_global_hourly_{train,val,test}.npy`` (T, N) or (T, N, 1), ``data_time_{...}.npy`` with T
    moments, and ``stations_sorted.npy`` (N, K) with coordinates; the order of the stations is that of the tree's
    leaves. The arrays of Corrformer's authors have N = 3850 and K = 3 (Code Ocean capsule 0341365). Every window of a
    split is used, in training in random order.

    Args:
        root: the folder.
        variable: 'temp' or 'wind'.
        seq_len: L.
        label_len: steps of the history that the decoder sees too.
        pred_len: steps that are forecast.
        kwargs: arguments of :class:`core.training.DataModule`.

    Attributes:
        channels: names of the stations, by number.
        stations: (N, K) float64.
        mean: (N,) over the training steps.
        std: (N,) over the training steps.

    Raises:
        InputError: if a length is out of range, or the variable is unknown.
    """

    def __init__(
        self,
        root: str,
        *,
        variable: Literal["temp", "wind"] = "temp",
        seq_len: int = 48,
        label_len: int = 24,
        pred_len: int = 24,
        batch_size: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(batch_size=batch_size, **kwargs)
        if variable not in ("temp", "wind"):
            raise InputError(f"variable={variable!r}; expected 'temp' or 'wind'")
        if min(seq_len, pred_len) < 1 or not 0 <= label_len <= seq_len:
            raise InputError(
                f"seq_len={seq_len}, label_len={label_len}, pred_len={pred_len}; from 1 on, label_len up to seq_len"
            )
        self.root, self.variable = Path(root), variable
        self.seq_len, self.label_len, self.pred_len = seq_len, label_len, pred_len
        self.channels: list[str] = []
        self.stations = self.mean = self.std = torch.zeros(0)
        self.collate = _collate

    def check_data(self) -> None:
        """Look at all arrays before a run folder is made.

        Raises:
            MissingError: if one is not there.
            InputError: if one cannot be used, or they do not fit together.
        """
        self._read_stations()
        for split in SPLITS:
            self._read(split)

    def setup(self, stage: str | None = None) -> None:
        """Open the arrays of all splits, and measure the training values."""
        self.stations = self._read_stations()
        self.channels = [f"station_{i}" for i in range(len(self.stations))]
        windows = {split: self._windows(split) for split in SPLITS}
        self.train_set, self.val_set, self.test_set = (windows[split] for split in SPLITS)
        train = windows["train"].array
        self.mean = torch.from_numpy(train.mean(axis=0, dtype=np.float64)).float()
        self.std = torch.from_numpy(train.std(axis=0, dtype=np.float64)).float().clamp(min=1e-6)
        self.predict_set = _Ahead(windows["test"], self._read("test")[1])

    def training_rows(self) -> Tensor:
        """(T, N), standardised, for the linear baseline; of many stations every so many."""
        dataset = self._filled(self.train_set, "train")
        assert isinstance(dataset, StationWindows)
        every = max(1, len(self.channels) // 100)
        values = torch.from_numpy(np.array(dataset.array[:, ::every], dtype=np.float32))
        return (values - self.mean[::every]) / self.std[::every]

    def _windows(self, split: str) -> StationWindows:
        values, times = self._read(split)
        return StationWindows(values, time_marks(times), (self.seq_len, self.label_len, self.pred_len))

    def _read_stations(self) -> Tensor:
        stations = self._array("stations_sorted.npy")
        if stations.ndim != 2 or not np.isfinite(stations).all():
            raise InputError(f"{self.root / 'stations_sorted.npy'} is {stations.shape}; expected (N, K), all finite")
        return torch.from_numpy(np.array(stations, dtype=np.float64))

    def _read(self, split: str) -> tuple[Any, Any]:
        """Values (T, N) on disk, and their moments."""
        name = f"{self.variable}_global_hourly_{split}.npy"
        values, moments = self._array(name), self._array(f"data_time_{split}.npy")
        values = values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values
        count = len(self._read_stations())
        if values.ndim != 2 or values.shape[1] != count or len(values) != len(moments):
            raise InputError(
                f"{self.root / name} is {values.shape}, with {len(moments)} moments and {count} stations; expected "
                "(moments, stations)"
            )
        if len(values) < self.seq_len + self.pred_len:
            raise InputError(
                f"the {split} split has {len(values)} steps; seq_len={self.seq_len} and pred_len={self.pred_len} need "
                f"{self.seq_len + self.pred_len}"
            )
        for first in range(0, len(values), 1000):  # a part at a time: the published arrays have half a gigabyte
            if not np.isfinite(values[first : first + 1000]).all():
                raise InputError(f"{self.root / name} holds NaN or infinity; fill them first")
        return values, self._moments(moments, split)

    def _moments(self, moments: Any, split: str) -> Any:
        try:
            times = pd.DatetimeIndex(pd.to_datetime(np.asarray(moments).ravel()))
        except (ValueError, TypeError) as error:
            raise InputError(f"{self.root}/data_time_{split}.npy holds no moments: {error}") from error
        if times.has_duplicates or not times.is_monotonic_increasing:
            raise InputError(f"{self.root}/data_time_{split}.npy does not rise; expected every moment once, in order")
        return times

    def _array(self, name: str) -> Any:
        path = self.root / name
        if not path.is_file():
            raise MissingError(f"there is no {path}; expected the arrays of Corrformer's authors in {self.root}")
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise InputError(
                f"{path} is no array of plain numbers or moments: {error}. Arrays of Python objects are not opened, "
                "since that could run code; save theirs with .astype('datetime64[s]') in an environment you trust"
            ) from error


def _collate(samples: list[tuple[Inputs, Any]]) -> tuple[Inputs, Any]:
    x, marks, ahead = (torch.stack(parts) for parts in zip(*[inputs for inputs, _ in samples], strict=True))
    targets = [target for _, target in samples]
    return (x, marks, ahead), torch.stack(targets) if isinstance(targets[0], Tensor) else targets
