"""Series to 2D maps, and moments to calendar features: pure functions, no files."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from core.errors import InputError

__all__ = ["dominant_period", "fold_by_period", "map_shape", "time_marks"]


def fold_by_period(x_BCL: Tensor, period: int) -> Tensor:
    """A row for each period: what is a period apart stands one above the other.

    ::

        0 1 2 3 4 5 6 7   with period 3   0 0 1
                                          2 3 4
                                          5 6 7

    Args:
        x_BCL: (B, C, L).
        period: P, time steps of a row.

    Returns:
        (B, C, ceil(L / P), P), the last row ending with the last step; where L is no multiple of P, the first value is
        repeated in front.

    Example:
        >>> fold_by_period(torch.arange(8.0).view(1, 1, 8), 3)[0, 0].tolist()
        [[0.0, 0.0, 1.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]
    """
    missing = -x_BCL.shape[-1] % period
    if missing:
        x_BCL = F.pad(x_BCL, (missing, 0), mode="replicate")
    return x_BCL.unflatten(-1, (-1, period))


def dominant_period(values_TC: Tensor, longest: int) -> int:
    """Time steps of the strongest wave of the standardised channels.

    The peak of the mean amplitude spectrum says between which lengths it lies; of these the one with the largest
    autocorrelation is taken, since the spectrum of a short series knows only few lengths. It is that of the differences
    from step to step: of values that wander slowly too, any shorter length would agree better.

    Args:
        values_TC: (T, C), T at least twice ``longest``.
        longest: only periods from 2 up to this are looked at.

    Raises:
        InputError: if the series is too short for that, or no period is left.
    """
    steps = len(values_TC)
    if not 2 <= longest <= steps // 2:
        raise InputError(f"periods of up to {longest} steps in a series of {steps}; expected 2 up to half the series")
    z = values_TC.double() - values_TC.double().mean(dim=0)
    z = z / z.std(dim=0, correction=0).clamp(min=1e-12)
    amplitude = torch.fft.rfft(z, dim=0).abs().mean(dim=1)
    slowest = math.ceil(steps / longest)
    waves = slowest + int(amplitude[slowest:].argmax())
    lags = range(max(2, steps // (waves + 1)), min(longest, steps // (waves - 1)) + 1)
    change = z.diff(dim=0)
    return max(lags, key=lambda lag: float((change[lag:] * change[:-lag]).mean()))


def map_shape(length: int, dim: int, wanted: Sequence[int] | None = None) -> tuple[int, int]:
    """Height and width of the map that ``length`` tokens of ``dim`` channels become, read row by row.

    Args:
        length: L.
        dim: D.
        wanted: (H, W), checked and returned; by default the most square one, of multiples of 32 if there are such.

    Raises:
        InputError: if H W is not L D.

    Example:
        >>> map_shape(48, 768)
        (192, 192)
    """
    area = length * dim
    if wanted is not None:
        if len(wanted) != 2 or min(wanted) < 1 or wanted[0] * wanted[1] != area:
            raise InputError(f"a map of {tuple(wanted)} does not hold {length} x {dim} = {area} values; choose another")
        return wanted[0], wanted[1]
    sides = [height for height in range(1, math.isqrt(area) + 1) if area % height == 0]
    clean = [height for height in sides if height % 32 == 0 and area // height % 32 == 0]
    height = (clean or sides)[-1]
    return height, area // height


def time_marks(times: Any) -> Tensor:
    """Calendar features of moments: (T, 4) float32 in [-0.5, 0.5], hour, weekday, day of month, day of year.

    Args:
        times: a ``pandas.DatetimeIndex`` of length T.
    """
    parts = (times.hour / 23, times.day_of_week / 6, (times.day - 1) / 30, (times.day_of_year - 1) / 365)
    columns = [torch.as_tensor(part.to_numpy(dtype="float64", copy=True)) - 0.5 for part in parts]
    return torch.stack(columns, dim=1).float()
