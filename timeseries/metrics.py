"""Errors of forecasts, and the simple forecasts that every model is compared to.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, Q quantiles, S series.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from timeseries.data import float_rows

__all__ = [
    "Baselines",
    "ForecastErrors",
    "QuantileErrors",
    "fit_linear",
    "last_value",
    "linear_forecast",
    "quantile_loss",
    "seasonal_errors",
    "seasonal_value",
]


class ForecastErrors(Metric):
    """Mean squared, absolute and relative errors by series, step and channel; all windows have the same weight.

    Args:
        pred_len: T.
        channels: C.
        series: S.
    """

    full_state_update = False
    squared: Tensor
    """(S, T, C) float64, summed over windows."""
    absolute: Tensor
    """(S, T, C) float64, summed over windows."""
    relative: Tensor
    """(S, T, C) float64, summed over windows."""
    windows: Tensor
    """(S,): number of windows."""

    def __init__(self, pred_len: int, channels: int, series: int = 1) -> None:
        super().__init__()
        for name in ("squared", "absolute", "relative"):
            self.add_state(name, torch.zeros(series, pred_len, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("windows", torch.zeros(series, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, error_BTC: Tensor, relative_BTC: Tensor | None = None, series_B: Tensor | None = None) -> None:
        """Add the errors of a batch of windows.

        Args:
            error_BTC: errors in the units of the report.
            relative_BTC: absolute errors divided by the true values.
            series_B: index of the series of each window; by default the first.
        """
        error = error_BTC.double()
        series = torch.zeros(len(error), dtype=torch.int64) if series_B is None else series_B
        series = series.to(error.device)
        # A trainer of 16 bits has cast the states too, and sums of 16 bits would soon stop to grow.
        self.squared = self.squared.double().index_add(0, series, error.square())
        self.absolute = self.absolute.double().index_add(0, series, error.abs())
        if relative_BTC is not None:
            self.relative = self.relative.double().index_add(0, series, relative_BTC.double())
        self.windows.index_add_(0, series, torch.ones_like(series))

    def compute(self) -> dict[str, Tensor]:
        """Return the means over all windows, and those of each series.

        The means 'mse' and 'mae' are scalars, and the mean squared errors 'by_step' (T,) and 'by_channel' (C,). The
        means 'squared', 'absolute' and 'relative' are (S, T, C), and the numbers of 'windows' are (S,).
        """
        windows = self.windows.sum().clamp(min=1)
        squared = self.squared.sum(dim=0) / windows
        absolute = self.absolute.sum(dim=0) / windows
        of_series = self.windows.clamp(min=1)[:, None, None]
        return {
            "mse": squared.mean(),
            "mae": absolute.mean(),
            "by_step": squared.mean(dim=1),
            "by_channel": squared.mean(dim=0),
            "squared": self.squared / of_series,
            "absolute": self.absolute / of_series,
            "relative": self.relative / of_series,
            "windows": self.windows.clone(),
        }

    def plot(self, *_: Any, **__: Any) -> Any:
        """Raise an error, since torchmetrics draws a single number only.

        Raises:
            NotImplementedError: always; the message names the function that draws the errors.
        """
        raise NotImplementedError("timeseries.plots.errors_figure draws the errors beside those of the baselines")


class QuantileErrors(Metric):
    """Mean pinball loss, and share of values between the outermost quantiles, by step and channel.

    Args:
        levels: Q levels in (0, 1).
        pred_len: T.
        channels: C.
    """

    full_state_update = False
    pinball: Tensor
    """(T, C) float64, mean over the levels, summed over windows."""
    inside: Tensor
    """(T, C) float64: number of values between the outermost quantiles."""
    windows: Tensor
    """Number of windows."""

    def __init__(self, levels: tuple[float, ...], pred_len: int, channels: int) -> None:
        super().__init__()
        self.levels = levels
        for name in ("pinball", "inside"):
            self.add_state(name, torch.zeros(pred_len, channels, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("windows", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, y_BTCQ: Tensor, target_BTC: Tensor) -> None:
        """Add the quantiles of a batch of windows, and the true values in the same units."""
        inside = (target_BTC >= y_BTCQ[..., 0]) & (target_BTC <= y_BTCQ[..., -1])
        loss = _pinball(y_BTCQ, target_BTC, self.levels).double()
        self.pinball = self.pinball.double() + loss.mean(dim=-1).sum(dim=0)
        self.inside = self.inside.double() + inside.double().sum(dim=0)
        self.windows += len(target_BTC)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean 'pinball' loss and 'coverage', (T, C) each."""
        windows = self.windows.clamp(min=1)
        return {"pinball": self.pinball / windows, "coverage": self.inside / windows}

    def plot(self, *_: Any, **__: Any) -> Any:
        """Raise an error, since torchmetrics draws a single number only.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("pinball loss and coverage are in the tables of the run")


def quantile_loss(y_BTCQ: Tensor, target_BTC: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Return the mean pinball loss, which is smallest if each level is the share of values below its forecast.

    Args:
        y_BTCQ: a forecast for each level.
        target_BTC: the true values.
        levels: Q levels in (0, 1).
    """
    return _pinball(y_BTCQ, target_BTC, levels).mean()


def _pinball(y_BTCQ: Tensor, target_BTC: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Return the pinball loss (B, T, C, Q) of each value."""
    level = y_BTCQ.new_tensor(levels)
    above = target_BTC[..., None] - y_BTCQ
    return torch.maximum(level * above, (level - 1) * above)


class Baselines(nn.Module):
    """Three simple forecasts: the last value, the last period, and one linear layer fitted on the training rows.

    Args:
        rows_TC: training rows (rows, C) in the units of the data; a list of these for several series, whose windows do
            not cross from one to the next.
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

    def __init__(self, rows_TC: np.ndarray | Sequence[np.ndarray], seq_len: int, pred_len: int, period: int) -> None:
        super().__init__()
        self.pred_len = pred_len
        self.period = period
        parts = [rows_TC] if isinstance(rows_TC, np.ndarray) else list(rows_TC)
        every = parts[0] if len(parts) == 1 else np.concatenate(parts)
        rows = torch.from_numpy(float_rows(parts[0]))
        mean = torch.from_numpy(every.mean(axis=0, dtype=np.float64)).to(rows)
        std = torch.from_numpy(every.std(axis=0, dtype=np.float64)).to(rows)
        std[std == 0] = 1
        z = [((torch.from_numpy(float_rows(part)) - mean) / std).float() for part in parts]
        weight = fit_linear(z, seq_len, pred_len)

        # No buffers: they come after the model was built, when an average of its tensors may already exist.
        self.mean = mean
        self.std = std
        self.weight = weight

    def forward(self, x_BLC: Tensor) -> dict[str, Tensor]:
        """Return the forecasts 'last', 'seasonal' and 'linear', each (B, T, C) in the units of the data."""
        mean, std, weight = (tensor.to(x_BLC.device) for tensor in (self.mean, self.std, self.weight))
        z = ((x_BLC - mean) / std).to(weight.dtype)
        z = linear_forecast(z, weight)
        return {
            "last": last_value(x_BLC, self.pred_len),
            "seasonal": seasonal_value(x_BLC, self.pred_len, self.period),
            "linear": z * std + mean,
        }


def last_value(x_BLC: Tensor, pred_len: int) -> Tensor:
    """Return the last value at every step of the horizon, (B, pred_len, C)."""
    return x_BLC[:, -1:].expand(-1, pred_len, -1)


def seasonal_value(x_BLC: Tensor, pred_len: int, period: int) -> Tensor:
    """Return repetitions of the last period, or of the whole history if it is shorter, (B, pred_len, C)."""
    period = min(period, x_BLC.shape[1])
    places = torch.arange(pred_len, device=x_BLC.device) % period
    return x_BLC[:, -period:][:, places]


def seasonal_errors(parts: Sequence[np.ndarray], period: int) -> np.ndarray:
    """Return the mean absolute error of the seasonal value one step ahead within each series, the scale of MASE.

    The mean absolute scaled error (Hyndman and Koehler, 2006) of a forecast is its mean absolute error divided by this
    number; below 1, the forecast is better than the value one period before is within the training rows.

    Args:
        parts: training rows (rows, C) of each series.
        period: number of steps of a season; half the series for series shorter than two periods.

    Returns:
        (S, C) float64; NaN for channels that never change from one period to the next.
    """
    scales = []
    for part in parts:
        steps = max(1, min(period, len(part) // 2))
        changes = np.abs(part[steps:].astype(np.float64) - part[:-steps]).mean(axis=0)
        scales.append(np.where(changes > 0, changes, np.nan))
    return np.stack(scales)


def fit_linear(
    values_TC: Tensor | Sequence[Tensor], seq_len: int, pred_len: int, *, max_windows: int = 1_000_000
) -> Tensor:
    """Return the least-squares solution of one linear layer from history to horizon, shared by all channels.

    DLinear (arXiv 2205.13504) trains two such layers, one on the trend and one on the season of a window. Both parts
    are linear in the history, so it can express no more than one layer. The solution is computed directly in float64
    and does not depend on a training recipe.

    Args:
        values_TC: standardized training rows (rows, C), or those of several series.
        seq_len: L.
        pred_len: T.
        max_windows: largest number of windows, over all channels; if there are more, evenly spaced ones are used.

    Returns:
        (L + 1, T) float32: the weights, with the bias in the last row.
    """
    parts = [values_TC] if isinstance(values_TC, Tensor) else list(values_TC)
    channels = parts[0].shape[1]
    device = parts[0].device
    total = sum(max(0, len(part) - seq_len - pred_len + 1) for part in parts)
    stride = max(1, total * channels // max_windows)
    chunk = max(1, 2**16 // channels)  # limits the memory of one step of the sum to 100 MB

    size = seq_len + 1
    square = torch.zeros(size, size, dtype=torch.float64, device=device)
    cross = torch.zeros(size, pred_len, dtype=torch.float64, device=device)
    count = 0
    for part in parts:
        for windows_NCL in part.unfold(0, seq_len + pred_len, stride).split(chunk):
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
