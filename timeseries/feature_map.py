"""Series to 2D maps: the feature map of the forecasters, and the plain functions that it is made of.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, Q quantiles, G channels of one map.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from core.layers.feature_map import FeatureMap

__all__ = ["Layout", "Level", "Normalize", "SeriesMap", "dominant_period", "fold_by_period", "map_shape", "time_marks"]

Layout = Literal["fold", "embed"]
Normalize = Literal["none", "mean", "last", "revin"]


class Level(NamedTuple):
    """What was taken out of each window, to be put back into its forecast.

    Attributes:
        center: (B, 1, C), subtracted from the standardized history.
        spread: (B, 1, C), by which the difference was divided.
    """

    center: Tensor
    spread: Tensor


class SeriesMap(FeatureMap):
    """Histories in the units of the file to maps.

    ::

        x ── standardize ── take the window's level out ── z ──┬── fold by period, enlarge ──┬── map
                                                               └── embed each step ──────────┘

    The layout 'fold' gives each channel a map of its own with one row for each period, so that a kernel sees the same
    hour of other days above and below, and neighboring hours beside it. The layout 'embed' is the papers': each step
    becomes a token of D numbers, and the tokens (L, D) are read row by row as one map.

    Args:
        channels: C.
        seq_len: L.
        period: steps in a row of the folded map.
        layout: 'fold' or 'embed'.
        enlarge: factor by which height and width of the folded map grow, because a backbone's stem shrinks the map.
        embed_dim: D of the layout 'embed'.
        group: G, the number of neighboring channels in one map: 1 for channels that are read independently, C for all.
        normalize: the level that is taken out of a window: 'none', its 'mean', its 'last' value, or its mean and
            standard deviation followed by a learned affine map ('revin', Kim et al., ICLR 2022).

    Attributes:
        in_chans: input channels that the backbone needs: G, or 1 for the layout 'embed'.

    Raises:
        InputError: if a number is below 1, or C is not a multiple of G.
    """

    mean: Tensor
    """(C,) float32, over the training rows, in the units of the file."""
    std: Tensor
    """(C,) float32, over the training rows, in the units of the file."""

    def __init__(
        self,
        channels: int,
        seq_len: int,
        *,
        period: int = 24,
        layout: Layout = "fold",
        enlarge: int = 4,
        embed_dim: int = 96,
        group: int = 1,
        normalize: Normalize = "none",
    ) -> None:
        super().__init__()
        if min(channels, seq_len, period, enlarge, embed_dim, group) < 1 or channels % group:
            raise InputError(
                f"channels={channels}, seq_len={seq_len}, period={period}, enlarge={enlarge}, embed_dim={embed_dim}, "
                f"group={group}; all must be at least 1, and channels a multiple of group"
            )
        if layout not in ("fold", "embed") or normalize not in ("none", "mean", "last", "revin"):
            raise InputError(
                f"layout={layout!r}, normalize={normalize!r}; expected 'fold' or 'embed', and 'none', 'mean', 'last' "
                "or 'revin'"
            )
        self.channels = channels
        self.seq_len = seq_len
        self.period = period
        self.layout = layout
        self.enlarge = enlarge
        self.group = group
        self.normalize = normalize
        self.in_chans = group if layout == "fold" else 1
        self.map_size = map_shape(seq_len, embed_dim)

        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

        self.embedding: nn.Conv1d | None = None
        if layout == "embed":
            self.embedding = nn.Conv1d(group, embed_dim, 3, padding=1, padding_mode="replicate")

        self.affine_weight: nn.Parameter | None = None
        self.affine_bias: nn.Parameter | None = None
        if normalize == "revin":
            self.affine_weight = nn.Parameter(torch.ones(channels))
            self.affine_bias = nn.Parameter(torch.zeros(channels))

    def set_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the standard deviation of the training rows, C numbers each, in the units of the file."""
        self.mean.copy_(torch.as_tensor(mean))
        self.std.copy_(torch.as_tensor(std))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Histories (B, L, C) in the units of the file to float32 maps (B C / G, G, H, W), or (B C / G, 1, H, W)."""
        z_BLC, _ = self.standardize(x_BLC)
        return self.to_maps(z_BLC)

    def standardize(self, x_BLC: Tensor) -> tuple[Tensor, Level]:
        """Histories in the units of the file to standardized ones without their level, and that level.

        Raises:
            InputError: if the histories have another length or number of channels than the model.
        """
        if x_BLC.shape[1:] != (self.seq_len, self.channels):
            raise InputError(
                f"the history is {tuple(x_BLC.shape)}; the model was built for (B, {self.seq_len}, {self.channels})"
            )
        z = (x_BLC.float() - self.mean) / self.std
        level = self._level(z)
        z = (z - level.center) / level.spread
        if self.affine_weight is not None and self.affine_bias is not None:
            z = z * self.affine_weight + self.affine_bias
        return z, level

    def restore(self, y_BTCQ: Tensor, level: Level) -> Tensor:
        """Return the inverse of :meth:`standardize` for forecasts (B, T, C, Q): in the units of the file, float32."""
        y = y_BTCQ.float()
        if self.affine_weight is not None and self.affine_bias is not None:
            y = (y - self.affine_bias[:, None]) / (self.affine_weight[:, None] + 1e-10)
        y = y * level.spread[..., None] + level.center[..., None]
        return y * self.std[:, None] + self.mean[:, None]

    def to_maps(self, z_BLC: Tensor) -> Tensor:
        """Standardized histories (B, L, C) to maps."""
        x = z_BLC.transpose(1, 2).reshape(-1, self.group, self.seq_len)
        if self.embedding is not None:
            tokens = self.embedding(x.to(self.embedding.weight.dtype)).transpose(1, 2)
            return tokens.reshape(-1, 1, *self.map_size).float()

        maps = fold_by_period(x, self.period)
        if self.enlarge == 1:
            return maps
        return F.interpolate(maps, scale_factor=float(self.enlarge))

    def _level(self, z_BLC: Tensor) -> Level:
        zeros = torch.zeros_like(z_BLC[:, :1])
        ones = torch.ones_like(zeros)
        if self.normalize == "none":
            return Level(zeros, ones)
        if self.normalize == "last":
            return Level(z_BLC[:, -1:], ones)

        mean = z_BLC.mean(dim=1, keepdim=True)
        if self.normalize == "mean":
            return Level(mean, ones)
        variance = z_BLC.var(dim=1, keepdim=True, correction=0)
        return Level(mean.detach(), (variance + 1e-5).sqrt().detach())


def fold_by_period(x_BCL: Tensor, period: int) -> Tensor:
    """Write a series in rows of one period, so that steps which are a period apart lie above each other.

    ::

        0 1 2 3 4 5 6 7   with period 3   0 0 1
                                          2 3 4
                                          5 6 7

    Args:
        x_BCL: (B, C, L).
        period: P, time steps in a row.

    Returns:
        (B, C, ceil(L / P), P). The last row ends with the last step; where L is not a multiple of P, the first value is
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
    """Return the period of the strongest wave in the standardized channels, in time steps.

    The peak of the mean amplitude spectrum gives an interval of lengths, because the spectrum of a short series
    resolves only a few. Within the interval, the length with the largest autocorrelation of the differences from step
    to step wins. (The values themselves may wander slowly, and then the shortest length would always agree best.)

    Args:
        values_TC: (T, C), T at least twice ``longest``.
        longest: the longest period to consider; the shortest is 2.

    Raises:
        InputError: if the series is too short, or no period is left to consider.
    """
    steps = len(values_TC)
    if not 2 <= longest <= steps // 2:
        raise InputError(f"periods of up to {longest} steps in a series of {steps}; expected 2 up to half the series")
    z = values_TC.double() - values_TC.double().mean(dim=0)
    z = z / z.std(dim=0, correction=0).clamp(min=1e-12)

    amplitude = torch.fft.rfft(z, dim=0).abs().mean(dim=1)
    slowest = math.ceil(steps / longest)
    waves = slowest + int(amplitude[slowest:].argmax())  # in the whole series

    lags = range(max(2, steps // (waves + 1)), min(longest, steps // (waves - 1)) + 1)
    change = z.diff(dim=0)
    return max(lags, key=lambda lag: float((change[lag:] * change[:-lag]).mean()))


def map_shape(length: int, dim: int, wanted: Sequence[int] | None = None) -> tuple[int, int]:
    """Height and width of the map that ``length`` tokens of ``dim`` numbers form when they are read row by row.

    Args:
        length: L.
        dim: D.
        wanted: (H, W), which is checked and returned. By default the shape closest to a square is taken, among those of
            multiples of 32 if there are any.

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
    multiples = [height for height in sides if height % 32 == 0 and area // height % 32 == 0]
    height = (multiples or sides)[-1]
    return height, area // height


def time_marks(times: Any) -> Tensor:
    """Calendar features of timestamps: hour, weekday, day of the month, day of the year.

    Args:
        times: a ``pandas.DatetimeIndex`` of length T.

    Returns:
        (T, 4) float32 in [-0.5, 0.5].
    """
    features = (
        times.hour / 23,
        times.day_of_week / 6,
        (times.day - 1) / 30,
        (times.day_of_year - 1) / 365,
    )
    columns = [torch.as_tensor(feature.to_numpy(dtype="float64", copy=True)) - 0.5 for feature in features]
    return torch.stack(columns, dim=1).float()
