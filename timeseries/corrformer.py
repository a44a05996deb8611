"""The decoder of Corrformer and its embedding, with the published tensor names.

Paper: 'Interpretable weather forecasting for worldwide stations with a unified deep model' (Nature Machine Intelligence
2023), code github.com/thuml/Corrformer (MIT); used by UniRepLKNet with its own encoder (arXiv 2410.08049, table 12).

Shapes: B samples, n leaf nodes of the tree, c stations of a node, L time steps, D channels of a token.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from timeseries.correlation import AutoCorrelation, CrossCorrelation
from timeseries.decomposition import SeasonalNorm, SeriesDecomposition

__all__ = ["Corrformer", "CorrformerLayer", "MultiCorrelation", "NodeEmbedding"]


def _circular(inputs: int, outputs: int) -> nn.Conv1d:
    return nn.Conv1d(inputs, outputs, 3, padding=1, padding_mode="circular", bias=False)


class NodeEmbedding(nn.Module):
    """Tokens of a node: its stations' values over time, the calendar, and where its stations are; added up.

    Args:
        stations: c.
        dim: D.
        marks: numbers that describe a time step.
        coordinates: numbers that describe a station.
        dropout: of the sum.
    """

    def __init__(self, stations: int, dim: int, *, marks: int = 4, coordinates: int = 3, dropout: float = 0.05) -> None:
        super().__init__()
        conv = _circular(stations, dim)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.value_embedding = nn.ModuleDict({"tokenConv": conv})
        self.temporal_embedding = nn.ModuleDict({"embed": nn.Linear(marks, dim, bias=False)})
        location = nn.Linear(coordinates * stations, dim)
        self.national_embedding = nn.ModuleDict({"location_embedding": location})
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BnLc: Tensor, marks_BLM: Tensor, places_nK: Tensor) -> Tensor:
        """Values, calendar and standardised coordinates to tokens (B, n, L, D).

        Args:
            x_BnLc: normalised values of the stations of each node.
            marks_BLM: calendar features in [-0.5, 0.5], the same for all nodes.
            places_nK: coordinates of the c stations of each node, one station after the other.
        """
        values: Tensor = self.value_embedding["tokenConv"](x_BnLc.flatten(0, 1).transpose(1, 2)).transpose(1, 2)
        calendar: Tensor = self.temporal_embedding["embed"](marks_BLM)
        places: Tensor = self.national_embedding["location_embedding"](places_nK)
        tokens = values.unflatten(0, x_BnLc.shape[:2]) + calendar[:, None] + places[None, :, None]
        return self.dropout(tokens)


class MultiCorrelation(nn.Module):
    """Auto-correlation of each leaf, and cross-correlation between the nodes on every level of the tree.

    On level i the series below a node are averaged, the nodes of each group exchange what they know, and the answer
    goes to all leaves below; the levels share one layer, and their answers are averaged.

    Args:
        dim: D.
        heads: of both correlations.
        tree: children of a node on each level, from the root; their product is n.
        length: L of the queries.
        factor: of both correlations.
        tcn_layers: of the cross-correlation.
        dropout: of both parts; the leaves' part passes it twice, as published.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        tree: Sequence[int],
        length: int,
        *,
        factor: int = 1,
        tcn_layers: int = 1,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.tree = tuple(tree)
        self.auto_correlation = AutoCorrelation(dim, heads, factor)
        self.cross_correlation = CrossCorrelation(dim, heads, length, factor=factor, tcn_layers=tcn_layers)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """Series of all leaves, sample by sample in the order of the tree, and their memories; (B * n, L, D)."""
        leaf = self.dropout(self.auto_correlation(x_BLD, memory_BSD))
        tree = torch.zeros_like(leaf)
        leaves = math.prod(self.tree)
        for nodes, above in zip(self.tree, accumulate(self.tree, mul), strict=True):
            below = leaves // above
            x, memory = (part.unflatten(0, (-1, below)).mean(dim=1) for part in (x_BLD, memory_BSD))
            tree = tree + self.cross_correlation(x, memory, nodes).repeat_interleave(below, dim=0)
        return self.dropout(leaf) + self.dropout(tree / len(self.tree))


class CorrformerLayer(nn.Module):
    """Self-correlation, correlation with the memory, and a feed-forward net; each followed by a decomposition.

    ::

        s ── + MultiCorr(s, s) ── decomp ── + MultiCorr(s, m) ── decomp ── + FFN ── decomp ── s
                                    │ t1                           │ t2                │ t3
                                    └──────────────────────────────┴──────── + ────────┴── Conv1d ── trend

    Args:
        stations: c.
        dim: D.
        heads: of the correlations.
        tree: see :class:`MultiCorrelation`.
        length: L.
        d_ff: width of the feed-forward net.
        moving_avg: steps of the decompositions.
        factor: of the correlations.
        tcn_layers: of the cross-correlation.
        dropout: everywhere but in the cross-correlation, which has 0.2.
    """

    def __init__(
        self,
        stations: int,
        dim: int,
        heads: int,
        tree: Sequence[int],
        length: int,
        *,
        d_ff: int = 2048,
        moving_avg: int = 25,
        factor: int = 1,
        tcn_layers: int = 1,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.multi_correlation, self.cross_multi_correlation = (
            MultiCorrelation(dim, heads, tree, length, factor=factor, tcn_layers=tcn_layers, dropout=dropout)
            for _ in range(2)
        )
        self.conv1, self.conv2 = nn.Conv1d(dim, d_ff, 1, bias=False), nn.Conv1d(d_ff, dim, 1, bias=False)
        self.projection = _circular(dim, stations)
        self.decomposition, self.dropout = SeriesDecomposition(moving_avg), nn.Dropout(dropout)

    def forward(self, s_BLD: Tensor, memory_BSD: Tensor) -> tuple[Tensor, Tensor]:
        """Season (B, L, D) and what it adds to the trend (B, L, c); B runs over samples and nodes."""
        s_BLD, first = self.decomposition(s_BLD + self.multi_correlation(s_BLD, s_BLD))
        s_BLD, second = self.decomposition(s_BLD + self.cross_multi_correlation(s_BLD, memory_BSD))
        hidden = self.dropout(F.gelu(self.conv1(s_BLD.transpose(1, 2))))
        s_BLD, third = self.decomposition(s_BLD + self.dropout(self.conv2(hidden)).transpose(1, 2))
        return s_BLD, self.projection((first + second + third).transpose(1, 2)).transpose(1, 2)


class Corrformer(nn.Module):
    """The decoder: layers that refine season and trend, and a projection of the season to the stations.

    Args:
        layers: number of :class:`CorrformerLayer`.
        stations: c.
        dim: D.
        heads: of the correlations.
        tree: see :class:`MultiCorrelation`.
        length: L.
        d_ff: see :class:`CorrformerLayer`.
        moving_avg: likewise.
        factor: likewise.
        tcn_layers: likewise.
        dropout: likewise.
    """

    def __init__(
        self,
        layers: int,
        stations: int,
        dim: int,
        heads: int,
        tree: Sequence[int],
        length: int,
        *,
        d_ff: int = 2048,
        moving_avg: int = 25,
        factor: int = 1,
        tcn_layers: int = 1,
        dropout: float = 0.05,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CorrformerLayer(
                stations,
                dim,
                heads,
                tree,
                length,
                d_ff=d_ff,
                moving_avg=moving_avg,
                factor=factor,
                tcn_layers=tcn_layers,
                dropout=dropout,
            )
            for _ in range(layers)
        )
        self.norm, self.projection = SeasonalNorm(dim), nn.Linear(dim, stations)

    def forward(self, tokens_BLD: Tensor, memory_BSD: Tensor, trend_BLc: Tensor) -> Tensor:
        """Tokens of the season, memory and first trend of each node to values (B, L, c)."""
        for layer in self.layers:
            tokens_BLD, increment = layer(tokens_BLD, memory_BSD)
            trend_BLc = trend_BLc + increment
        return trend_BLc + self.projection(self.norm(tokens_BLD))
