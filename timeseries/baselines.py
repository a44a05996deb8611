"""What every forecast is compared with: the last value, the last season, and one linear layer, fitted exactly."""

import torch
from torch import Tensor

__all__ = ["fit_linear", "last_value", "linear_forecast", "seasonal_value"]


def last_value(x_BLC: Tensor, pred_len: int) -> Tensor:
    """The last value again and again, (B, pred_len, C)."""
    return x_BLC[:, -1:].expand(-1, pred_len, -1)


def seasonal_value(x_BLC: Tensor, pred_len: int, period: int) -> Tensor:
    """The last whole period again and again, (B, pred_len, C); of a shorter history all of it."""
    period = min(period, x_BLC.shape[1])
    places = torch.arange(pred_len, device=x_BLC.device) % period
    return x_BLC[:, -period:][:, places]


def fit_linear(values_TC: Tensor, seq_len: int, pred_len: int, *, ridge: float = 1e-3, most: int = 1_000_000) -> Tensor:
    """The linear layer from history to horizon, shared by all channels, with the least squared error on a series.

    DLinear (arXiv 2205.13504) trains two such layers, on trend and season, which are linear in the history themselves:
    what it can express is one layer. Its optimum is computed here, so that nothing depends on how long it was trained.

    Args:
        values_TC: (T, C) standardised training rows.
        seq_len: L.
        pred_len: H.
        ridge: added to the mean square of each input, for stability.
        most: windows that are used; of more than that, evenly spread ones are.

    Returns:
        (L + 1, H) float32: weights, and the bias in the last row.
    """
    total = len(values_TC) - seq_len - pred_len + 1
    stride = max(1, total * values_TC.shape[1] // most)
    size, count = seq_len + 1, 0
    square, cross = values_TC.new_zeros(size, size).double(), values_TC.new_zeros(size, pred_len).double()
    for windows_NCL in values_TC.unfold(0, seq_len + pred_len, stride).split(256):
        rows = windows_NCL.reshape(-1, seq_len + pred_len).double()
        x = torch.cat([rows[:, :seq_len], rows.new_ones(len(rows), 1)], dim=1)
        square, cross, count = square + x.T @ x, cross + x.T @ rows[:, seq_len:], count + len(rows)
    penalty = torch.full((size,), ridge, dtype=torch.float64, device=square.device)
    penalty[-1] = 1e-12  # of the bias
    return torch.linalg.solve(square / count + penalty.diag(), cross / count).float()


def linear_forecast(z_BLC: Tensor, weight: Tensor) -> Tensor:
    """Standardised histories to standardised forecasts (B, H, C), by the weights of :func:`fit_linear`."""
    return (z_BLC.transpose(1, 2) @ weight[:-1] + weight[-1]).transpose(1, 2)
