"""Errors of forecasts: over everything, by step of the horizon, by channel."""

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ["ForecastErrors", "quantile_loss"]


class ForecastErrors(Metric):
    """Squared and absolute errors of each step and channel, every window counted alike.

    Args:
        pred_len: T, steps.
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
        """``mse`` and ``mae`` over everything, ``by_step`` (T,) and ``by_channel`` (C,): the mean squared error."""
        squared, absolute = (sums / self.windows.clamp(min=1) for sums in (self.squared, self.absolute))
        parts = {"by_step": squared.mean(dim=1), "by_channel": squared.mean(dim=0)}
        return {"mse": squared.mean(), "mae": absolute.mean(), **parts}

    def plot(self, *_: Any, **__: Any) -> Any:
        """Nothing is drawn from here.

        Raises:
            NotImplementedError: always, naming what draws the errors.
        """
        raise NotImplementedError("timeseries.pictures.errors_figure draws the errors beside those of the baselines")


def quantile_loss(y_BTCQ: Tensor, target_BTC: Tensor, levels: tuple[float, ...]) -> Tensor:
    """Pinball loss, a mean over everything: its minimum is where a share of ``levels`` of the values lies below."""
    level = y_BTCQ.new_tensor(levels)
    above = target_BTC[..., None] - y_BTCQ
    return torch.maximum(level * above, (level - 1) * above).mean()
