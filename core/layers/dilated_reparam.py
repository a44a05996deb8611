"""The Dilated Reparam Block of UniRepLKNet (section 3.2 and figure 2 of arXiv 2311.15599)."""

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.reparam import dilated_to_dense, embed_kernel, fold_bn, set_folded

__all__ = ["PUBLISHED_BRANCHES", "DilatedReparamBlock", "dilated_branches"]

Branches = Sequence[tuple[int, int]]

PUBLISHED_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""K to the (k, r) pairs of the official code: kernel size and dilation of each parallel branch."""


def dilated_branches(kernel_size: int) -> tuple[tuple[int, int], ...]:
    """The (k, r) pairs that go with a large kernel of size K.

    Published sizes answer from :data:`PUBLISHED_BRANCHES`. Any other odd K above 5 follows the pattern of the table: a
    dense 5x5, the widest kernel of dilation 2, and 3x3 kernels spread to about 1/2, 2/3 and all of the field.

    Raises:
        InputError: if ``kernel_size`` is even or below 5.

    Example:
        >>> dilated_branches(13)
        ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        >>> dilated_branches(31)
        ((5, 1), (15, 2), (3, 7), (3, 10), (3, 15))
    """
    if kernel_size in PUBLISHED_BRANCHES:
        return PUBLISHED_BRANCHES[kernel_size]
    if kernel_size < 5 or kernel_size % 2 == 0:
        raise InputError(f"no dilated branches for a kernel of size {kernel_size}; use an odd size of 5 or more")
    reach = (kernel_size - 1) // 2
    return ((5, 1), (reach | 1, 2), (3, reach // 2), (3, 2 * reach // 3), (3, reach))


def _check_branches(kernel_size: int, branches: Branches) -> None:
    for k, r in branches:
        if k % 2 == 0 or k < 1 or r < 1 or (k - 1) * r + 1 > kernel_size:
            raise InputError(
                f"branch (k={k}, r={r}) does not fit a {kernel_size}x{kernel_size} kernel: "
                f"k must be odd and (k-1)*r+1 = {(k - 1) * r + 1} at most {kernel_size}"
            )
    if len(set(branches)) != len(branches):
        raise InputError(f"branches {list(branches)} name the same (k, r) twice; each pair may appear once")


class DilatedReparamBlock(nn.Module):
    """A large depthwise kernel with parallel dilated small ones that merge into it after training.

    ::

        x ──┬── DW KxK ────────── BN ──┐
            ├── DW k1xk1, dil r1 ── BN ─┼── sum ──► y        inference form:  x ── DW KxK + bias ──► y
            └── DW k2xk2, dil r2 ── BN ─┘

    Args:
        channels: C.
        kernel_size: K, odd.
        branches: (k, r) pairs with (k-1)r+1 <= K; by default :func:`dilated_branches`.
        inference_mode: build the merged form, a single convolution with bias.

    Raises:
        InputError: if K is even or a branch does not fit it.
    """

    def __init__(
        self, channels: int, kernel_size: int, *, branches: Branches | None = None, inference_mode: bool = False
    ) -> None:
        super().__init__()
        self.branches = tuple((k, r) for k, r in (dilated_branches(kernel_size) if branches is None else branches))
        _check_branches(kernel_size, self.branches)
        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=inference_mode)
        if not inference_mode:
            self.origin_bn = nn.BatchNorm2d(channels)
            for k, r in self.branches:
                self.add_module(f"dil_conv_k{k}_{r}", DepthwiseConv2d(channels, k, dilation=r))
                self.add_module(f"dil_bn_k{k}_{r}", nn.BatchNorm2d(channels))

    @property
    def merged(self) -> bool:
        """Whether the block is in its inference form."""
        return not hasattr(self, "origin_bn")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = self.lk_origin(x)
        if self.merged:
            return y
        y = self.origin_bn(y)
        for k, r in self.branches:
            y = y + self.get_submodule(f"dil_bn_k{k}_{r}")(self.get_submodule(f"dil_conv_k{k}_{r}")(x))
        return y

    def reparameterize(self, following: _BatchNorm | None = None) -> None:
        """Merge all branches, and a norm that follows, into ``lk_origin``, in place; a merged block stays as it is.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        if self.merged:
            return
        weight, bias = self._merged_kernel()
        if following is not None:
            weight, bias = fold_bn(weight, bias, following)
        for k, r in self.branches:
            delattr(self, f"dil_conv_k{k}_{r}")
            delattr(self, f"dil_bn_k{k}_{r}")
        del self.origin_bn
        set_folded(self.lk_origin, weight, bias)

    def _merged_kernel(self) -> tuple[Tensor, Tensor]:
        """(C, 1, K, K) and (C,), float64 on the CPU: the block as one convolution."""
        size = self.lk_origin.kernel_size[0]
        weight, bias = fold_bn(self.lk_origin.weight, None, self.origin_bn)
        for k, r in self.branches:
            conv = cast(DepthwiseConv2d, self.get_submodule(f"dil_conv_k{k}_{r}"))
            small, offset = fold_bn(conv.weight, None, cast(_BatchNorm, self.get_submodule(f"dil_bn_k{k}_{r}")))
            weight = weight + embed_kernel(dilated_to_dense(small, r), size)
            bias = bias + offset
        return weight, bias
