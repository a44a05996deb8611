"""Errors of forecasts, and the simple forecasts that every model is compared to.

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
    """Mean squared and absolute errors by step and channel; all windows have the same weight.

    Args:
        pred_len: T.
        channels: C.
    """

    full_state_update = False
    squared: Tensor
    """(T, C) float64, summed over windows."""
    absolute: Tensor
    """(T, C) float64, summed over windows."""
    windows: Tensor
    """Number of windows."""

    def __init__(self, pred_len: int, channels: int) -> None:
        super().__init__()
        for name in ("squared", "absolute"):
            self.add_state(name, torch.zeros(pred_len, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("windows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, error_BTC: Tensor) -> None:
        """Add the errors of a batch of windows, in the units of the report."""
        error = error_BTC.double()
        self.squared += error.square().sum(dim=0)
        self.absolute += error.abs().sum(dim=0)
        self.windows += len(error)

    def compute(self) -> dict[str, Tensor]:
        """Return the means 'mse' and 'mae', and the mean squared errors 'by_step' (T,) and 'by_channel' (C,)."""
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
        """Raise an error, since torchmetrics draws a single number only.

        Raises:
            NotImplementedError: always; the message names the function that draws the errors.
        """
        raise NotImplementedError("timeseries.plots.errors_figure draws the errors beside those of the baselines")


def quantile_loss(y_BTCQ: Tensor, target_BTC: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Return the mean pinball loss, which is smallest if each level is the share of values below its forecast.

    Args:
        y_BTCQ: a forecast for each level.
        target_BTC: the true values.
        levels: Q levels in (0, 1).
    """
    level = y_BTCQ.new_tensor(levels)
    above = target_BTC[..., None] - y_BTCQ
    return torch.maximum(level * above, (level - 1) * above).mean()


class Baselines(nn.Module):
    """Three simple forecasts: the last value, the last period, and one linear layer fitted on the training rows.

    Args:
        rows_TC: training rows (rows, C) in the units of the data.
        seq_len: L.
        pred_len: T.
        period: number of steps of a season.
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
        """Return the forecasts 'last', 'seasonal' and 'linear', each (B, T, C) in the units of the data."""
        z = ((x_BLC - self.mean) / self.std).to(self.weight.dtype)
        z = linear_forecast(z, self.weight)
        return {
            "last": last_value(x_BLC, self.pred_len),
            "seasonal": seasonal_value(x_BLC, self.pred_len, self.period),
            "linear": z * self.std + self.mean,
        }


def last_value(x_BLC: Tensor, pred_len: int) -> Tensor:
    """Return the last value at every step of the horizon, (B, pred_len, C)."""
    return x_BLC[:, -1:].expand(-1, pred_len, -1)


def seasonal_value(x_BLC: Tensor, pred_len: int, period: int) -> Tensor:
    """Return repetitions of the last period, or of the whole history if it is shorter, (B, pred_len, C)."""
    period = min(period, x_BLC.shape[1])
    places = torch.arange(pred_len, device=x_BLC.device) % period
    return x_BLC[:, -period:][:, places]


def fit_linear(values_TC: Tensor, seq_len: int, pred_len: int, *, max_windows: int = 1_000_000) -> Tensor:
    """Return the least-squares solution of one linear layer from history to horizon, shared by all channels.

    DLinear (arXiv 2205.13504) trains two such layers, one on the trend and one on the season of a window. Both parts
    are linear in the history, so it can express no more than one layer. The solution is computed directly in float64
    and does not depend on a training recipe.

    Args:
        values_TC: standardized training rows (rows, C).
        seq_len: L.
        pred_len: T.
        max_windows: largest number of windows, over all channels; if there are more, evenly spaced ones are used.

    Returns:
        (L + 1, T) float32: the weights, with the bias in the last row.
    """
    channels = values_TC.shape[1]
    total = len(values_TC) - seq_len - pred_len + 1
    stride = max(1, total * channels // max_windows)
    chunk = max(1, 2**16 // channels)  # limits the memory of one step of the sum to 100 MB

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
    """Return standardized forecasts (B, T, C) by the layer of :func:`fit_linear`.

    Args:
        z_BLC: standardized histories.
        weight: (L + 1, T).
    """
    return (z_BLC.transpose(1, 2) @ weight[:-1] + weight[-1]).transpose(1, 2)
