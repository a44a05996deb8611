"""Fusion of two signals of different lengths: one is the kernel of a large depthwise convolution over the other.

This is the fusion of 'Scaling Up Your Kernels' (arXiv 2410.08049, section 3.4), of which no code was published, with
the three ways to fuse that the paper compares it with or replaces.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from core.errors import InputError
from core.ops import depthwise_conv2d, is_exporting

__all__ = ["AsymmetricFusion", "FusionMode", "correlate"]

FusionMode = Literal["dynamic", "static", "product", "cross_attention"]

_STATIC_SIZE = 5
"""Size of both kernels of the asymmetric convolution module (arXiv 2012.02776)."""


class AsymmetricFusion(nn.Module):
    """Fuses a signal x with a context y of another length, and keeps the shape of x.

    ::

        x ── norm ── linear ──┐
                              ├── fuse ── linear ── + ── output, (B, L1, C) as x
        y ── norm ── linear ──┘                     │
        x ──────────────────────────────────────────┘

    In the middle, with L1 elements of x and L2 of y:

    - 'dynamic': depthwise correlation of x with y as its kernel, Z[i, j] = sum_k X[i + k - 1, j] Y[k, j] for k = 1 to
      L2 (the paper, section 3.4). The paper prints no padding, normalization and projection. Ours are: x is padded with
      zeros, L2 // 2 before it and the rest after it, so that Z has its length; the sum is divided by sqrt(L2), so that
      its size does not depend on L2; and the norms, projections and the shortcut of the figure.
    - 'static': the asymmetric convolution module (TPAMI 2024, arXiv 2012.02776), relu(theta_x * x + theta_y * y), with
      full kernels of 5, or 5 x 5. The context is averaged in 5, or 5 x 5, bins of equal size, so that its convolution
      is a single vector, which is added everywhere. Here x is padded with zeros, which keeps its size.
    - 'product': x times the mean of y, as RefVOS multiplies a map by the vector of a sentence.
    - 'cross_attention': softmax attention from x to y.

    The cost of 'dynamic' is proportional to L1 L2 C, and so linear in the length of the context. Both may be sequences
    (B, L, C) or maps (B, C, H, W). Of two maps the correlation is two-dimensional; a map beside a sequence is read row
    by row.

    Args:
        dim: C, channels of x.
        mode: how to fuse.
        context_dim: channels of y; by default C.
        heads: heads of the attention; by default one for each 32 channels.

    Raises:
        InputError: if ``mode`` is unknown, a number is below 1, or ``heads`` do not divide C.
    """

    def __init__(
        self,
        dim: int,
        mode: FusionMode = "dynamic",
        *,
        context_dim: int | None = None,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        if mode not in get_args(FusionMode):
            raise InputError(f"mode={mode!r}; expected one of {', '.join(get_args(FusionMode))}")
        context_dim = dim if context_dim is None else context_dim
        heads = max(1, dim // 32) if heads is None else heads
        if min(dim, context_dim, heads) < 1 or (mode == "cross_attention" and dim % heads):
            raise InputError(
                f"dim={dim}, context_dim={context_dim}, heads={heads}; expected 1 or more, and heads that divide dim"
            )

        self.dim = dim
        self.context_dim = context_dim
        self.mode: FusionMode = mode
        self.heads = heads
        self.norm_x = nn.LayerNorm(dim)
        self.norm_y = nn.LayerNorm(context_dim)
        self.project_x = nn.Linear(dim, dim)
        self.project_y = nn.Linear(context_dim, 2 * dim if mode == "cross_attention" else dim)
        if mode == "static":
            self.theta_x = nn.Conv2d(dim, dim, _STATIC_SIZE)
            self.theta_y = nn.Conv2d(dim, dim, _STATIC_SIZE, bias=False)
        self.project_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Fuse x with y.

        Args:
            x: (B, L1, C) or (B, C, H, W).
            y: (B, L2, D) or (B, D, h, w), with D = ``context_dim``.
            lengths: number of actual elements of each y, (B,) int64 from 1 to L2, if y is a padded sequence. Elements
                after them have no effect.

        Returns:
            The shape of x.

        Raises:
            ValueError: if shapes do not fit together, or ``lengths`` come with a map.
        """
        self._check(x, y, lengths)
        x_map = _as_map(x)  # (B, C, 1, L1) for a sequence
        y_map = _as_map(y)
        if x.ndim != y.ndim:  # a map beside a sequence
            x_map = x_map.flatten(2).unsqueeze(2)
            y_map = y_map.flatten(2).unsqueeze(2)

        a = _pointwise(self.project_x, self.norm_x, x_map)
        b = _pointwise(self.project_y, self.norm_y, y_map)
        is_actual = _is_actual(b, lengths)
        match self.mode:
            case "dynamic":
                fused = self._dynamic(a, b, lengths, is_actual)
            case "static":
                fused = self._static(a, b, lengths)
            case "product":
                total = b.masked_fill(~is_actual, 0).sum((2, 3), keepdim=True)
                fused = a * (total / is_actual.sum((2, 3), keepdim=True))
            case "cross_attention":
                fused = self._attend(a, b, is_actual)

        fused = self.project_out(fused.permute(0, 2, 3, 1))  # (B, H, W, C)
        shortcut = x_map.permute(0, 2, 3, 1)
        z = (shortcut + fused).permute(0, 3, 1, 2)
        return z.squeeze(2).transpose(1, 2) if x.ndim == 3 else z.reshape(x.shape)

    def _check(self, x: Tensor, y: Tensor, lengths: Tensor | None) -> None:
        channels = {3: -1, 4: 1}
        fits = x.ndim in channels and y.ndim in channels and x.shape[0] == y.shape[0]
        if not fits or x.shape[channels[x.ndim]] != self.dim or y.shape[channels[y.ndim]] != self.context_dim:
            raise ValueError(
                f"x {tuple(x.shape)} and y {tuple(y.shape)}; expected (B, L, {self.dim}) or (B, {self.dim}, H, W), and "
                f"the same B with {self.context_dim} channels"
            )
        if lengths is not None and y.ndim == 4:
            raise ValueError("lengths are those of padded sequences, and y is a map")

    def _dynamic(self, a: Tensor, b: Tensor, lengths: Tensor | None, is_actual: Tensor) -> Tensor:
        """Correlate a with b as its kernel, and divide by the square root of the number of taps."""
        b = b.masked_fill(~is_actual, 0)
        count = is_actual.sum((2, 3), keepdim=True).to(b.dtype)
        if lengths is not None:
            # Move each kernel so that its own middle is in the middle of the padded kernel.
            size = b.shape[3]
            shift = size // 2 - lengths // 2
            source = torch.arange(size, device=b.device) - shift[:, None]
            b = b.gather(3, source.remainder(size)[:, None, None].expand_as(b))
        return correlate(a, b * count.rsqrt())

    def _static(self, a: Tensor, b: Tensor, lengths: Tensor | None) -> Tensor:
        """Return relu(theta_x * a + theta_y * b), in which the second convolution has a single output."""
        rows = 1 if a.shape[2] == 1 and b.shape[2] == 1 else _STATIC_SIZE
        middle = slice(_STATIC_SIZE // 2, _STATIC_SIZE // 2 + 1) if rows == 1 else slice(None)
        pooled = _average_in_bins(b, 3, lengths)
        if rows > 1:
            pooled = _average_in_bins(pooled, 2, None)
        of_context = F.conv2d(pooled, self.theta_y.weight[:, :, middle])
        of_x = F.conv2d(a, self.theta_x.weight[:, :, middle], self.theta_x.bias, padding=(rows // 2, _STATIC_SIZE // 2))
        return F.relu(of_x + of_context)

    def _attend(self, a: Tensor, b: Tensor, is_actual: Tensor) -> Tensor:
        """Return softmax attention from every element of a to those of b."""
        query, key, value = (
            part.flatten(2).unflatten(1, (self.heads, -1)).transpose(2, 3) for part in (a, *b.chunk(2, dim=1))
        )
        mask = is_actual.flatten(2).unsqueeze(2)  # (B, 1, 1, L2)
        fused = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return fused.transpose(2, 3).flatten(1, 2).unflatten(2, a.shape[2:])


def correlate(x: Tensor, y: Tensor) -> Tensor:
    """Correlate every channel of every x with a kernel of its own: Z[i, j] = sum_k X[i + k - 1, j] Y[k, j].

    X is padded with zeros so that Z has its size: L2 // 2 before it, and L2 - 1 - L2 // 2 after it.

    Args:
        x: maps (B, C, H, W); a sequence of length L1 is (B, C, 1, L1).
        y: kernels (B, C, h, w) of any size.

    Returns:
        (B, C, H, W).
    """
    batch, channels, height, width = x.shape
    down, right = (size // 2 for size in y.shape[2:])
    if is_exporting():
        # In files the number of samples is open, and that of groups of a convolution is not.
        padded = F.pad(x, (right, right, down, down))
        total = torch.zeros_like(x)
        for row in range(y.shape[2]):
            for column in range(y.shape[3]):
                shifted = padded[:, :, row : row + height, column : column + width]
                total = total + shifted * y[:, :, row : row + 1, column : column + 1]
        return total

    # A kernel of even size gets a zero at its end, which makes it odd and leaves its middle where it was.
    y = F.pad(y, (0, 1 - y.shape[3] % 2, 0, 1 - y.shape[2] % 2))
    maps = x.reshape(1, batch * channels, height, width)
    kernels = y.reshape(batch * channels, 1, *y.shape[2:])
    return depthwise_conv2d(maps, kernels).view(batch, channels, height, width)


def _as_map(values: Tensor) -> Tensor:
    """Return a sequence (B, L, C) as a map (B, C, 1, L), and a map as it is."""
    return values.transpose(1, 2).unsqueeze(2) if values.ndim == 3 else values


def _pointwise(linear: nn.Linear, norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Normalize and project the channels of a map."""
    return linear(norm(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)


def _is_actual(y: Tensor, lengths: Tensor | None) -> Tensor:
    """Return a mask (B, 1, h, w) of the elements of y that are not padding."""
    if lengths is None:
        return torch.ones_like(y[:, :1], dtype=torch.bool)
    index = torch.arange(y.shape[3], device=y.device)
    return (index < lengths[:, None])[:, None, None]


def _average_in_bins(y: Tensor, dim: int, lengths: Tensor | None) -> Tensor:
    """Average a dimension in 5 bins of equal size, as ``F.adaptive_avg_pool1d`` does, without the padding."""
    size = y.shape[dim]
    counts = torch.full((y.shape[0],), size, device=y.device) if lengths is None else lengths
    edges = torch.arange(_STATIC_SIZE, device=y.device) * counts[:, None]
    first = edges // _STATIC_SIZE
    last = (edges + counts[:, None] + _STATIC_SIZE - 1) // _STATIC_SIZE
    index = torch.arange(size, device=y.device)
    inside = (index >= first[..., None]) & (index < last[..., None])  # (B, 5, L2)
    weights = inside.to(y.dtype) / (last - first)[..., None]
    pooled = torch.einsum("bkl,bcml->bcmk", weights, y.transpose(dim, 3))
    return pooled.transpose(dim, 3)
