"""Errors of forecasts, and the simple forecasts that every model is compared with.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, Q quantiles.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from timeseries.data import float_rows

__all__ = [
    "Baselines",
    "ForecastErrors",
    "fit_linear",
    "last_value",
    "linear_forecast",
    "quantile_loss",
    "seasonal_value",
]


class ForecastErrors(Metric):
    """Squared and absolute errors of each step and channel; every window counts alike.

    Args:
        pred_len: T.
        channels: C.
    """

    squared: Tensor
    absolute: Tensor
    windows: Tensor
    full_state_update = False

    def __init__(self, pred_len: int, channels: int) -> None:
        super().__init__()
        for name in ("squared", "absolute"):
            self.add_state(name, torch.zeros(pred_len, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("windows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, error_BTC: Tensor) -> None:
        """Add the errors of some windows, in the units in which they are reported."""
        error = error_BTC.double()
        self.squared += error.square().sum(dim=0)
        self.absolute += error.abs().sum(dim=0)
        self.windows += len(error)

    def compute(self) -> dict[str, Tensor]:
        """Return the means ``mse`` and ``mae``, and the mean squared error ``by_step`` (T,) and ``by_channel`` (C,)."""
        windows = self.windows.clamp(min=1)
        squared = self.squared / windows
        absolute = self.absolute / windows
        return {
            "mse": squared.mean(),
            "mae": absolute.mean(),
            "by_step": squared.mean(dim=1),
            "by_channel": squared.mean(dim=0),
        }

    def plot(self, *_: Any, **__: Any) -> Any:
        """Not available here.

        Raises:
            NotImplementedError: always; the message names the function that draws the errors.
        """
        raise NotImplementedError("timeseries.plots.errors_figure draws the errors beside those of the baselines")


def quantile_loss(y_BTCQ: Tensor, target_BTC: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Mean pinball loss; it is smallest where a share of ``levels`` of the values lies below the forecasts."""
    level = y_BTCQ.new_tensor(levels)
    above = target_BTC[..., None] - y_BTCQ
    return torch.maximum(level * above, (level - 1) * above).mean()


class Baselines(nn.Module):
    """Three simple forecasts: the last value, the last period, and one linear layer fitted on the training rows.

    Args:
        rows_TC: training rows in the units of the data.
        seq_len: L.
        pred_len: T.
        period: steps of a season.
    """

    mean: Tensor
    """(C,), in the dtype of the rows."""
    std: Tensor
    """(C,), in the dtype of the rows."""
    weight: Tensor
    """(L + 1, T), see :func:`fit_linear`."""

    def __init__(self, rows_TC: np.ndarray, seq_len: int, pred_len: int, period: int) -> None:
        super().__init__()
        self.pred_len = pred_len
        self.period = period
        rows = torch.from_numpy(float_rows(rows_TC))
        mean = torch.from_numpy(rows_TC.mean(axis=0, dtype=np.float64)).to(rows)
        std = torch.from_numpy(rows_TC.std(axis=0, dtype=np.float64)).to(rows)
        std[std == 0] = 1
        weight = fit_linear(((rows - mean) / std).float(), seq_len, pred_len)

        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_buffer("weight", weight, persistent=False)

    def forward(self, x_BLC: Tensor) -> dict[str, Tensor]:
        """The forecasts 'last', 'seasonal' and 'linear', each (B, T, C) in the units of the data."""
        z = linear_forecast(((x_BLC - self.mean) / self.std).float(), self.weight)
        return {
            "last": last_value(x_BLC, self.pred_len),
            "seasonal": seasonal_value(x_BLC, self.pred_len, self.period),
            "linear": z * self.std + self.mean,
        }


def last_value(x_BLC: Tensor, pred_len: int) -> Tensor:
    """Repeat the last value: (B, pred_len, C)."""
    return x_BLC[:, -1:].expand(-1, pred_len, -1)


def seasonal_value(x_BLC: Tensor, pred_len: int, period: int) -> Tensor:
    """Repeat the last whole period, or all of a shorter history: (B, pred_len, C)."""
    period = min(period, x_BLC.shape[1])
    places = torch.arange(pred_len, device=x_BLC.device) % period
    return x_BLC[:, -period:][:, places]


def fit_linear(values_TC: Tensor, seq_len: int, pred_len: int, *, max_windows: int = 1_000_000) -> Tensor:
    """Fit one linear layer from history to horizon, shared by all channels, by least squares in float64.

    DLinear (arXiv 2205.13504) trains two such layers, on trend and season, both of which are linear in the history: it
    can express no more than one layer. The solution is computed directly, so it does not depend on a training recipe.

    Args:
        values_TC: standardized training rows.
        seq_len: L.
        pred_len: T.
        max_windows: number of windows of one channel to use; of more than that, evenly spaced ones are taken.

    Returns:
        (L + 1, T) float32: the weights, and the bias in the last row.
    """
    channels = values_TC.shape[1]
    total = len(values_TC) - seq_len - pred_len + 1
    stride = max(1, total * channels // max_windows)
    chunk = max(1, 2**16 // channels)  # keeps the rows of one step of the sum below 100 MB

    size = seq_len + 1
    square = torch.zeros(size, size, dtype=torch.float64, device=values_TC.device)
    cross = torch.zeros(size, pred_len, dtype=torch.float64, device=values_TC.device)
    count = 0
    for windows_NCL in values_TC.unfold(0, seq_len + pred_len, stride).split(chunk):
        rows = windows_NCL.reshape(-1, seq_len + pred_len).double()
        x = torch.cat([rows[:, :seq_len], rows.new_ones(len(rows), 1)], dim=1)
        square += x.T @ x
        cross += x.T @ rows[:, seq_len:]
        count += len(rows)

    # The pseudoinverse also solves where inputs depend on each other, as in series without noise.
    inverse = torch.linalg.pinv(square / count, hermitian=True)
    return (inverse @ (cross / count)).float()


def linear_forecast(z_BLC: Tensor, weight: Tensor) -> Tensor:
    """Standardized histories to standardized forecasts (B, T, C), with the weights of :func:`fit_linear`."""
    return (z_BLC.transpose(1, 2) @ weight[:-1] + weight[-1]).transpose(1, 2)
