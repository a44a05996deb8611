"""The decoder of Corrformer and its parts, from the smallest to the whole, with the published tensor names.

Paper: 'Interpretable weather forecasting for worldwide stations with a unified deep model' (Nature Machine Intelligence
2023), code github.com/thuml/Corrformer (MIT). UniRepLKNet replaces its encoder (arXiv 2410.08049, table 12).

Shapes: B series, L time steps of the query, S of the memory, D channels of a token, E channels of a head, n leaf nodes
of the tree with c stations each, N nodes of a group.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError

__all__ = [
    "PUBLISHED",
    "AutoCorrelation",
    "CausalConv1d",
    "CausalFusion",
    "Corrformer",
    "CorrformerLayer",
    "CrossCorrelation",
    "GlobalArchitecture",
    "Memory",
    "MultiCorrelation",
    "NodeEmbedding",
    "SeasonalNorm",
    "SeriesDecomposition",
    "lag_correlation",
    "shift_in_time",
]

Memory = Literal["tokens", "pooled"]


@dataclass(frozen=True)
class GlobalArchitecture:
    """The sizes of the global forecaster; the defaults are the published ones, for 3,850 stations.

    Args:
        tree: number of children of a node on each level, from the root. The product is n, the number of leaves.
        stations: c, the number of stations of a leaf; consecutive stations of the data form a leaf.
        d_model: D, which is also the number of channels of the backbone's last map.
        n_heads: number of heads of the correlations.
        d_layers: number of layers of the decoder.
        d_ff: width of the feed-forward net in a layer.
        moving_avg: length of the moving average that separates trend and season, an odd number of time steps.
        factor: int(factor * ln L) lags are taken in an auto-correlation, and ``factor`` lags in a cross-correlation.
        tcn_layers: number of blocks of the causal net over the nodes.
        dropout: dropout probability of the embeddings and the decoder.
        marks: number of calendar features of a time step.
        coordinates: number of coordinates of a station.
        map_size: height and width of a node's map, whose product is seq_len * d_model; by default the shape closest to
            a square, if possible one whose sides are multiples of 32.
        memory: what the decoder reads: 'tokens', one for each place of the backbone's last map, or 'pooled', one vector
            for each node.

    Raises:
        InputError: if a number is below 1, or ``memory`` is unknown.
    """

    tree: tuple[int, ...] = (7, 50)
    stations: int = 11
    d_model: int = 768
    n_heads: int = 16
    d_layers: int = 1
    d_ff: int = 2048
    moving_avg: int = 25
    factor: int = 1
    tcn_layers: int = 1
    dropout: float = 0.05
    marks: int = 4
    coordinates: int = 3
    map_size: tuple[int, int] | None = None
    memory: Memory = "tokens"

    def __post_init__(self) -> None:
        if not self.tree or min(*self.tree, self.stations) < 1:
            raise InputError(f"tree={tuple(self.tree)}, stations={self.stations}; all must be at least 1")
        if self.memory not in ("tokens", "pooled"):
            raise InputError(f"memory={self.memory!r}; expected 'tokens' or 'pooled'")

    @property
    def leaves(self) -> int:
        """The number of leaf nodes, n."""
        return math.prod(self.tree)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Build the sizes from the plain values in a checkpoint, where tuples have become lists."""
        sizes: dict[str, Any] = {}
        for name, value in values.items():
            sizes[name] = tuple(value) if isinstance(value, list) else value
        return cls(**sizes)


PUBLISHED = GlobalArchitecture()
"""The sizes of the papers."""


# Trend and season


class SeriesDecomposition(nn.Module):
    """Splits a series into its trend, a moving average over time, and its season, the rest.

    Args:
        kernel_size: number of time steps of the average; beyond both ends, it sees the first or the last value.

    Raises:
        InputError: if the number is even or below 1.
    """

    def __init__(self, kernel_size: int = 25) -> None:
        super().__init__()
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise InputError(f"the moving average runs over {kernel_size} steps; give an odd number of 1 or more")
        self.reach = kernel_size // 2

    def forward(self, x_BLD: Tensor) -> tuple[Tensor, Tensor]:
        """Return season and trend, each (B, L, D), whose sum is the input."""
        padded = F.pad(x_BLD.transpose(1, 2), (self.reach, self.reach), mode="replicate")
        trend = F.avg_pool1d(padded, 2 * self.reach + 1, stride=1).transpose(1, 2)
        return x_BLD - trend, trend


class SeasonalNorm(nn.Module):
    """LayerNorm, minus the mean over time, so that the result has no level.

    Args:
        dim: D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(dim)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the norm of (B, L, D), in the same shape."""
        y: Tensor = self.layernorm(x_BLD)
        return y - torch.mean(y, dim=1, keepdim=True)


# A causal temporal convolutional network (TCN), which here runs over the nodes of a group instead of time


class CausalConv1d(nn.Conv1d):
    """A convolution over a position and earlier ones, with weight normalization.

    The weight is stored as a length and a direction, with the names of torch's old ``weight_norm``: ``weight_g`` and
    ``weight_v``.

    Args:
        channels: number of channels of input and output.
        kernel_size: number of positions under the kernel.
        dilation: distance between these positions.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        super().__init__(channels, channels, kernel_size, dilation=dilation)
        direction = self.weight.detach().clone()
        del self.weight
        self.weight_g = nn.Parameter(torch.linalg.vector_norm(direction, dim=(1, 2), keepdim=True))
        self.weight_v = nn.Parameter(direction)

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Return the convolution of (B, C, N), in the same shape."""
        length = torch.linalg.vector_norm(self.weight_v, dim=(1, 2), keepdim=True)
        weight = self.weight_v * (self.weight_g / length)
        left = (self.kernel_size[0] - 1) * self.dilation[0]
        return F.conv1d(F.pad(x_BCN, (left, 0)), weight, self.bias, dilation=self.dilation)


class _CausalBlock(nn.Module):
    """Two causal convolutions, each with ReLU and dropout, under a shortcut."""

    def __init__(self, channels: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = CausalConv1d(channels, kernel_size, dilation)
        self.conv2 = CausalConv1d(channels, kernel_size, dilation)
        # Published checkpoints hold both convolutions a second time, as net.0 and net.4.
        self.net = nn.Sequential(
            self.conv1,
            nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            self.conv2,
            nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
        )

    def forward(self, x_BCN: Tensor) -> Tensor:
        return F.relu(x_BCN + self.net(x_BCN))


class CausalFusion(nn.Module):
    """Residual blocks over the nodes of a group, whose dilations are powers of the kernel size: 1, 3, 9, ...

    Args:
        channels: number of channels of a node.
        layers: number of blocks.
        kernel_size: number of nodes under a kernel.
        dropout: probability of the dropout after each convolution.
    """

    def __init__(self, channels: int, layers: int = 1, *, kernel_size: int = 3, dropout: float = 0.2) -> None:
        super().__init__()
        blocks = [_CausalBlock(channels, kernel_size, kernel_size**i, dropout) for i in range(layers)]
        self.network = nn.Sequential(*blocks)

    def forward(self, x_BCN: Tensor) -> Tensor:
        """Return the nodes (B, C, N) in the same shape; a node depends on itself and those before it."""
        y: Tensor = self.network(x_BCN)
        return y


# Correlations over time lags


def lag_correlation(q: Tensor, k: Tensor) -> Tensor:
    """Return the circular correlation r(tau) = sum over t of q(t + tau) k(t), computed by Fourier transforms.

    Args:
        q: (..., L).
        k: (..., L).

    Returns:
        (..., L), one value for each lag from 0 to L - 1.
    """
    spectrum = torch.fft.rfft(q.float(), dim=-1) * torch.fft.rfft(k.float(), dim=-1).conj()
    return torch.fft.irfft(spectrum, n=q.shape[-1], dim=-1)


def shift_in_time(v: Tensor, lag: Tensor) -> Tensor:
    """Return v((t + lag) mod L), with a lag of its own for each series.

    Args:
        v: (..., E, L).
        lag: (...) int64 with the same leading dimensions as ``v``; may be negative.
    """
    length = v.shape[-1]
    place = (torch.arange(length, device=v.device) + lag[..., None]) % length
    return v.gather(-1, place[..., None, :].expand(v.shape))


class _Projections(nn.Module):
    """Base of the correlations: linear layers for query, key, value and output, and the split into heads."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(
                f"{dim} channels do not divide into {heads} heads; choose d_model as a multiple of n_heads"
            )
        self.heads = heads
        self.query_projection = nn.Linear(dim, dim)
        self.key_projection = nn.Linear(dim, dim)
        self.value_projection = nn.Linear(dim, dim)
        self.out_projection = nn.Linear(dim, dim)

    def _project(self, x_BLD: Tensor, memory_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return query, key and value (B, heads, E, L); the memory is cut to L, or padded with zeros."""
        missing = x_BLD.shape[1] - memory_BSD.shape[1]  # a negative number cuts
        key = F.pad(self.key_projection(memory_BSD), (0, 0, 0, missing))
        value = F.pad(self.value_projection(memory_BSD), (0, 0, 0, missing))
        parts = (self.query_projection(x_BLD), key, value)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1) for part in parts)
        return q, k, v


class AutoCorrelation(_Projections):
    """Attention over time lags (Autoformer, section 3.2): a sum over the best lags, weighted by their correlation.

    A peak of r at tau says that q(t) agrees with k(t - tau). The published layer takes v(t + tau) nevertheless, and so
    does this one. :class:`CrossCorrelation` shifts in the other direction.

    Args:
        dim: D.
        heads: number of groups of channels that share their lags.
        factor: int(factor * ln L) lags are taken.
    """

    def __init__(self, dim: int, heads: int, factor: float = 1.0) -> None:
        super().__init__(dim, heads)
        self.factor = factor

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """Return (B, L, D) for queries (B, L, D) and their memory (B, S, D)."""
        q, k, v = self._project(x_BLD, memory_BSD)
        strength_BHL = lag_correlation(q, k).mean(dim=2)
        count = max(1, int(self.factor * math.log(strength_BHL.shape[-1])))
        weights, lags = strength_BHL.topk(count, dim=-1)
        weights = weights.softmax(dim=-1).to(v.dtype)
        y = torch.zeros_like(v)
        for i in range(count):
            y = y + weights[..., i, None, None] * shift_in_time(v, lags[..., i])
        return self.out_projection(y.permute(0, 3, 1, 2).flatten(2))


class CrossCorrelation(_Projections):
    """Lets the nodes of a group exchange what they know, in the order in which a wave would pass them.

    ::

        queries ── mean over the nodes ──┐
        keys ────────────────────────── r(tau) ── best lag of each node ─┬─────────────────────────┐
        values ── v(t - tau) ── sorted by L - tau ── x sigmoid(r) ── causal TCN over nodes ── back ── v(t + tau) ── out

    Args:
        dim: D.
        heads: number of groups of channels that share their lags.
        length: L.
        factor: number of best lags of a node, over which the answer is averaged.
        tcn_layers: number of residual blocks over the nodes.
        dropout: dropout probability in those blocks.
    """

    def __init__(
        self, dim: int, heads: int, length: int, *, factor: int = 1, tcn_layers: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__(dim, heads)
        self.factor = factor
        fusion = CausalFusion(dim // heads * length, tcn_layers, dropout=dropout)
        self.inner_correlation = nn.ModuleDict({"causal_fusion": fusion})  # the published names have this level

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor, nodes: int) -> Tensor:
        """Return (B, L, D) for queries (B, L, D) and their memory (B, S, D).

        Args:
            x_BLD: queries; B runs over the nodes of the first group, then over those of the next.
            memory_BSD: memory, in the same order.
            nodes: number of nodes of a group.
        """
        parts = self._project(x_BLD, memory_BSD)
        q, k, v = (part.unflatten(0, (-1, nodes)).transpose(1, 2) for part in parts)  # (groups, heads, N, E, L)
        strength = lag_correlation(q.mean(dim=2, keepdim=True), k).mean(dim=3)
        weights, lags = strength.topk(self.factor, dim=-1)
        y = torch.zeros_like(v)
        for i in range(self.factor):
            y = y + self._pass_on(v, weights[..., i], lags[..., i])
        y = (y / self.factor).permute(0, 2, 4, 1, 3).flatten(3).flatten(0, 1)
        return self.out_projection(y)

    def _pass_on(self, v: Tensor, weight: Tensor, lag: Tensor) -> Tensor:
        """Return the answer of the nodes (groups, heads, N, E, L) for one weight and lag (groups, heads, N) of each."""
        aligned = shift_in_time(v, -lag) * weight.sigmoid()[..., None, None].to(v.dtype)
        series = aligned.flatten(-2)

        order = torch.argsort(v.shape[-1] - lag, dim=-1, stable=True)
        places = order[..., None].expand(series.shape)
        sorted_nodes = series.gather(2, places).flatten(0, 1).transpose(1, 2)
        fused = self.inner_correlation["causal_fusion"](sorted_nodes)
        fused = fused.transpose(1, 2).unflatten(0, v.shape[:2])

        back = torch.empty_like(fused).scatter(2, places, fused)
        return shift_in_time(back.unflatten(-1, v.shape[-2:]), lag)


class MultiCorrelation(nn.Module):
    """Auto-correlation of each leaf, plus cross-correlation between the nodes on every level of the tree.

    On each level, the series below a node are averaged, the nodes of each group exchange what they know, and the result
    is added to all leaves below. The levels share one layer, and their results are averaged.

    Args:
        architecture: the sizes.
        length: L.
    """

    def __init__(self, architecture: GlobalArchitecture, length: int) -> None:
        super().__init__()
        dim = architecture.d_model
        heads = architecture.n_heads
        self.tree = tuple(architecture.tree)
        self.auto_correlation = AutoCorrelation(dim, heads, architecture.factor)
        self.cross_correlation = CrossCorrelation(
            dim,
            heads,
            length,
            factor=architecture.factor,
            tcn_layers=architecture.tcn_layers,
        )
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """Return (B, L, D) for queries (B, L, D) and their memory; B runs over the n leaves of each sample."""
        leaf = self.dropout(self.auto_correlation(x_BLD, memory_BSD))
        tree = torch.zeros_like(leaf)
        leaves = math.prod(self.tree)
        for nodes, above in zip(self.tree, accumulate(self.tree, mul), strict=True):
            below = leaves // above
            x = x_BLD.unflatten(0, (-1, below)).mean(dim=1)
            memory = memory_BSD.unflatten(0, (-1, below)).mean(dim=1)
            tree = tree + self.cross_correlation(x, memory, nodes).repeat_interleave(below, dim=0)

        # As in the published code, the part of the leaves gets dropout twice.
        return self.dropout(leaf) + self.dropout(tree / len(self.tree))


# Embedding and decoder


def _circular(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)


class NodeEmbedding(nn.Module):
    """Embeds each time step of a node as the sum of three parts: its values, the calendar, and its stations' places.

    Args:
        architecture: the sizes.
    """

    def __init__(self, architecture: GlobalArchitecture) -> None:
        super().__init__()
        stations = architecture.stations
        dim = architecture.d_model
        conv = _circular(stations, dim)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="leaky_relu")
        calendar = nn.Linear(architecture.marks, dim, bias=False)
        location = nn.Linear(architecture.coordinates * stations, dim)
        self.value_embedding = nn.ModuleDict({"tokenConv": conv})
        self.temporal_embedding = nn.ModuleDict({"embed": calendar})
        self.national_embedding = nn.ModuleDict({"location_embedding": location})
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, x_BnLc: Tensor, marks_BLM: Tensor, places_nK: Tensor) -> Tensor:
        """Return tokens (B, n, L, D).

        Args:
            x_BnLc: normalized values of the stations of each node.
            marks_BLM: calendar features in [-0.5, 0.5], the same for all nodes.
            places_nK: standardized coordinates of the c stations of each node, one station after the other.
        """
        values: Tensor = self.value_embedding["tokenConv"](x_BnLc.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
        calendar: Tensor = self.temporal_embedding["embed"](marks_BLM)
        places: Tensor = self.national_embedding["location_embedding"](places_nK)
        tokens = values.unflatten(0, x_BnLc.shape[:2]) + calendar[:, None] + places[None, :, None]
        return self.dropout(tokens)


class CorrformerLayer(nn.Module):
    """Self-correlation, correlation with the memory, and a feed-forward net, each followed by a decomposition.

    ::

        s ── + MultiCorr(s, s) ── decomp ── + MultiCorr(s, m) ── decomp ── + FFN ── decomp ── s
                                    │ t1                           │ t2                │ t3
                                    └──────────────────────────────┴──────── + ────────┴── Conv1d ── trend

    Args:
        architecture: the sizes.
        length: L.
    """

    def __init__(self, architecture: GlobalArchitecture, length: int) -> None:
        super().__init__()
        dim = architecture.d_model
        self.multi_correlation = MultiCorrelation(architecture, length)
        self.cross_multi_correlation = MultiCorrelation(architecture, length)
        self.conv1 = nn.Conv1d(dim, architecture.d_ff, 1, bias=False)
        self.conv2 = nn.Conv1d(architecture.d_ff, dim, 1, bias=False)
        self.projection = _circular(dim, architecture.stations)
        self.decomposition = SeriesDecomposition(architecture.moving_avg)
        self.dropout = nn.Dropout(architecture.dropout)

    def forward(self, s_BLD: Tensor, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Return the season (B, L, D) and the increment of the trend (B, L, c); B runs over samples and leaves."""
        s_BLD, first = self.decomposition(s_BLD + self.multi_correlation(s_BLD, s_BLD))
        s_BLD, second = self.decomposition(s_BLD + self.cross_multi_correlation(s_BLD, memory_BSD))
        hidden = self.dropout(F.gelu(self.conv1(s_BLD.transpose(1, 2))))
        s_BLD, third = self.decomposition(s_BLD + self.dropout(self.conv2(hidden)).transpose(1, 2))
        return s_BLD, self.projection((first + second + third).transpose(1, 2)).transpose(1, 2)


class Corrformer(nn.Module):
    """The decoder: layers that refine season and trend, and a projection of the season onto the stations.

    Args:
        architecture: the sizes.
        length: L.
    """

    def __init__(self, architecture: GlobalArchitecture, length: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(CorrformerLayer(architecture, length) for _ in range(architecture.d_layers))
        self.norm = SeasonalNorm(architecture.d_model)
        self.projection = nn.Linear(architecture.d_model, architecture.stations)

    def forward(self, tokens_BLD: Tensor, memory_BSD: Tensor, trend_BLc: Tensor) -> Tensor:
        """Return values (B, L, c) from the tokens of the season, the memory and the first trend of each leaf."""
        for layer in self.layers:
            tokens_BLD, increment = layer(tokens_BLD, memory_BSD)
            trend_BLc = trend_BLc + increment
        return trend_BLc + self.projection(self.norm(tokens_BLD))
