"""Corrformer's two correlation layers: over the lags of one series, and over the lags between the nodes of a tree.

Paper: 'Interpretable weather forecasting for worldwide stations with a unified deep model' (Nature Machine Intelligence
2023). Tensor names are those of github.com/thuml/Corrformer (MIT). The two layers shift in opposite directions, as
published: see :class:`AutoCorrelation`.

Shapes: B series, L time steps of the query, S of the memory, D = heads x E channels, N nodes of a group.
"""

import math

import torch
from torch import Tensor, nn

from core.errors import InputError
from timeseries.causal import CausalFusion

__all__ = ["AutoCorrelation", "CrossCorrelation", "lag_correlation", "shift_in_time"]


def lag_correlation(q: Tensor, k: Tensor) -> Tensor:
    """Circular correlation r(tau) = sum over t of q(t + tau) k(t), by Fourier transform.

    Args:
        q: (..., L).
        k: (..., L).

    Returns:
        (..., L), one value for each lag from 0 to L - 1.
    """
    spectrum = torch.fft.rfft(q.float(), dim=-1) * torch.fft.rfft(k.float(), dim=-1).conj()
    return torch.fft.irfft(spectrum, n=q.shape[-1], dim=-1)


def shift_in_time(v: Tensor, lag: Tensor) -> Tensor:
    """v((t + lag) mod L), each series by a lag of its own.

    Args:
        v: (..., E, L).
        lag: (...) int64, the same leading dimensions; may be negative.
    """
    length = v.shape[-1]
    place = (torch.arange(length, device=v.device) + lag[..., None]) % length
    return v.gather(-1, place[..., None, :].expand(v.shape))


class _Projections(nn.Module):
    """Linear layers for query, key, value and output, with heads split off."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise InputError(
                f"{dim} channels do not divide into {heads} heads; choose d_model as a multiple of n_heads"
            )
        self.heads = heads
        self.query_projection, self.key_projection = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.value_projection, self.out_projection = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def _project(self, x_BLD: Tensor, memory_BSD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value (B, heads, E, L); a shorter memory is filled with zeros at its end, a longer one cut."""
        length = x_BLD.shape[1]
        key, value = self.key_projection(memory_BSD), self.value_projection(memory_BSD)
        missing = length - memory_BSD.shape[1]  # negative padding cuts
        key, value = (nn.functional.pad(part, (0, 0, 0, missing)) for part in (key, value))
        parts = (self.query_projection(x_BLD), key, value)
        q, k, v = (part.unflatten(-1, (self.heads, -1)).permute(0, 2, 3, 1) for part in parts)
        return q, k, v


class AutoCorrelation(_Projections):
    """Attention over time lags (Autoformer, section 3.2): the best lags of a head, weighted by their correlation.

    A peak of r at tau says that q(t) goes with k(t - tau); the published layer takes v(t + tau) nevertheless, and so
    does this one.

    Args:
        dim: D.
        heads: groups of channels that share their lags.
        factor: int(factor * ln L) lags are taken.
    """

    def __init__(self, dim: int, heads: int, factor: float = 1.0) -> None:
        super().__init__(dim, heads)
        self.factor = factor

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor) -> Tensor:
        """(B, L, D) and its memory (B, S, D) to (B, L, D)."""
        q, k, v = self._project(x_BLD, memory_BSD)
        strength_BHL = lag_correlation(q, k).mean(dim=2)
        taken = max(1, int(self.factor * math.log(strength_BHL.shape[-1])))
        weights, lags = strength_BHL.topk(taken, dim=-1)
        weights = weights.softmax(dim=-1).to(v.dtype)
        y = torch.zeros_like(v)
        for i in range(taken):
            y = y + weights[..., i, None, None] * shift_in_time(v, lags[..., i])
        return self.out_projection(y.permute(0, 3, 1, 2).flatten(2))


class CrossCorrelation(_Projections):
    """What the nodes of a group tell each other, in the order in which a wave would pass them.

    ::

        queries ── mean over the nodes ──┐
        keys ────────────────────────── r(tau) ── best lag of each node ─┬─────────────────────────┐
        values ── v(t - tau) ── sorted by L - tau ── x sigmoid(r) ── causal TCN over nodes ── back ── v(t + tau) ── out

    Args:
        dim: D.
        heads: groups of channels that share their lags.
        length: L.
        factor: best lags of a node that are taken, and averaged.
        tcn_layers: residual blocks over the nodes.
        dropout: in those blocks.
    """

    def __init__(
        self, dim: int, heads: int, length: int, *, factor: int = 1, tcn_layers: int = 1, dropout: float = 0.2
    ) -> None:
        super().__init__(dim, heads)
        self.factor = factor
        fusion = CausalFusion(dim // heads * length, tcn_layers, dropout=dropout)
        self.inner_correlation = nn.ModuleDict({"causal_fusion": fusion})  # the published names have this level

    def forward(self, x_BLD: Tensor, memory_BSD: Tensor, nodes: int) -> Tensor:
        """(B, L, D) and memory (B, S, D) to (B, L, D); along B come the nodes of one group, then those of the next."""
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
        """(groups, heads, N, E, L), with strength and lag (groups, heads, N) of each node."""
        order = torch.argsort(v.shape[-1] - lag, dim=-1, stable=True)
        aligned = shift_in_time(v, -lag) * weight.sigmoid()[..., None, None].to(v.dtype)
        series = aligned.flatten(-2)
        inner = order[..., None].expand(series.shape)
        fused = self.inner_correlation["causal_fusion"](series.gather(2, inner).flatten(0, 1).transpose(1, 2))
        fused = fused.transpose(1, 2).unflatten(0, v.shape[:2])
        back = torch.empty_like(fused).scatter(2, inner, fused)
        return shift_in_time(back.unflatten(-1, v.shape[-2:]), lag)
