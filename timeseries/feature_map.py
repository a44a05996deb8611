"""The feature map of the forecasters, which turns series into 2D maps, and the functions that it is made of.

Shapes: B windows, L steps of history, T steps of the horizon, C channels, K covariates, Q quantiles, G channels of one
map.
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

SIGNIFICANCE = 0.01
"""Probability that :func:`dominant_period` finds a period in red noise, over all frequencies together."""
NEIGHBORS = 25
"""Frequencies on each side from which the power of the noise is estimated."""

HIDDEN = 32
"""Width of the net that turns the covariates of a step into their effect."""

Layout = Literal["fold", "embed"]
Normalize = Literal["none", "mean", "last", "revin"]


class Level(NamedTuple):
    """What was taken out of each window and is put back into its forecast.

    Attributes:
        center: (B, 1, C), subtracted from the standardized history.
        spread: (B, 1, C), by which the difference was divided.
        dtype: that of the forecast: float64 for histories of float64 or integers, otherwise float32.
        covariates: (B, L + T, K), standardized; None without covariates.
        effect: (B, T, C), what the covariates alone add to the standardized forecast; None without covariates.
    """

    center: Tensor
    spread: Tensor
    dtype: torch.dtype
    covariates: Tensor | None = None
    effect: Tensor | None = None


class SeriesMap(FeatureMap):
    """Turns histories in the units of the file into maps.

    ::

        x ── standardize ── take the window's level out ── z ──┬── fold by period, enlarge ──┬── map
                                                               └── embed each step ──────────┘

    The layout 'fold' gives each channel a map of its own with one row for each period. A kernel then sees the same hour
    of other days above and below, and neighboring hours beside it. The layout 'embed' is that of the papers: each step
    becomes a token of D numbers, and the tokens (L, D) are read row by row as one map.

    Covariates, which are known for the history and the horizon, enter in two ways. A small net, the same at each step,
    turns them into an effect on each channel; it is taken out of the standardized history, and put back into the
    forecast at the steps of the horizon, so that the rest of the forecaster sees what the covariates do not explain.
    They are also further channels of each map, which then has rows for the horizon too; there, the series itself is
    zero.

    Args:
        channels: C.
        seq_len: L.
        period: number of steps in a row of the folded map.
        layout: 'fold' or 'embed'.
        enlarge: factor by which height and width of the folded map grow, because a backbone's stem shrinks the map.
        embed_dim: D, for the layout 'embed'.
        group: G, the number of neighboring channels in one map: 1 reads the channels independently, C all together.
        normalize: the level that is taken out of each window: 'none', its 'mean', its 'last' value, or 'revin' for its
            mean and standard deviation, with a learned affine map (Kim et al., ICLR 2022).
        covariates: K.
        pred_len: T; used with covariates only.

    Attributes:
        in_chans: number of channels of the maps: G + K, or 1 for the layout 'embed'.
        steps: number of steps in a map: L, or L + T with covariates.
        map_size: height and width of the maps of the layout 'embed'.

    Raises:
        InputError: if a number is below 1, or C is not a multiple of G.
    """

    mean: Tensor
    """(C,) float32: mean of each channel over the training rows, in the units of the file."""
    mean_remainder: Tensor
    """(C,) float32: what ``mean`` lacks to the mean in float64, for channels that are far from zero."""
    std: Tensor
    """(C,) float32: standard deviation of each channel over the training rows, in the units of the file."""
    covariate_mean: Tensor
    """(K,) float32: mean of each known column over the training rows; 0 for the calendar."""
    covariate_std: Tensor
    """(K,) float32: standard deviation of each known column over the training rows; 1 for the calendar."""

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
        covariates: int = 0,
        pred_len: int = 0,
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
        self.covariates = covariates
        self.steps = seq_len + pred_len if covariates else seq_len
        self.in_chans = group + covariates if layout == "fold" else 1
        self.map_size = map_shape(self.steps, embed_dim)

        # Two float32 numbers hold the mean to 14 digits. With a float64 buffer, every series would be computed in
        # float64, which some devices and compilers do not have.
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("mean_remainder", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

        self.embedding: nn.Conv1d | None = None
        if layout == "embed":
            self.embedding = nn.Conv1d(group + covariates, embed_dim, 3, padding=1, padding_mode="replicate")

        self.affine_weight: nn.Parameter | None = None
        self.affine_bias: nn.Parameter | None = None
        if normalize == "revin":
            self.affine_weight = nn.Parameter(torch.ones(channels))
            self.affine_bias = nn.Parameter(torch.zeros(channels))

        self.effects: nn.Sequential | None = None
        if covariates:
            self.register_buffer("covariate_mean", torch.zeros(covariates))
            self.register_buffer("covariate_std", torch.ones(covariates))
            last = nn.Linear(HIDDEN, channels)
            nn.init.zeros_(last.weight)  # training begins with the forecast from the history alone
            nn.init.zeros_(last.bias)
            self.effects = nn.Sequential(nn.Linear(covariates, HIDDEN), nn.GELU(), last)

    def set_known_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set mean and standard deviation of the first covariates, the known columns, in the units of the file."""
        self.covariate_mean[: len(mean)] = torch.as_tensor(mean)
        self.covariate_std[: len(std)] = torch.as_tensor(std)

    def set_scale(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Set the mean and the standard deviation of the training rows, C numbers each, in the units of the file."""
        exact = torch.as_tensor(mean, dtype=torch.float64)
        self.mean.copy_(exact)
        self.mean_remainder.copy_(exact - exact.float())
        self.std.copy_(torch.as_tensor(std))

    def forward(self, x_BLC: Tensor, covariates_BTK: Tensor | None = None) -> Tensor:
        """Return float32 maps (B C / G, in_chans, H, W) of histories in the units of the file.

        Args:
            x_BLC: histories.
            covariates_BTK: covariates (B, L + T, K) of history and horizon, if the model reads them.
        """
        z_BLC, level = self.standardize(x_BLC, covariates_BTK)
        return self.to_maps(z_BLC, level.covariates)

    def standardize(self, x_BLC: Tensor, covariates_BTK: Tensor | None = None) -> tuple[Tensor, Level]:
        """Standardize histories (B, L, C), and take the effect of the covariates and the level out.

        Args:
            x_BLC: histories.
            covariates_BTK: covariates (B, L + T, K) of history and horizon, if the model reads them.

        Returns:
            The standardized histories (B, L, C) without their level, float32, and that level.

        Raises:
            InputError: if the histories have another length or number of channels than the model, or the covariates
                are missing or do not fit.
        """
        if x_BLC.shape[1:] != (self.seq_len, self.channels):
            raise InputError(
                f"the history is {tuple(x_BLC.shape)}; the model was built for (B, {self.seq_len}, {self.channels})"
            )

        fits_float32 = x_BLC.dtype in (torch.float32, torch.float16, torch.bfloat16)
        dtype = torch.float32 if fits_float32 else torch.float64

        # Center before the cast to float32, which would round away how a channel changes far from zero.
        z = ((x_BLC.to(dtype) - self.mean).float() - self.mean_remainder) / self.std

        covariates = self._standardized(covariates_BTK)
        effect = None
        if self.effects is not None and covariates is not None:
            effects = self.effects(covariates.to(next(self.effects.parameters()).dtype)).float()
            z = z - effects[:, : self.seq_len]
            effect = effects[:, self.seq_len :]

        level = self._level(z, dtype)._replace(covariates=covariates, effect=effect)
        z = (z - level.center) / level.spread
        if self.affine_weight is not None and self.affine_bias is not None:
            z = z * self.affine_weight + self.affine_bias
        return z, level

    def restore(self, y_BTCQ: Tensor, level: Level) -> Tensor:
        """Return forecasts (B, T, C, Q) in the units of the file and the dtype of the level, from standardized ones."""
        y = y_BTCQ.float()
        if self.affine_weight is not None and self.affine_bias is not None:
            y = (y - self.affine_bias[:, None]) / (self.affine_weight[:, None] + 1e-10)
        y = y * level.spread[..., None] + level.center[..., None]
        if level.effect is not None:
            y = y + level.effect[..., None]
        y = y * self.std[:, None] + self.mean_remainder[:, None]
        return y.to(level.dtype) + self.mean[:, None]

    def to_maps(self, z_BLC: Tensor, covariates_BTK: Tensor | None = None) -> Tensor:
        """Return the maps of standardized histories (B, L, C), and of standardized covariates (B, L + T, K)."""
        x = z_BLC.transpose(1, 2).reshape(-1, self.group, self.seq_len)
        if covariates_BTK is not None:
            maps_of_each = self.channels // self.group
            known = covariates_BTK.transpose(1, 2).repeat_interleave(maps_of_each, dim=0)
            x = torch.cat([F.pad(x, (0, self.steps - self.seq_len)), known], dim=1)
        if self.embedding is not None:
            tokens = self.embedding(x.to(self.embedding.weight.dtype)).transpose(1, 2)
            return tokens.reshape(-1, 1, *self.map_size).float()

        maps = fold_by_period(x, self.period)
        if self.enlarge == 1:
            return maps
        return F.interpolate(maps, scale_factor=float(self.enlarge))

    def _standardized(self, covariates_BTK: Tensor | None) -> Tensor | None:
        """Return standardized covariates (B, L + T, K) in float32, or None if the model reads none."""
        if self.covariates == 0 and covariates_BTK is None:
            return None
        if covariates_BTK is None or covariates_BTK.shape[1:] != (self.steps, self.covariates):
            found = "none" if covariates_BTK is None else f"{tuple(covariates_BTK.shape)}"
            expected = f"(B, {self.steps}, {self.covariates})" if self.covariates else "none"
            raise InputError(
                f"the covariates are {found}; the model was built for {expected}, all steps of history and horizon"
            )
        return ((covariates_BTK - self.covariate_mean) / self.covariate_std).float()

    def _level(self, z_BLC: Tensor, dtype: torch.dtype) -> Level:
        """Return the level of standardized histories; the dtype is that of the forecasts."""
        zeros = torch.zeros_like(z_BLC[:, :1])
        ones = torch.ones_like(zeros)
        if self.normalize == "none":
            return Level(zeros, ones, dtype)
        if self.normalize == "last":
            return Level(z_BLC[:, -1:], ones, dtype)

        mean = z_BLC.mean(dim=1, keepdim=True)
        if self.normalize == "mean":
            return Level(mean, ones, dtype)
        variance = z_BLC.var(dim=1, keepdim=True, correction=0)
        return Level(mean.detach(), (variance + 1e-5).sqrt().detach(), dtype)


def fold_by_period(x_BCL: Tensor, period: int) -> Tensor:
    """Write a series in rows of one period, so that steps that are a period apart stand above each other.

    ::

        0 1 2 3 4 5 6 7   with period 3   0 0 1
                                          2 3 4
                                          5 6 7

    Args:
        x_BCL: (B, C, L).
        period: P, the number of steps in a row.

    Returns:
        (B, C, ceil(L / P), P). The last row ends with the last step. If L is not a multiple of P, the first value is
        repeated at the beginning.

    Example:
        >>> fold_by_period(torch.arange(8.0).view(1, 1, 8), 3)[0, 0].tolist()
        [[0.0, 0.0, 1.0], [2.0, 3.0, 4.0], [5.0, 6.0, 7.0]]
    """
    missing = -x_BCL.shape[-1] % period
    if missing:
        x_BCL = F.pad(x_BCL, (missing, 0), mode="replicate")
    return x_BCL.unflatten(-1, (-1, period))


def dominant_period(values_TC: Tensor, longest: int) -> int | None:
    """Return the period of the strongest wave in the standardized channels, in time steps, or None if there is none.

    A wave must stand out of red noise, which has slow swings of every length, but no period; see
    :func:`_power_over_red_noise`. Its frequency gives an interval of lengths, because the spectrum of a short series
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
    z = z / z.std(dim=0, correction=0).clamp(min=torch.finfo(z.dtype).tiny)

    # Frequencies are counted in waves per series.
    slowest = math.ceil(steps / longest)
    amplitude, over_noise = _power_over_red_noise(z)
    tests = len(over_noise) - slowest
    is_wave = over_noise > math.log(tests / SIGNIFICANCE)
    is_wave[:slowest] = False
    if not is_wave.any():
        return None
    waves = int((amplitude * is_wave).argmax())

    lags = range(max(2, steps // (waves + 1)), min(longest, steps // (waves - 1)) + 1)
    change = z.diff(dim=0)
    return max(lags, key=lambda lag: float((change[lag:] * change[:-lag]).mean()))


def _power_over_red_noise(z_TC: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean amplitude of the channels at each frequency, and their mean power over that of red noise.

    This is the usual test of a spectral peak (Gilman et al., 1963; Torrence and Compo, 1998, section 4): the noise is
    the first-order autoregressive process with the lag-1 autocorrelation of the channel, whose power has a chi-squared
    distribution with two degrees of freedom. In one channel of such noise, the second result is above x with
    probability exp(-x) at each frequency; in the mean of several channels it is smaller.

    Where the noise is whiter than that at high frequencies, as with errors of measurement, the median of the
    neighboring frequencies takes the place of its power (Mann and Lees, 1996).

    Args:
        z_TC: standardized channels.
    """
    taper = torch.hann_window(len(z_TC), dtype=z_TC.dtype, device=z_TC.device)
    power = torch.fft.rfft(z_TC * taper[:, None], dim=0).abs().square() / taper.square().sum()

    r = (z_TC[1:] * z_TC[:-1]).mean(dim=0)
    angle = torch.linspace(0, torch.pi, len(power), dtype=z_TC.dtype, device=z_TC.device)[:, None]
    red_noise = (1 - r**2) / (1 + r**2 - 2 * r * angle.cos())
    over_noise = (power / red_noise).mean(dim=1)

    neighbors = F.pad(over_noise[None], (NEIGHBORS, NEIGHBORS), mode="replicate").unfold(1, 2 * NEIGHBORS + 1, 1)[0]
    level = neighbors.median(dim=1).values / math.log(2)  # the median of the distribution is log 2 of its mean
    return power.sqrt().mean(dim=1), over_noise / level.clamp(min=1)


def map_shape(length: int, dim: int, wanted: Sequence[int] | None = None) -> tuple[int, int]:
    """Return height and width of the map that ``length`` tokens of ``dim`` numbers form when read row by row.

    Args:
        length: L.
        dim: D.
        wanted: (H, W), which is checked and returned. By default, the shape closest to a square is chosen, if possible
            one whose sides are multiples of 32.

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
    """Return calendar features of timestamps: hour, day of the week, day of the month and day of the year.

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
    columns = [torch.from_numpy(feature.to_numpy(dtype="float64", copy=True)) for feature in features]
    return (torch.stack(columns, dim=1) - 0.5).float()
