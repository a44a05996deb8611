"""The UniRepLKNet block: one class for large-kernel (LarK) and small-kernel (SmaK) blocks."""

from typing import cast

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torchvision.ops import Permute

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.layers.dilated_reparam import Branches, BranchType, DilatedReparamBlock
from core.layers.extra_structure import ExtraStructure, extra_structure
from core.layers.grn import GlobalResponseNorm
from core.layers.pointwise import PointwiseLinear
from core.ops import eager, response_scale
from core.reparam import fold_bn, is_batch_norm, require_eval, set_folded, wide

__all__ = ["UniRepLKNetBlock"]


class UniRepLKNetBlock(nn.Module):
    """Depthwise convolution and feed-forward network under one shortcut (UniRepLKNet, figure 3).

    ::

        x ── dwconv ── BN ── SE ── Linear(C, 4C) ── GELU ── GRN ── Linear(4C, C) ── BN ── layer scale ── DropPath ─┐
        └──────────────────────────────────────────────────────────────────────────────────────────────────────── + ─► y

    The kernel size decides the kind: 7 and up is a LarK block (a :class:`DilatedReparamBlock`), 3 or 5 a SmaK block (a
    plain depthwise convolution), 0 a block without depthwise convolution and its norm. There is no activation between
    the convolution and SE. In inference form both norms, GRN's beta and the layer scale are folded into the convolution
    and the second linear layer.

    Args:
        dim: C.
        kernel_size: 0, 3, 5, or an odd size of 7 and up.
        drop_path: probability of dropping the residual branch of a sample.
        layer_scale_init_value: start of the per-channel scale; 0 leaves it out.
        branches: (k, r) pairs of a LarK block, or a kind of :func:`core.layers.dilated_branches`.
        extra: what stands at SE's place, see :func:`core.layers.extra_structure`.
        inference_mode: build the folded form.

    Raises:
        InputError: if ``kernel_size`` is none of these, ``branches`` do not fit it, or there is no such ``extra``.
    """

    gamma: nn.Parameter | None

    def __init__(
        self,
        dim: int,
        kernel_size: int,
        *,
        drop_path: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        branches: Branches | BranchType = "dilated",
        extra: ExtraStructure = "se",
        inference_mode: bool = False,
    ) -> None:
        super().__init__()
        self.dwconv = _depthwise(dim, kernel_size, branches, inference_mode)
        has_norm = kernel_size > 0 and not inference_mode
        self.norm: nn.Module = nn.BatchNorm2d(dim) if has_norm else nn.Identity()
        self.se = extra_structure(extra, dim)
        # Sequential and Permute only place the parameters under the official names: pwconv1.1, act.1, pwconv2.0, .2
        self.pwconv1 = nn.Sequential(Permute([0, 2, 3, 1]), PointwiseLinear(dim, 4 * dim))
        self.act = nn.Sequential(nn.GELU(), GlobalResponseNorm(4 * dim, use_bias=not inference_mode))
        linear = PointwiseLinear(4 * dim, dim, bias=inference_mode)
        self.pwconv2 = nn.Sequential(linear, Permute([0, 3, 1, 2]))
        if not inference_mode:
            self.pwconv2.append(nn.BatchNorm2d(dim))
        scale = 0.0 if inference_mode else layer_scale_init_value or 0.0
        self.gamma = nn.Parameter(torch.full((dim,), scale)) if scale > 0 else None
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = self.pwconv1(self.se(self.norm(self.dwconv(x))))
        if self._may_overwrite():
            y = self.pwconv2(self._activated_in_place(y))
            return y.add_(x) if y.dtype == x.dtype else x + y  # autocast: the shortcut stays wide
        y = self.pwconv2(self.act(y))
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return x + self.drop_path(y)

    def _may_overwrite(self) -> bool:
        """Whether nobody else sees the maps within: in inference form, without gradients, compilers and hooks."""
        if torch.is_grad_enabled() or self.training or self.gamma is not None or not eager():
            return False
        plain = type(self.act[0]) is nn.GELU and type(self.act[1]) is GlobalResponseNorm
        return plain and not any(part._forward_hooks or part._forward_pre_hooks for part in self.modules())

    def _activated_in_place(self, y_BHWC: Tensor) -> Tensor:
        """GELU and GRN of a map that is ours alone, without maps of four times the channels for each step."""
        gelu, grn = cast(nn.GELU, self.act[0]), cast(GlobalResponseNorm, self.act[1])
        torch.ops.aten.gelu_(y_BHWC, approximate=gelu.approximate)
        y_BHWC.mul_(response_scale(y_BHWC, grn.gamma.flatten(), grn.eps))
        return y_BHWC if grn.beta is None else y_BHWC.add_(grn.beta)

    def reparameterize(self) -> None:
        """Fold the block into its inference form, in place; nothing happens the second time.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        if is_batch_norm(self.norm):
            conv = self.dwconv
            if isinstance(conv, DilatedReparamBlock) and not conv.merged:
                conv.reparameterize(following=self.norm)
            else:
                conv = conv.lk_origin if isinstance(conv, DilatedReparamBlock) else conv
                assert isinstance(conv, nn.Conv2d)
                set_folded(conv, *fold_bn(conv.weight, conv.bias, self.norm))
            self.norm = nn.Identity()
        if len(self.pwconv2) == 3:
            self._fold_output()

    def _fold_output(self) -> None:
        """Fold GRN's beta, the second norm and the layer scale into the second linear layer."""
        grn, linear, bn = self.act[1], self.pwconv2[0], self.pwconv2[2]
        assert isinstance(grn, GlobalResponseNorm)
        assert isinstance(linear, nn.Linear)
        assert is_batch_norm(bn)
        weight, bias = fold_bn(linear.weight, linear.bias, bn)
        if grn.beta is not None:  # constant over the map, so the scaled weight turns it into a constant output
            bias = bias + weight @ wide(grn.beta).flatten()
        if self.gamma is not None:
            weight, bias = weight * wide(self.gamma)[:, None], bias * wide(self.gamma)
        set_folded(linear, weight, bias)
        grn.beta = self.gamma = None
        del self.pwconv2[2]


def _depthwise(dim: int, kernel_size: int, branches: Branches | BranchType, inference_mode: bool) -> nn.Module:
    if kernel_size == 0:
        return nn.Identity()
    if kernel_size in (3, 5):
        return DepthwiseConv2d(dim, kernel_size, bias=inference_mode)
    if kernel_size < 7 or kernel_size % 2 == 0:
        raise InputError(f"kernel_size is {kernel_size}; use 0 (none), 3, 5, or an odd size of 7 and up")
    return DilatedReparamBlock(dim, kernel_size, branches=branches, inference_mode=inference_mode)
