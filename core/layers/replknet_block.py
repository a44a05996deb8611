"""The blocks of RepLKNet (arXiv 2203.06717, figure 2): a large kernel with a small one beside it, and a 1x1 network."""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.reparam import fold_affine, fold_bn, is_batch_norm, merged_kernel, norm_affine, require_eval, set_folded

__all__ = ["ConvBN", "ConvFFN", "RepLKBlock", "ReparamLargeKernelConv", "fold_norm_before"]


class ConvBN(nn.Sequential):
    """Convolution, batch norm, optional ReLU; in inference form the convolution has a bias instead of the norm.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: odd.
        stride: step of the output grid, in pixels.
        depthwise: a kernel of its own for each channel; needs as many outputs as inputs.
        relu: end with a ReLU.
        inference_mode: build the folded form.
    """

    conv: nn.Conv2d
    bn: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        *,
        stride: int = 1,
        depthwise: bool = False,
        relu: bool = False,
        inference_mode: bool = False,
    ) -> None:
        super().__init__()
        if depthwise:
            self.conv = DepthwiseConv2d(out_channels, kernel_size, stride=stride, bias=inference_mode)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, kernel_size // 2, bias=inference_mode)
        self.bn = nn.Identity() if inference_mode else nn.BatchNorm2d(out_channels)
        if relu:
            self.nonlinear = nn.ReLU()

    def reparameterize(self) -> None:
        """Fold the norm into the convolution, in place; nothing happens the second time.

        Raises:
            RuntimeError: if the layer is in training mode.
        """
        require_eval(self)
        if is_batch_norm(self.bn):
            set_folded(self.conv, *fold_bn(self.conv.weight, self.conv.bias, self.bn))
            self.bn = nn.Identity()


class ReparamLargeKernelConv(nn.Module):
    """A large depthwise kernel with a small one beside it, which merges into it after training (RepLKNet, section 3).

    ::

        x ──┬── DW KxK ─ BN ──┐
            ├── DW kxk ─ BN ──┼── sum ──► y        inference form:  x ── DW KxK + bias ──► y
            └── (identity) ───┘

    Args:
        channels: C.
        kernel_size: K, odd.
        small_kernel: k, odd and at most K; 0 or None for no small branch.
        stride: step of the output grid, in pixels.
        identity: add the input to the sum; needs stride 1. RepLKNet has none: its blocks have shortcuts around them.
        inference_mode: build the merged form.

    Raises:
        InputError: if a kernel is even, the small one larger than the large one, or an identity has a stride.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        small_kernel: int | None = 5,
        stride: int = 1,
        identity: bool = False,
        inference_mode: bool = False,
    ) -> None:
        super().__init__()
        small_kernel = small_kernel or None
        if kernel_size % 2 == 0 or (small_kernel is not None and (small_kernel % 2 == 0 or small_kernel > kernel_size)):
            raise InputError(
                f"kernel_size={kernel_size}, small_kernel={small_kernel}; both must be odd and the small one at most "
                "as large; small_kernel=0 leaves it out"
            )
        if identity and stride != 1:
            raise InputError(
                f"an identity beside a convolution of stride {stride} has another size; use identity=False"
            )
        self.identity = identity
        if inference_mode:
            self.lkb_reparam = DepthwiseConv2d(channels, kernel_size, stride=stride, bias=True)
            return
        self.lkb_origin = ConvBN(channels, channels, kernel_size, stride=stride, depthwise=True)
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, stride=stride, depthwise=True)

    @property
    def merged(self) -> bool:
        """Whether the layer is in its inference form."""
        return hasattr(self, "lkb_reparam")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        if self.merged:
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        if hasattr(self, "small_conv"):
            y = y + self.small_conv(x)
        return y + x if self.identity else y

    def reparameterize(self) -> None:
        """Merge the branches into one convolution, in place; nothing happens the second time.

        Raises:
            RuntimeError: if the layer is in training mode.
        """
        require_eval(self)
        if self.merged:
            return
        parts = [self.lkb_origin, self.small_conv] if hasattr(self, "small_conv") else [self.lkb_origin]
        branches = [(part.conv, part.bn if is_batch_norm(part.bn) else None) for part in parts]
        weight, bias = merged_kernel(branches, identity=self.identity)
        like = self.lkb_origin.conv
        with torch.device(like.weight.device):
            shape = {"stride": like.stride[0], "dilation": like.dilation[0]}
            merged = DepthwiseConv2d(like.in_channels, like.kernel_size[0], **shape, bias=True)
        weight = weight[..., :: like.dilation[0], :: like.dilation[1]]  # the others are zeros
        merged.to(like.weight.dtype).requires_grad_(like.weight.requires_grad).eval()
        set_folded(merged, weight, bias)
        self.lkb_reparam = merged
        for name in ("lkb_origin", "small_conv"):
            if hasattr(self, name):
                delattr(self, name)


def fold_norm_before(norm: nn.Module, layer: ConvBN) -> nn.Module:
    """Fold a batch norm and the 1x1 layer's own one into that layer; returns what stands in the first norm's place."""
    if is_batch_norm(norm):
        weight, bias = fold_affine(layer.conv.weight, layer.conv.bias, *norm_affine(norm))
        if is_batch_norm(layer.bn):  # at once, so that half precision is rounded once
            weight, bias = fold_bn(weight, bias, layer.bn)
            layer.bn = nn.Identity()
        set_folded(layer.conv, weight, bias)
    return nn.Identity()


class RepLKBlock(nn.Module):
    """Spatial mixing: 1x1, large depthwise kernel, 1x1, under a shortcut.

    ::

        x ── BN ── 1x1 + BN + ReLU ── DW KxK (+ DW kxk) ── ReLU ── 1x1 + BN ── DropPath ─┐
        └───────────────────────────────────────────────────────────────────────────── + ─► y

    In inference form the first norm is folded into the 1x1 convolution after it, and the others into those before them.

    Args:
        dim: C.
        hidden: channels between the two 1x1 convolutions.
        kernel_size: K, odd.
        small_kernel: k of the branch beside it, or None.
        drop_path: probability of dropping the residual branch of a sample.
        small_kernel_merged: build the official merged form, which keeps the norms around the large kernel.
        inference_mode: build the form without norms.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        kernel_size: int,
        *,
        small_kernel: int | None = 5,
        drop_path: float = 0.0,
        small_kernel_merged: bool = False,
        inference_mode: bool = False,
    ) -> None:
        super().__init__()
        self.prelkb_bn: nn.Module = nn.Identity() if inference_mode else nn.BatchNorm2d(dim)
        self.pw1 = ConvBN(dim, hidden, relu=True, inference_mode=inference_mode)
        self.large_kernel = ReparamLargeKernelConv(
            hidden, kernel_size, small_kernel=small_kernel, inference_mode=small_kernel_merged or inference_mode
        )
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = ConvBN(hidden, dim, inference_mode=inference_mode)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        y = self.large_kernel(self.pw1(self.prelkb_bn(x)))
        return x + self.drop_path(self.pw2(self.lk_nonlinear(y)))

    def reparameterize(self) -> None:
        """Fold the first norm, in place; ``core.reparameterize`` folds the parts after it.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        self.prelkb_bn = fold_norm_before(self.prelkb_bn, self.pw1)


class ConvFFN(nn.Module):
    """Channel mixing: x + DropPath(BN(1x1(GELU(BN(1x1(BN(x))))))), the feed-forward network of a RepLKNet stage.

    Args:
        dim: C.
        hidden: channels between the two 1x1 convolutions.
        drop_path: probability of dropping the residual branch of a sample.
        inference_mode: build the form without norms.
    """

    def __init__(self, dim: int, hidden: int, *, drop_path: float = 0.0, inference_mode: bool = False) -> None:
        super().__init__()
        self.preffn_bn: nn.Module = nn.Identity() if inference_mode else nn.BatchNorm2d(dim)
        self.pw1 = ConvBN(dim, hidden, inference_mode=inference_mode)
        self.nonlinear = nn.GELU()
        self.pw2 = ConvBN(hidden, dim, inference_mode=inference_mode)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        return x + self.drop_path(self.pw2(self.nonlinear(self.pw1(self.preffn_bn(x)))))

    def reparameterize(self) -> None:
        """Fold the first norm, in place; ``core.reparameterize`` folds the parts after it.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        self.preffn_bn = fold_norm_before(self.preffn_bn, self.pw1)
