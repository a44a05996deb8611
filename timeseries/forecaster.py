"""A forecaster for any series: each channel's history becomes a map, a backbone reads it, a head writes the horizon.

Shapes: B windows, L steps of history, T steps of horizon, C channels, Q quantiles, G channels of one map.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.backbones.staged import StagedNet
from core.errors import InputError
from timeseries.feature_map import fold_by_period, map_shape

__all__ = ["Forecaster", "Layout", "Normalize", "without_output_norm"]

Layout = Literal["fold", "embed"]
Normalize = Literal["none", "mean", "last", "revin"]


def without_output_norm(backbone: nn.Module) -> nn.Module:
    """The backbone, not training the norm behind its last map, which is not read: distributed training wants that."""
    if isinstance(backbone, StagedNet):
        backbone.norm.requires_grad_(False)
    return backbone


class Forecaster(nn.Module):
    """Histories to forecasts, both in the units of the series.

    ::

        x ─ standardised ─ window's level out ─┬─ map ─ backbone ─ LayerNorm ─ dropout ─ Linear ─┐
                                               └──────────────── Linear(L, T) ───────────────── + ─ level in ─ y

    The map is a channel folded by its period, a row for each ('fold'): a kernel sees the same hour of other days above
    and below, and neighbouring hours beside it. Or, as in the papers, each step becomes a token, and the tokens (L, D)
    are read row by row as a map ('embed').

    Args:
        backbone: a net without classifier, with G input channels for 'fold' and one for 'embed'.
        channels: C.
        seq_len: L.
        pred_len: T.
        period: steps of a row of the folded map.
        layout: 'fold' or 'embed'.
        enlarge: each cell of the folded map becomes so many by so many, since a backbone's stem reduces the map.
        embed_dim: D of a token in the layout 'embed'.
        group: G, neighbouring channels that form one map: 1 for channels that know nothing of each other, C for all.
        normalize: what of a window's level is taken out and put back: 'none', its 'mean', its 'last' value, or mean and
            standard deviation with a learned affine ('revin', Kim et al., ICLR 2022).
        linear: add the linear path past the backbone.
        dropout: before the head.
        quantiles: levels in (0, 1), rising; the net then writes one forecast for each.

    Raises:
        InputError: if arguments do not fit together, or one is unknown.
    """

    mean: Tensor
    """(C,) of the training rows, set by :meth:`set_scale`."""
    std: Tensor
    """(C,) of the training rows, set by :meth:`set_scale`."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        channels: int,
        seq_len: int = 96,
        pred_len: int = 96,
        period: int = 24,
        layout: Layout = "fold",
        enlarge: int = 4,
        embed_dim: int = 96,
        group: int = 1,
        normalize: Normalize = "none",
        linear: bool = True,
        dropout: float = 0.5,
        quantiles: Sequence[float] = (),
    ) -> None:
        super().__init__()
        if min(channels, seq_len, pred_len, period, enlarge, group, embed_dim) < 1 or channels % group:
            raise InputError(
                f"channels={channels}, seq_len={seq_len}, pred_len={pred_len}, period={period}, enlarge={enlarge}, "
                f"embed_dim={embed_dim}, group={group}; all at least 1, and channels a multiple of group"
            )
        if layout not in ("fold", "embed") or normalize not in ("none", "mean", "last", "revin"):
            raise InputError(
                f"layout={layout!r}, normalize={normalize!r}; expected 'fold' or 'embed', and 'none', 'mean', 'last' "
                "or 'revin'"
            )
        levels = (0.0, *quantiles, 1.0)
        if any(low >= high for low, high in pairwise(levels)):
            raise InputError(f"quantiles={tuple(quantiles)}; give rising levels between 0 and 1")
        self.channels, self.seq_len, self.pred_len, self.period = channels, seq_len, pred_len, period
        self.layout, self.enlarge, self.group, self.normalize = layout, enlarge, group, normalize
        self.map_size, self.quantiles = map_shape(seq_len, embed_dim), tuple(quantiles)
        self.outputs = max(1, len(quantiles))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))
        self.embedding = (
            nn.Conv1d(group, embed_dim, 3, padding=1, padding_mode="replicate") if layout == "embed" else None
        )
        self.encoder = without_output_norm(backbone)
        features = self._features()
        self.norm, self.dropout = nn.LayerNorm(features), nn.Dropout(dropout)
        self.head = nn.Linear(features, group * pred_len * self.outputs)
        nn.init.zeros_(self.head.weight)  # so that training begins with the linear path
        nn.init.zeros_(self.head.bias)
        self.linear = nn.Linear(seq_len, pred_len) if linear else None
        if self.linear is not None:
            nn.init.constant_(self.linear.weight, 1 / seq_len)
            nn.init.zeros_(self.linear.bias)
        affine = normalize == "revin"
        self.affine_weight = nn.Parameter(torch.ones(channels)) if affine else None
        self.affine_bias = nn.Parameter(torch.zeros(channels)) if affine else None

    def _features(self) -> int:
        """Numbers in the backbone's last map."""
        mode = self.encoder.training
        self.encoder.eval()
        try:
            with torch.no_grad():
                maps = self.to_maps(self.mean.new_zeros(2, self.seq_len, self.channels))[:2]
                return cast(Any, self.encoder).forward_features(maps)[0].numel()
        except RuntimeError as error:
            raise InputError(f"the backbone does not take these maps: {error}; {self._channels_needed()}") from error
        finally:
            self.encoder.train(mode)

    def _channels_needed(self) -> str:
        return f"build it with in_chans={1 if self.layout == 'embed' else self.group}"

    def set_scale(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Mean and standard deviation of the training rows, by which the net standardises what it gets.

        Raises:
            InputError: if they are not C numbers.
        """
        if mean_C.shape != self.mean.shape:
            raise InputError(
                f"the model has {self.channels} channels and the data {len(mean_C)}; set --model.channels {len(mean_C)}"
            )
        self.mean.copy_(mean_C)
        self.std.copy_(std_C)

    def to_maps(self, z_BLC: Tensor) -> Tensor:
        """Normalised histories to maps (B C / G, G, H, W), or (B C / G, 1, H, W) for the layout 'embed'."""
        x = z_BLC.transpose(1, 2).reshape(-1, self.group, z_BLC.shape[1])
        if self.embedding is not None:
            return self.embedding(x).transpose(1, 2).reshape(-1, 1, *self.map_size)
        maps = fold_by_period(x, self.period)
        return F.interpolate(maps, scale_factor=float(self.enlarge)) if self.enlarge > 1 else maps

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) float to (B, T, C), or to (B, T, C, Q) with quantiles.

        Raises:
            InputError: if the history has another length or number of channels.
        """
        if x_BLC.shape[1:] != (self.seq_len, self.channels):
            raise InputError(
                f"the history is {tuple(x_BLC.shape)}; the net was built for (B, {self.seq_len}, {self.channels})"
            )
        z = (x_BLC - self.mean) / self.std
        level, spread = self._level(z)
        z = (z - level) / spread
        if self.affine_weight is not None and self.affine_bias is not None:
            z = z * self.affine_weight + self.affine_bias
        y = self._read(z)
        if self.affine_weight is not None and self.affine_bias is not None:
            y = (y - self.affine_bias[:, None]) / (self.affine_weight[:, None] + 1e-10)
        y = y * spread[..., None] + level[..., None]
        y = y * self.std[:, None] + self.mean[:, None]
        return y if self.quantiles else y[..., 0]

    def _level(self, z_BLC: Tensor) -> tuple[Tensor, Tensor]:
        """What is taken out of a window and what it is divided by, each (B, 1, C)."""
        nothing = torch.zeros_like(z_BLC[:, :1])
        if self.normalize == "none":
            return nothing, nothing + 1
        if self.normalize == "last":
            return z_BLC[:, -1:], nothing + 1
        mean = z_BLC.mean(dim=1, keepdim=True)
        if self.normalize == "mean":
            return mean, nothing + 1
        return mean.detach(), (z_BLC.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt().detach()

    def _read(self, z_BLC: Tensor) -> Tensor:
        """Normalised histories to normalised forecasts (B, T, C, Q)."""
        features = cast(Any, self.encoder).forward_features(self.to_maps(z_BLC)).flatten(1)
        y = self.head(self.dropout(self.norm(features)))
        y = y.reshape(-1, self.channels, self.pred_len, self.outputs).transpose(1, 2)
        if self.linear is not None:
            y = y + self.linear(z_BLC.transpose(1, 2)).transpose(1, 2)[..., None]
        return y
