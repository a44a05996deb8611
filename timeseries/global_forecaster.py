"""The papers' forecaster for thousands of stations: UniRepLKNet as the encoder of Corrformer.

UniRepLKNet (arXiv 2311.15599 section 4, 2410.08049 table 12) replaces Corrformer's encoder and nothing else. Tensor
names are the published ones; the published code runs one sample at a time on maps of 192 x 192, here samples and shapes
are free. It also fails where the encoder's logits should become the decoder's memory; of the two memories that have the
paper's 132 M parameters the tokens of the last map are the default.

Shapes: B samples, L time steps, N stations, n leaf nodes of c stations each (N = n c), D channels of a token.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.errors import InputError
from timeseries.corrformer import Corrformer, NodeEmbedding
from timeseries.decomposition import SeriesDecomposition
from timeseries.feature_map import map_shape
from timeseries.forecaster import without_output_norm

__all__ = ["GlobalForecaster", "Memory"]

Memory = Literal["tokens", "pooled"]


class GlobalForecaster(nn.Module):
    """Histories of all stations to their next values.

    ::

        x ─ minus mean, / std of each station ─ affine ─ nodes ─ embedding ─ (L, D) as (H, W) ─ backbone ─ memory ─┐
                                     └─ decomposition ─ trend ───────────────────────────────────────────────┐     │
                                              └──────── season ─ zeros ─ embedding ───────────────────── Corrformer
        y ─ times std, plus mean ─ undo affine ─ last pred_len steps of season + trend ───────────────────────┘

    Args:
        backbone: a net with one input channel and without classifier, the encoder.
        tree: children of a node on each level, from the root; the leaves are the product. (7, 50) as published.
        stations: c, stations of a leaf; consecutive stations of the data form a node.
        seq_len: L, steps of history.
        label_len: last steps of the history that the decoder sees too.
        pred_len: steps that are forecast.
        d_model: D.
        n_heads: of the correlations.
        d_layers: layers of the decoder.
        d_ff: width of its feed-forward net.
        moving_avg: steps of the moving average that separates trend and season.
        factor: of the correlations.
        tcn_layers: blocks of the causal net over the nodes.
        dropout: of embeddings and decoder.
        marks: calendar features of a time step.
        coordinates: of a station.
        map_size: (H, W) with H W = L D; by default the most square one, of multiples of 32 if there are such.
        memory: 'tokens', one for each place of the backbone's last map, or 'pooled', one for each node.
        grad_checkpointing: recompute the backbone's blocks and the decoder in the backward pass, for memory.

    Raises:
        InputError: if numbers do not fit together, or ``memory`` is unknown.
    """

    places: Tensor
    """(n, c * coordinates), standardised; not in the state dict."""

    def __init__(
        self,
        backbone: nn.Module,
        *,
        tree: Sequence[int] = (7, 50),
        stations: int = 11,
        seq_len: int = 48,
        label_len: int = 24,
        pred_len: int = 24,
        d_model: int = 768,
        n_heads: int = 16,
        d_layers: int = 1,
        d_ff: int = 2048,
        moving_avg: int = 25,
        factor: int = 1,
        tcn_layers: int = 1,
        dropout: float = 0.05,
        marks: int = 4,
        coordinates: int = 3,
        map_size: tuple[int, int] | None = None,
        memory: Memory = "tokens",
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if not tree or min(*tree, stations, seq_len, pred_len) < 1 or not 0 <= label_len <= seq_len:
            raise InputError(
                f"tree={tuple(tree)}, stations={stations}, seq_len={seq_len}, label_len={label_len}, "
                f"pred_len={pred_len}; all at least 1, and label_len from 0 to seq_len"
            )
        if memory not in ("tokens", "pooled"):
            raise InputError(f"memory={memory!r}; expected 'tokens' or 'pooled'")
        width = getattr(backbone, "num_features", d_model)
        if width != d_model:
            raise InputError(f"the backbone's last map has {width} channels, d_model is {d_model}; set them equal")
        self.leaves, self.stations, self.coordinates = math.prod(tree), stations, coordinates
        self.seq_len, self.label_len, self.pred_len = seq_len, label_len, pred_len
        self.map_size, self.memory = map_shape(seq_len, d_model, map_size), memory
        self.grad_checkpointing = grad_checkpointing
        self.affine_weight = nn.Parameter(torch.ones(1, 1, stations))
        self.affine_bias = nn.Parameter(torch.zeros(1, 1, stations))
        self.decomposition = SeriesDecomposition(moving_avg)
        self.enc_embedding, self.dec_embedding = (
            NodeEmbedding(stations, d_model, marks=marks, coordinates=coordinates, dropout=dropout) for _ in range(2)
        )
        self.encoder = without_output_norm(backbone) if memory == "tokens" else backbone
        if grad_checkpointing and hasattr(backbone, "set_grad_checkpointing"):
            cast(Any, backbone).set_grad_checkpointing()
        self.decoder = Corrformer(
            d_layers,
            stations,
            d_model,
            n_heads,
            tree,
            label_len + pred_len,
            d_ff=d_ff,
            moving_avg=moving_avg,
            factor=factor,
            tcn_layers=tcn_layers,
            dropout=dropout,
        )
        self.register_buffer("places", torch.zeros(self.leaves, stations * coordinates), persistent=False)

    def set_stations(self, coordinates_NK: Tensor) -> None:
        """Say where the stations are; without that all are at one place.

        Args:
            coordinates_NK: (N, coordinates), any units; standardised here over all stations.

        Raises:
            InputError: if they are not as many as the tree has places, or have another number of coordinates.
        """
        self.check_stations(len(coordinates_NK))
        if coordinates_NK.ndim != 2 or coordinates_NK.shape[1] != self.coordinates:
            raise InputError(
                f"stations have coordinates of shape {tuple(coordinates_NK.shape)}; "
                f"expected ({self.leaves * self.stations}, {self.coordinates})"
            )
        values = coordinates_NK.double()
        std = values.std(dim=0, correction=0).clamp(min=1e-12)
        self.places = ((values - values.mean(dim=0)) / std).reshape(self.leaves, -1).to(self.places)

    def check_stations(self, count: int) -> None:
        """Compare the number of stations with the tree.

        Raises:
            InputError: if they differ.
        """
        if count != self.leaves * self.stations:
            raise InputError(
                f"the data have {count} stations; the tree has {self.leaves} leaves of {self.stations} stations, "
                f"{self.leaves * self.stations} in all: set tree and stations so that their product is {count}"
            )

    def forward(self, x_BLN: Tensor, marks_BLM: Tensor, marks_ahead_BTM: Tensor) -> Tensor:
        """The next values (B, pred_len, N) in the units of the history.

        Args:
            x_BLN: (B, seq_len, N) float, any units.
            marks_BLM: (B, seq_len, marks), see :func:`timeseries.time_marks`.
            marks_ahead_BTM: (B, label_len + pred_len, marks), of the last steps of the history and those to come.

        Raises:
            InputError: if the shapes do not fit the net.
        """
        self.check_stations(x_BLN.shape[2])
        if x_BLN.shape[1] != self.seq_len:
            raise InputError(f"the history has {x_BLN.shape[1]} steps; the net was built for seq_len={self.seq_len}")
        weight, bias = (p.tile(1, 1, self.leaves) for p in (self.affine_weight, self.affine_bias))
        mean = x_BLN.mean(dim=1, keepdim=True)
        std = (x_BLN.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        z = (x_BLN - mean) / std * weight + bias
        season, trend = self.decomposition(z)
        ahead = z.mean(dim=1, keepdim=True).expand(-1, self.pred_len, -1)
        trend = torch.cat([trend[:, self.seq_len - self.label_len :], ahead], dim=1)
        season = torch.cat([season[:, self.seq_len - self.label_len :], torch.zeros_like(ahead)], dim=1)
        memory = self.encode(self.enc_embedding(self._nodes(z), marks_BLM, self.places))
        tokens = self.dec_embedding(self._nodes(season), marks_ahead_BTM, self.places).flatten(0, 1)
        y = self._decode(tokens, memory, self._nodes(trend).flatten(0, 1))[:, -self.pred_len :]
        y = y.unflatten(0, (-1, self.leaves)).transpose(1, 2).flatten(2)
        return (y - bias) / (weight + 1e-10) * std + mean

    def _nodes(self, x_BLN: Tensor) -> Tensor:
        """(B, L, N) to (B, n, L, c)."""
        return x_BLN.unflatten(2, (self.leaves, self.stations)).transpose(1, 2)

    def encode(self, tokens_BnLD: Tensor) -> Tensor:
        """Tokens (B, n, L, D) as maps (B n, 1, H, W), row by row, and those as memory (B n, S, D)."""
        net: Any = self.encoder
        maps = net.forward_features(tokens_BnLD.reshape(-1, 1, *self.map_size))
        if self.memory == "pooled":
            return net.forward_head(maps, pre_logits=True)[:, None]
        return maps.flatten(2).transpose(1, 2)

    def _decode(self, tokens: Tensor, memory: Tensor, trend: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self.decoder, tokens, memory, trend, use_reentrant=False))
        return self.decoder(tokens, memory, trend)
