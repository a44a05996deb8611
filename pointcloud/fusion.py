"""The image branch of the point-cloud views: a residual block, and attention over the views of a cloud."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["BasicBlock", "ViewFusion"]

_TOKEN = 7
"""Side of the square that becomes a token."""


class BasicBlock(nn.Module):
    """ResNet's basic block without downsampling: two 3 x 3 convolutions with norms, and the identity.

    Args:
        dim: channels.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)
        self.conv2, self.bn2 = nn.Conv2d(dim, dim, 3, padding=1, bias=False), nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class ViewFusion(nn.Module):
    """Tokens of 7 x 7 pixels attend to the tokens of all views of their cloud; the result joins the pixels again.

        x ──┬── 7 x 7 / 7 ── tokens of V views ── transformer layer ── x 7 ── 3 x 3, GELU ──┐
            └────────────────────────────────────────────────────────────────── concatenate ── 1 x 1, GELU

    There is no embedding of positions or views. The 3 x 3 convolution after the enlargement sees few different
    neighbourhoods: the first, the middle ones and the last pixel of each token. Only these nine are computed, up to
    the sum before the last GELU; the result is the same but for rounding.

    Args:
        dim: channels of the maps.
        heads: of the attention, each as wide as a token.
    """

    def __init__(self, dim: int, *, heads: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, 2 * dim, _TOKEN, stride=_TOKEN, bias=False)
        self.transformer = _Transformer(2 * dim, heads)
        self.conv2 = nn.Sequential(nn.Conv2d(2 * dim, dim, 3, padding=1), nn.GELU())
        self.conv3 = nn.Sequential(nn.Conv2d(2 * dim, dim, 1), nn.GELU())

    def forward(self, x: Tensor, views: int) -> Tensor:
        """Maps (B * views, C, H, W), H and W multiples of 7, views of a cloud in a row, to the same shape."""
        tokens = self.conv1(x)
        grid = tokens.shape[2:]
        tokens = tokens.flatten(2).transpose(1, 2)
        shape = tokens.shape
        tokens = self.transformer(tokens.reshape(len(x) // views, -1, shape[2])).view(shape)
        phases = self._phases(tokens.transpose(1, 2).unflatten(2, grid))
        last = cast(nn.Conv2d, self.conv3[0])
        from_tokens, from_pixels = last.weight.chunk(2, dim=1)
        kinds = torch.tensor([0, *[1] * (_TOKEN - 2), 2], device=x.device)  # of the pixels along a token's side
        mixed = F.conv2d(phases.flatten(0, 1), from_tokens).view(*phases.shape[:2], -1, *grid)
        mixed = mixed.view(len(x), 3, 3, -1, *grid)[:, kinds][:, :, kinds].permute(0, 3, 4, 1, 5, 2)
        return F.gelu(mixed.reshape(len(x), -1, *x.shape[2:]) + F.conv2d(x, from_pixels, last.bias))

    def _phases(self, x: Tensor) -> Tensor:
        """GELU of the 3 x 3 convolution after enlargement by 7, at the nine kinds of pixels: (B, 9, C, H / 7, W / 7).

        Along one axis the taps of the kernel (left, own, right) fall on the tokens before, here and after: for a first
        pixel left is before, for a last one right is after, all others are here.
        """
        conv = cast(nn.Conv2d, self.conv2[0])
        falls = conv.weight.new_zeros(3, 3, 3)  # (kind of pixel, token, tap)
        for kind, tokens in enumerate(((0, 1, 1), (1, 1, 1), (1, 1, 2))):
            for tap, token in enumerate(tokens):
                falls[kind, token, tap] = 1
        kernels = torch.einsum("ptx,quy,oixy->pqoitu", falls, falls, conv.weight).flatten(0, 2)
        y = F.conv2d(x, kernels, padding=1).unflatten(1, (9, -1))
        return F.gelu(y + cast(Tensor, conv.bias)[:, None, None])


class _Attention(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * heads * dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim, dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv = self.to_qkv(x_BTD).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.to_out(F.scaled_dot_product_attention(*qkv).transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Identity(), nn.Linear(2 * dim, dim))

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.net(x_BTD)


class _PreNorm(nn.Module):
    def __init__(self, dim: int, fn: nn.Module) -> None:
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x_BTD: Tensor) -> Tensor:
        return x_BTD + self.fn(self.norm(x_BTD))


class _Transformer(nn.Module):
    """One pre-norm layer; the nesting is that of the published tensor names."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        layer = nn.Sequential(_PreNorm(dim, _Attention(dim, heads)), _PreNorm(dim, _FeedForward(dim)))
        self.layers = nn.Sequential(layer)

    def forward(self, x_BTD: Tensor) -> Tensor:
        return self.layers(x_BTD)
