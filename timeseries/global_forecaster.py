"""The papers' forecaster for thousands of stations: UniRepLKNet as the encoder of Corrformer.

UniRepLKNet (arXiv 2311.15599, section 4; 2410.08049, table 12) replaces Corrformer's encoder and nothing else. Tensor
names are the published ones. The published code takes one sample at a time and maps of 192 x 192; here, batches and
maps may have any size. The published code also fails where the logits of the encoder become the memory of the decoder.
Two kinds of memory give the paper's 132 M parameters; the default is the one with the tokens of the last map.

Shapes: B samples, L time steps, T steps of the horizon, N stations, n leaf nodes of c stations each (N = n c), D
channels of a token, M calendar features.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from core.backbones import LargeKernelNet
from core.errors import InputError
from timeseries.corrformer import PUBLISHED, Corrformer, GlobalArchitecture, NodeEmbedding, SeriesDecomposition
from timeseries.feature_map import map_shape

__all__ = ["GlobalForecaster", "freeze_output_norm"]


def freeze_output_norm(backbone: nn.Module) -> None:
    """Freeze the norm after the last map, which forecasters do not use: DDP refuses weights without a gradient."""
    if isinstance(backbone, LargeKernelNet):
        backbone.norm.requires_grad_(False)


class GlobalForecaster(nn.Module):
    """Forecasts all stations at once from their histories.

    ::

        x ─ minus mean, / std of each station ─ affine ─ nodes ─ embedding ─ (L, D) as (H, W) ─ backbone ─ memory ─┐
                                     └─ decomposition ─ trend ───────────────────────────────────────────────┐     │
                                              └──────── season ─ zeros ─ embedding ───────────────────── Corrformer
        y ─ times std, plus mean ─ undo affine ─ last T steps of season + trend ─────────────────────────────┘

    Args:
        backbone: the encoder, a net with one input channel and no classifier.
        architecture: the sizes.
        seq_len: L.
        label_len: number of last steps of the history that the decoder sees too.
        pred_len: T.
        grad_checkpointing: save memory by recomputing the backbone's blocks and the decoder in the backward pass.

    Raises:
        InputError: if the sizes do not fit together.
    """

    places: Tensor
    """(n, c * coordinates), standardized coordinates. Like the published files, the state dict does not hold them."""

    def __init__(
        self,
        backbone: nn.Module,
        architecture: GlobalArchitecture = PUBLISHED,
        *,
        seq_len: int = 48,
        label_len: int = 24,
        pred_len: int = 24,
        grad_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if min(seq_len, pred_len) < 1 or not 0 <= label_len <= seq_len:
            raise InputError(
                f"seq_len={seq_len}, label_len={label_len}, pred_len={pred_len}; expected at least 1, and label_len "
                "from 0 to seq_len"
            )

        sizes = architecture
        width = getattr(backbone, "num_features", sizes.d_model)
        if width != sizes.d_model:
            raise InputError(
                f"the backbone's last map has {width} channels, d_model is {sizes.d_model}; set them equal"
            )

        self.seq_len = seq_len
        self.label_len = label_len
        self.pred_len = pred_len
        self.leaves = sizes.leaves
        self.stations = sizes.stations
        self.coordinates = sizes.coordinates
        self.memory = sizes.memory
        self.map_size = map_shape(seq_len, sizes.d_model, sizes.map_size)
        self.grad_checkpointing = grad_checkpointing

        self.affine_weight = nn.Parameter(torch.ones(1, 1, sizes.stations))
        self.affine_bias = nn.Parameter(torch.zeros(1, 1, sizes.stations))
        self.decomposition = SeriesDecomposition(sizes.moving_avg)
        self.enc_embedding = NodeEmbedding(sizes)
        self.dec_embedding = NodeEmbedding(sizes)
        self.encoder = backbone
        self.decoder = Corrformer(sizes, label_len + pred_len)
        self.register_buffer("places", torch.zeros(self.leaves, self.stations * self.coordinates), persistent=False)

        if sizes.memory == "tokens":
            freeze_output_norm(backbone)
        if grad_checkpointing and hasattr(backbone, "set_grad_checkpointing"):
            cast(Any, backbone).set_grad_checkpointing()

    def set_stations(self, coordinates_NK: Tensor) -> None:
        """Set the coordinates of the stations; until then, all stations are at one place.

        Args:
            coordinates_NK: (N, coordinates) in any units; they are standardized over all stations.

        Raises:
            InputError: if the number of stations is not that of the tree, or that of the coordinates is another.
        """
        self.check_stations(len(coordinates_NK))
        if coordinates_NK.ndim != 2 or coordinates_NK.shape[1] != self.coordinates:
            raise InputError(
                f"the stations have coordinates of shape {tuple(coordinates_NK.shape)}; "
                f"expected ({self.leaves * self.stations}, {self.coordinates})"
            )

        values = coordinates_NK.double()
        std = values.std(dim=0, correction=0).clamp(min=1e-12)
        self.places = ((values - values.mean(dim=0)) / std).reshape(self.leaves, -1).to(self.places)

    def check_stations(self, count: int) -> None:
        """Check that the data have as many stations as the tree.

        Raises:
            InputError: if they have another number.
        """
        if count != self.leaves * self.stations:
            raise InputError(
                f"the data have {count} stations; the tree has {self.leaves} leaves of {self.stations} stations, "
                f"{self.leaves * self.stations} in all: set tree and stations so that their product is {count}"
            )

    def forward(self, x_BLN: Tensor, marks_BLM: Tensor, marks_ahead_BTM: Tensor) -> Tensor:
        """Return forecasts (B, T, N) in the units and the dtype of the histories.

        Args:
            x_BLN: histories (B, seq_len, N), float, in any units.
            marks_BLM: their calendar features (B, seq_len, M), see :func:`timeseries.time_marks`.
            marks_ahead_BTM: features (B, label_len + T, M) of the last steps of the history and of the steps to come.

        Raises:
            InputError: if the shapes do not fit the net.
        """
        self.check_stations(x_BLN.shape[2])
        if x_BLN.shape[1] != self.seq_len:
            raise InputError(f"the history has {x_BLN.shape[1]} steps; the net was built for seq_len={self.seq_len}")

        # Center each station before the cast to the dtype of the weights.
        mean = x_BLN.mean(dim=1, keepdim=True)
        std = (x_BLN.var(dim=1, keepdim=True, correction=0) + 1e-5).sqrt()
        weight = self.affine_weight.tile(1, 1, self.leaves)
        bias = self.affine_bias.tile(1, 1, self.leaves)
        z = ((x_BLN - mean) / std).to(weight.dtype) * weight + bias

        # Over the horizon, the decoder begins with the mean as the trend and zeros as the season.
        season, trend = self.decomposition(z)
        ahead = z.mean(dim=1, keepdim=True).expand(-1, self.pred_len, -1)
        trend = torch.cat([trend[:, self.seq_len - self.label_len :], ahead], dim=1)
        season = torch.cat([season[:, self.seq_len - self.label_len :], torch.zeros_like(ahead)], dim=1)

        memory = self.encode(self.enc_embedding(self._nodes(z), marks_BLM, self.places))
        tokens = self.dec_embedding(self._nodes(season), marks_ahead_BTM, self.places).flatten(0, 1)
        y = self._decode(tokens, memory, self._nodes(trend).flatten(0, 1))[:, -self.pred_len :]

        y = y.unflatten(0, (-1, self.leaves)).transpose(1, 2).flatten(2)
        return (y - bias) / (weight + 1e-10) * std + mean

    def encode(self, tokens_BnLD: Tensor) -> Tensor:
        """Read tokens (B, n, L, D) row by row as maps (B n, 1, H, W), and return their memory (B n, S, D)."""
        net: Any = self.encoder
        maps = net.forward_features(tokens_BnLD.reshape(-1, 1, *self.map_size))
        if self.memory == "pooled":
            return net.forward_head(maps, pre_logits=True)[:, None]
        return maps.flatten(2).transpose(1, 2)

    def _nodes(self, x_BLN: Tensor) -> Tensor:
        """Divide the stations (B, L, N) among the nodes (B, n, L, c)."""
        return x_BLN.unflatten(2, (self.leaves, self.stations)).transpose(1, 2)

    def _decode(self, tokens: Tensor, memory: Tensor, trend: Tensor) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self.decoder, tokens, memory, trend, use_reentrant=False))
        return self.decoder(tokens, memory, trend)
