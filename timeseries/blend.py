"""A forecast that moves towards the last value as far as validation says.

Shapes: B windows, L steps of history, T steps of the horizon, C channels.
"""

from typing import cast

import torch
from torch import Tensor, nn

from timeseries.metrics import ForecastErrors

__all__ = ["Blend"]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Shares of the model among which validation chooses."""


class Blend(nn.Module):
    """The forecast last + s (model - last), where 'last' is the last value of the history and s the share of the model.

    Where nothing can be forecast, as in exchange rates, a model that follows chance is worse than the last value. The
    share that is best on validation takes that back.

    Args:
        pred_len: T.
        channels: C.
    """

    share: Tensor
    """Share of the model in [0, 1], a scalar; 1 until it is chosen."""

    def __init__(self, pred_len: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("share", torch.ones(()))
        self.candidates = nn.ModuleList([ForecastErrors(pred_len, channels) for _ in SHARES])

    def forward(self, y_BTC: Tensor, x_BLC: Tensor, share: Tensor | float | None = None) -> Tensor:
        """Return the blended forecast (B, T, C) in the units of the history.

        Args:
            y_BTC: forecast of the model.
            x_BLC: history; one without channels, (L,), goes with a forecast (T,).
            share: share of the model; by default the chosen one.
        """
        last = x_BLC[..., -1:, :] if x_BLC.ndim == 3 else x_BLC[-1:]
        return last + (self.share if share is None else share) * (y_BTC - last)

    def choose(self) -> ForecastErrors:
        """Choose the share with the smallest mean squared error, and return its errors."""
        squared = [float(cast(ForecastErrors, errors).compute()["mse"]) for errors in self.candidates]
        best = min(range(len(squared)), key=squared.__getitem__)
        self.share.fill_(SHARES[best])
        return cast(ForecastErrors, self.candidates[best])

    def reset(self) -> None:
        """Forget the errors of all shares."""
        for errors in self.candidates:
            cast(ForecastErrors, errors).reset()
