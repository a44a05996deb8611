"""UniRepLKNet, a large-kernel ConvNet for every modality.

Papers: 'UniRepLKNet: A Universal Perception Large-Kernel ConvNet' (CVPR 2024, arXiv 2311.15599) and 'Scaling Up Your
Kernels' (TPAMI 2025, arXiv 2410.08049). Official code: github.com/AILab-CVC/UniRepLKNet at b5677d8, Apache-2.0, weights
Apache-2.0. Tensors have their official names in training and in inference form, so official files load without
renaming.

Deliberate differences from the official code:

- The global response norm computes its statistics in float32 when its input is in half precision.
- The last map, its pooled vector and the logits come from three methods. In the official code, a flag of the model
  decides which of them ``forward`` returns.
- The norms of the stages' maps (``norm0`` to ``norm3``) exist beside the classifier instead of replacing it.
- Activation checkpointing is non-reentrant and does not update running statistics twice.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, cast, get_args

import torch
from timm.layers import DropPath, LayerNorm2d, calculate_drop_path_rates, trunc_normal_
from timm.models import generate_default_cfgs, register_model, register_notrace_function
from timm.models._input import update_model_args
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Permute

from core.backbones.base import (
    LargeKernelNet,
    add_shortcut,
    build_variant,
    evaluation_cfg,
    has_hooks,
    may_overwrite,
    patterns_of_runs,
)
from core.errors import InputError
from core.layers import DepthwiseConv2d
from core.ops import depthwise_conv2d, is_exporting
from core.reparam import (
    fold_affine,
    fold_bn,
    is_batch_norm,
    merged_kernel,
    norm_affine,
    require_eval,
    set_folded,
    to_float64_cpu,
)

__all__ = [
    "VARIANTS",
    "DilatedReparamBlock",
    "GlobalResponseNorm",
    "SqueezeExcite",
    "UniRepLKNet",
    "UniRepLKNetBlock",
    "default_kernel_sizes",
    "dilated_branches",
]

Branches = Sequence[tuple[int, int]]
"""Kernel size k and dilation r of each parallel branch."""

BranchType = Literal["dilated", "none", "same_kernel", "same_equivalent_kernel"]
"""Kind of the parallel branches, see :func:`dilated_branches`."""

ExtraStructure = Literal["se", "none", "bottleneck", "two_1x1", "two_dw3x3"]
"""Layers after the depthwise convolution of a block, see :func:`extra_structure`."""

WeightInit = Literal["trunc_normal", "kaiming"]
"""Initial weights of the convolutions and linear layers."""

KernelSizes = Sequence[int | Sequence[int]]
"""For each stage, the kernel size of all its blocks, or the sizes of its blocks one by one."""

PUBLISHED_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""The (k, r) pairs of the official code for each kernel size K."""


def dilated_branches(kernel_size: int, reparam: BranchType = "dilated") -> tuple[tuple[int, int], ...]:
    """Return the (k, r) pairs of the branches beside a large kernel of size K.

    The sizes in :data:`PUBLISHED_BRANCHES` have the branches of the official code. Other sizes follow the pattern of
    that table: a dense 5x5 kernel, the widest kernel with dilation 2, and 3x3 kernels whose dilations spread them over
    about 1/2, 2/3 and all of the large kernel.

    Args:
        kernel_size: K, odd, at least 5.
        reparam: 'dilated', or an alternative from the paper's ablation (section 3.1): 'none' for no branches,
            'same_kernel' for kernels of the same sizes without dilation, 'same_equivalent_kernel' for dense kernels
            that cover as many pixels as the dilated ones.

    Raises:
        InputError: if ``kernel_size`` is even or below 5, or ``reparam`` is unknown.

    Example:
        >>> dilated_branches(13)
        ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        >>> dilated_branches(13, "same_equivalent_kernel")
        ((5, 1), (13, 1), (7, 1), (9, 1), (11, 1))
        >>> dilated_branches(31)
        ((5, 1), (15, 2), (3, 7), (3, 10), (3, 15))
    """
    if kernel_size < 5 or kernel_size % 2 == 0:
        raise InputError(f"no branches for a kernel of size {kernel_size}; use an odd size of 5 or more")

    reach = (kernel_size - 1) // 2
    pattern = ((5, 1), (reach | 1, 2), (3, reach // 2), (3, 2 * reach // 3), (3, reach))
    branches = PUBLISHED_BRANCHES.get(kernel_size, pattern)
    match reparam:
        case "dilated":
            return branches
        case "none":
            return ()
        case "same_kernel":
            return tuple((k, 1) for k, _ in branches)
        case "same_equivalent_kernel":
            return tuple(((k - 1) * r + 1, 1) for k, r in branches)
    raise InputError(f"reparam={reparam!r}; expected one of {', '.join(get_args(BranchType))}")


class DilatedReparamBlock(nn.Module):
    """A large depthwise kernel with parallel small dilated ones, which merge into it (section 3.2 and figure 2).

    ::

        x ──┬── DW KxK ────────── BN ──┐
            ├── DW k1xk1, dil r1 ── BN ─┼── sum ──► y        inference form:  x ── DW KxK + bias ──► y
            └── DW k2xk2, dil r2 ── BN ─┘

    In eval mode on CPUs, ``forward`` merges the kernels at each call and then computes a single convolution.

    Args:
        channels: C.
        kernel_size: K, odd.
        branches: (k, r) pairs with (k-1)r+1 <= K, or a kind of :func:`dilated_branches`.
        inference_mode: build the merged form, a single convolution with bias.

    Raises:
        InputError: if K is even, or a branch is larger than it.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        branches: Branches | BranchType = "dilated",
        inference_mode: bool = False,
    ) -> None:
        super().__init__()
        if isinstance(branches, str):
            branches = dilated_branches(kernel_size, branches)
        for k, r in branches:
            size = (k - 1) * r + 1
            if k % 2 == 0 or k < 1 or r < 1 or size > kernel_size:
                raise InputError(
                    f"branch (k={k}, r={r}) does not fit a {kernel_size}x{kernel_size} kernel: "
                    f"k must be odd and (k-1)*r+1 = {size} at most {kernel_size}"
                )
        self.branches = tuple((k, r) for k, r in branches)

        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=inference_mode)
        if inference_mode:
            return
        self.origin_bn = nn.BatchNorm2d(channels)
        for name, (k, r) in zip(self._branch_names(), self.branches, strict=True):
            self.add_module(f"dil_conv_{name}", DepthwiseConv2d(channels, k, dilation=r))
            self.add_module(f"dil_bn_{name}", nn.BatchNorm2d(channels))

    @property
    def merged(self) -> bool:
        """Whether the block is in inference form."""
        return not hasattr(self, "origin_bn")

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the block, (B, C, H, W) as its input."""
        if self.merged:
            return self.lk_origin(x)
        if self._merges_in_forward(x):
            return self._forward_merged(x)
        y = self.origin_bn(self.lk_origin(x))
        for conv, norm in self._parallel():
            y = y + norm(conv(x))
        return y

    def _merges_in_forward(self, x: Tensor) -> bool:
        """Return whether ``forward`` merges the branches: in eval mode on CPUs, if they are plain and have no hooks."""
        if self.training or is_exporting() or isinstance(x, torch.fx.Proxy):  # exported graphs have all modules
            return False
        if x.device.type != "cpu":  # only measured on CPUs, where it is faster
            return False

        step = self.lk_origin.dilation[0]  # above 1 in a net with an output_stride
        for conv, norm in [(self.lk_origin, self.origin_bn), *self._parallel()]:
            if type(conv) is not DepthwiseConv2d or conv.dilation[0] % step:
                return False
            if type(norm) is not nn.BatchNorm2d or norm.training or not norm.affine or norm.running_var is None:
                return False
            if has_hooks(conv) or has_hooks(norm):
                return False
        return True

    def _forward_merged(self, x: Tensor) -> Tensor:
        """Compute the block as one convolution, with the kernel of :meth:`reparameterize`, but differentiably."""
        step = self.lk_origin.dilation[0]
        scale, bias = _affine(self.origin_bn)
        weight = self.lk_origin.weight * scale.view(-1, 1, 1, 1)
        for conv, norm in self._parallel():
            scale, shift = _affine(norm)
            weight = _add_kernel(weight, conv.weight * scale.view(-1, 1, 1, 1), conv.dilation[0] // step)
            bias = bias + shift
        return depthwise_conv2d(x, weight, bias, dilation=step)

    def _branch_names(self) -> list[str]:
        """Return the official name k{k}_{r} of each branch; equal branches after the first one are numbered."""
        names: list[str] = []
        for i, (k, r) in enumerate(self.branches):
            earlier = self.branches[:i].count((k, r))
            names.append(f"k{k}_{r}_{earlier + 1}" if earlier else f"k{k}_{r}")
        return names

    def _parallel(self) -> Iterator[tuple[DepthwiseConv2d, nn.BatchNorm2d]]:
        """Yield the convolution and the norm of each small branch."""
        for name in self._branch_names():
            conv = self.get_submodule(f"dil_conv_{name}")
            norm = self.get_submodule(f"dil_bn_{name}")
            yield cast(DepthwiseConv2d, conv), cast(nn.BatchNorm2d, norm)

    def reparameterize(self, following: nn.Module | None = None) -> None:
        """Merge all branches into ``lk_origin``, in place; a merged block stays as it is.

        Args:
            following: a batch norm after the block, which is folded into the kernel as well.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        if self.merged:
            return

        weight, bias = merged_kernel([(self.lk_origin, self.origin_bn), *self._parallel()])
        step = self.lk_origin.dilation[0]
        weight = weight[:, :, ::step, ::step]  # drop the zeros of the dilated kernel
        if following is not None:
            weight, bias = fold_bn(weight, bias, following)

        set_folded(self.lk_origin, weight, bias)
        del self.origin_bn
        for name in self._branch_names():
            delattr(self, f"dil_conv_{name}")
            delattr(self, f"dil_bn_{name}")


def _affine(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return scale and shift of a batch norm in eval mode, (C,) each, differentiable."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


def _add_kernel(large: Tensor, small: Tensor, dilation: int) -> Tensor:
    """Add a small kernel (C, 1, k, k) with a dilation to a large one (C, 1, K, K) of the same center."""
    margin = (large.shape[-1] - (small.shape[-1] - 1) * dilation - 1) // 2
    taps = slice(margin, large.shape[-1] - margin, dilation)
    total = large.clone()
    total[:, :, taps, taps] += small
    return total


class SqueezeExcite(nn.Module):
    """A layer that multiplies each channel by a gate, computed from the means of all channels (SENet).

    ::

        x ─┬─ mean ── 1x1 (C, C/4) ── ReLU ── 1x1 (C/4, C) ── sigmoid ─┐
           └────────────────────────────────────────────────────────── × ─► y

    ``timm.layers.SqueezeExcite`` computes the same under other tensor names.

    Args:
        channels: C.
        reduced: number of channels between the two convolutions, C / 4 in UniRepLKNet (section 3.1).
    """

    def __init__(self, channels: int, reduced: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, reduced, 1)
        self.up = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the channels of (B, C, H, W) by their gates."""
        squeezed = x.mean((2, 3), keepdim=True)
        return x * self.up(F.relu(self.down(squeezed))).sigmoid()


def extra_structure(kind: ExtraStructure, dim: int) -> nn.Module:
    """Make the layers after the depthwise convolution of a block, (B, C, H, W) to the same shape.

    The paper compares them for its first guideline (section 3.1). All but 'two_dw3x3' have C / 4 channels in the
    middle. Only the code of 'se' was published: the others have the parameters and multiplications that the papers
    report, and the ReLU of 'se' between their layers.

    Args:
        kind: 'se' mixes channels by their means, 'two_1x1' mixes the channels of each pixel, 'two_dw3x3' mixes the
            pixels of each channel, 'bottleneck' (1x1, depthwise 3x3, 1x1) mixes both, and 'none' is an identity.
        dim: C.

    Raises:
        InputError: if ``kind`` is unknown.
    """
    hidden = dim // 4
    match kind:
        case "se":
            return SqueezeExcite(dim, hidden)
        case "none":
            return nn.Identity()
        case "two_1x1":
            return nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(),
                nn.Conv2d(hidden, dim, 1),
            )
        case "bottleneck":
            return nn.Sequential(
                nn.Conv2d(dim, hidden, 1),
                nn.ReLU(),
                DepthwiseConv2d(hidden, 3, bias=True),
                nn.ReLU(),
                nn.Conv2d(hidden, dim, 1),
            )
        case "two_dw3x3":
            return nn.Sequential(
                DepthwiseConv2d(dim, 3, bias=True),
                nn.ReLU(),
                DepthwiseConv2d(dim, 3, bias=True),
            )
    raise InputError(f"extra={kind!r}; expected one of {', '.join(get_args(ExtraStructure))}")


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's global response normalization (section 3 of its paper).

    With G the L2 norm of each channel over the map, y = (gamma * G / (mean_c G + eps) + 1) * x + beta.
    ``timm.layers.GlobalResponseNorm`` computes the same under other tensor names. G is computed in float32 or float64,
    because the square of a half-precision value above 255 overflows.

    Args:
        dim: number of channels, the last dimension of the input.
        use_bias: add ``beta``; in inference form, it is folded into the next linear layer instead.
        eps: number added to the mean of G.
    """

    beta: nn.Parameter | None

    def __init__(self, dim: int, use_bias: bool = True, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.gamma = nn.Parameter(torch.zeros(1, 1, 1, dim))
        self.beta = nn.Parameter(torch.zeros(1, 1, 1, dim)) if use_bias else None

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """Normalize (B, H, W, C) to the same shape and dtype."""
        scale = self.scale(x_BHWC)
        y = x_BHWC * scale if self.beta is None else torch.addcmul(self.beta, x_BHWC, scale)
        return y.to(x_BHWC.dtype)

    def forward_in_place(self, x_BHWC: Tensor) -> Tensor:
        """Compute ``forward`` and overwrite the input with the result; this needs no_grad mode."""
        x_BHWC.mul_(self.scale(x_BHWC))
        return x_BHWC if self.beta is None else x_BHWC.add_(self.beta)

    def scale(self, x_BHWC: Tensor) -> Tensor:
        """Compute the factor of each channel, (B, 1, 1, C) in float32 or float64."""
        norm = channel_norms(x_BHWC)
        return self.gamma * norm / (norm.mean(-1, keepdim=True) + self.eps) + 1


_CACHED_VALUES = 2**20
"""Number of values whose squares stay in the cache of a CPU: 4 MiB in float32."""


@register_notrace_function  # depends on the device, which timm's feature extraction cannot trace
def channel_norms(x_BHWC: Tensor) -> Tensor:
    """Compute the L2 norm of each channel over the map, (B, 1, 1, C) in float32 or float64."""
    dtype = torch.promote_types(x_BHWC.dtype, torch.float32)
    on_cpu = x_BHWC.device.type == "cpu"
    if not on_cpu or torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exporting():
        return torch.linalg.vector_norm(x_BHWC, dim=(1, 2), keepdim=True, dtype=dtype)

    # Take a few samples at a time, so that their squares stay in the cache.
    samples = max(1, _CACHED_VALUES // max(1, x_BHWC.shape[1:].numel()))
    squares = [part.to(dtype).square().sum((1, 2), keepdim=True) for part in x_BHWC.split(samples)]
    return torch.cat(squares).sqrt()


class UniRepLKNetBlock(nn.Module):
    """A depthwise convolution and a feed-forward network, with one shortcut around both (figure 3).

    ::

        x ── dwconv ── BN ── SE ── Linear(C, 4C) ── GELU ── GRN ── Linear(4C, C) ── BN ── layer scale ── DropPath ─┐
        └──────────────────────────────────────────────────────────────────────────────────────────────────────── + ─► y

    There are three kinds of blocks: with a kernel of 7 and more, a LarK block (:class:`DilatedReparamBlock`); with a
    kernel of 3 or 5, a SmaK block (a plain depthwise convolution); with 0, a block without depthwise convolution and
    norm. There is no activation between the convolution and SE. In inference form, the first norm is folded into the
    depthwise convolution; GRN's beta, the second norm and the layer scale are folded into the second linear layer.

    Args:
        dim: C.
        kernel_size: 0, 3, 5, or an odd size of 7 and more.
        drop_path: probability that a sample skips the block.
        layer_scale_init_value: initial value of the layer scale; 0 or None for no layer scale.
        branches: (k, r) pairs of a LarK block, or a kind of :func:`dilated_branches`.
        extra: layers in the place of SE, see :func:`extra_structure`.
        inference_mode: build the folded form.

    Raises:
        InputError: if ``kernel_size`` is another number, ``branches`` do not fit it, or ``extra`` is unknown.
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
        self.dwconv: nn.Module
        self.norm: nn.Module
        if kernel_size == 0:
            self.dwconv = nn.Identity()
        elif kernel_size in (3, 5):
            self.dwconv = DepthwiseConv2d(dim, kernel_size, bias=inference_mode)
        elif kernel_size >= 7 and kernel_size % 2 == 1:
            self.dwconv = DilatedReparamBlock(dim, kernel_size, branches=branches, inference_mode=inference_mode)
        else:
            raise InputError(f"kernel_size is {kernel_size}; use 0 (none), 3, 5, or an odd size of 7 and more")
        self.norm = nn.Identity() if kernel_size == 0 or inference_mode else nn.BatchNorm2d(dim)
        self.se = extra_structure(extra, dim)

        # The Sequentials give the parameters their official names: pwconv1.1, act.1, pwconv2.0, pwconv2.2.
        self.pwconv1 = nn.Sequential(
            Permute([0, 2, 3, 1]),  # (B, H, W, C) for the linear layers
            nn.Linear(dim, 4 * dim),
        )
        self.act = nn.Sequential(
            nn.GELU(),
            GlobalResponseNorm(4 * dim, use_bias=not inference_mode),
        )
        self.pwconv2 = nn.Sequential(
            nn.Linear(4 * dim, dim, bias=inference_mode),
            Permute([0, 3, 1, 2]),
        )
        self.gamma = None
        if not inference_mode:
            self.pwconv2.append(nn.BatchNorm2d(dim))
            if layer_scale_init_value is not None and layer_scale_init_value > 0:
                self.gamma = nn.Parameter(torch.full((dim,), layer_scale_init_value))
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the block, (B, C, H, W) as its input."""
        in_place = may_overwrite(self, x)
        y = self.se(self.norm(self.dwconv(x)))
        y = self.pwconv1(y)  # (B, H, W, 4C)
        gelu, grn = self.act
        if in_place and type(gelu) is nn.GELU and type(grn) is GlobalResponseNorm:
            torch.ops.aten.gelu_(y, approximate=gelu.approximate)
            y = grn.forward_in_place(y)
        else:
            y = self.act(y)
        y = self.pwconv2(y)  # (B, C, H, W)
        if self.gamma is not None:
            y = y * self.gamma.view(-1, 1, 1)
        return add_shortcut(self.drop_path(y), x, in_place=in_place)

    def reparameterize(self) -> None:
        """Fold the block into its inference form, in place; a folded block stays as it is.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        if is_batch_norm(self.norm):
            self._fold_norm()
        if len(self.pwconv2) == 3:
            self._fold_output()

    def _fold_norm(self) -> None:
        """Fold the norm after the depthwise convolution into it."""
        if isinstance(self.dwconv, DilatedReparamBlock) and not self.dwconv.merged:
            self.dwconv.reparameterize(following=self.norm)
        else:
            conv = self.dwconv.lk_origin if isinstance(self.dwconv, DilatedReparamBlock) else self.dwconv
            assert isinstance(conv, nn.Conv2d)
            set_folded(conv, *fold_bn(conv.weight, conv.bias, self.norm))
        self.norm = nn.Identity()

    def _fold_output(self) -> None:
        """Fold GRN's beta, the second norm and the layer scale into the second linear layer."""
        grn, linear, norm = self.act[1], self.pwconv2[0], self.pwconv2[2]
        assert isinstance(grn, GlobalResponseNorm)
        assert isinstance(linear, nn.Linear)
        weight, bias = fold_bn(linear.weight, linear.bias, norm)
        if grn.beta is not None:
            # beta is the same at every pixel, so its product with the weight is a bias.
            bias = bias + weight @ to_float64_cpu(grn.beta).flatten()
        if self.gamma is not None:
            scale = to_float64_cpu(self.gamma)
            weight = weight * scale[:, None]
            bias = bias * scale
        set_folded(linear, weight, bias)
        grn.beta = None
        self.gamma = None
        del self.pwconv2[2]


def default_kernel_sizes(depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the papers' kernel size of every block (UniRepLKNet table 4).

    The first stage has kernels of 3, the others of 13. A third stage of more than 8 blocks alternates 13 and 3, and
    one of more than 18 blocks repeats 13, 3, 3. This gives the published variants, and nets of other depths the
    layout of the nearest one.

    Args:
        depths: number of blocks of each stage.

    Example:
        >>> default_kernel_sizes((1, 1, 4, 1))
        ((3,), (13,), (13, 13, 13, 13), (13,))
    """
    sizes = [(13,) * depth for depth in depths]
    sizes[0] = (3,) * depths[0]
    if len(depths) > 2 and depths[2] > 8:
        pattern = (13, 3) if depths[2] <= 18 else (13, 3, 3)
        sizes[2] = tuple(pattern[block % len(pattern)] for block in range(depths[2]))
    return tuple(sizes)


def _sizes_of_blocks(kernel_sizes: KernelSizes | None, depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Return the kernel size of every block, and check that there is one for each."""
    if kernel_sizes is None:
        return default_kernel_sizes(depths)
    if not isinstance(kernel_sizes, Sequence) or not all(isinstance(k, int | Sequence) for k in kernel_sizes):
        raise InputError(f"kernel_sizes={kernel_sizes!r}; give one entry for each stage, an int or a list of ints")
    if len(kernel_sizes) != len(depths):
        raise InputError(
            f"kernel_sizes describes {len(kernel_sizes)} stages but depths={tuple(depths)} has {len(depths)}; "
            "give one entry for each stage"
        )
    sizes: list[tuple[int, ...]] = []
    for stage, (given, depth) in enumerate(zip(kernel_sizes, depths, strict=True)):
        sizes.append((given,) * depth if isinstance(given, int) else tuple(given))
        if len(sizes[-1]) != depth:
            raise InputError(
                f"kernel_sizes[{stage}]={sizes[-1]} has {len(sizes[-1])} entries but depths[{stage}] is {depth}; "
                "give one kernel size for each block, or one int for the whole stage"
            )
    return tuple(sizes)


class UniRepLKNet(LargeKernelNet):
    """A stem, stages of LarK and SmaK blocks with strided 3x3 convolutions between them, and a classifier.

    ::

        image ─ stem /4 ─ stage 0 ─ /2 ─ stage 1 ─ /2 ─ stage 2 ─ /2 ─ stage 3 ─ mean ─ LayerNorm ─ Linear ─ logits
                             │              │              │              └── forward_features
                             └──────────────┴──────────────┴── forward_intermediates, features_only=True

    Args:
        in_chans: number of channels of the input map.
        num_classes: number of outputs of the classifier; 0 for no classifier.
        global_pool: timm's name of the pooling: 'avg', 'max', 'avgmax', ...; '' keeps the map and needs num_classes 0.
        depths: number of blocks of each stage.
        dims: number of channels of each stage.
        kernel_sizes: kernel size of each stage, or of each block of a stage; by default :func:`default_kernel_sizes`.
            0 is a block without depthwise convolution.
        reparam: kind of the parallel branches of all LarK blocks, see :func:`dilated_branches`: 'dilated', or 'none',
            'same_kernel' or 'same_equivalent_kernel' from the paper's ablation (section 3.1).
        branches: (k, r) pairs of the branches by kernel size, for kernel sizes that have other branches than
            ``reparam`` says.
        extra: layers after the depthwise convolution of all blocks, see :func:`extra_structure`: 'se', or 'none',
            'bottleneck', 'two_1x1' or 'two_dw3x3' from the paper's ablation (section 3.1).
        drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
        drop_rate: dropout before the classifier.
        layer_scale_init_value: initial value of the layer scale of each block; 0 for no layer scale.
        weight_init: initial weights of convolutions and linear layers. 'trunc_normal', the published rule, has a
            standard deviation of 0.02, so that what enters GELU in a narrow net is small, and the net nearly linear at
            first. 'kaiming' scales with the inputs of a layer; it may help if the training loss does not fall.
        head_init_scale: factor by which the initial weights of the classifier are multiplied.
        output_stride: stride of the last map with respect to the input: 4, 8, 16, ... If it is smaller than that of
            the stages, the later strides become dilations, as in DeepLab and other segmentation networks.
        feature_norms: add a LayerNorm for each stage's map (``norm0``, ...). ``forward_intermediates`` applies them
            with ``norm=True``; timm's ``features_only`` does not.
        inference_mode: build the folded form, for weights of :func:`core.reparameterize`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        InputError: if depths, dims, kernel_sizes and branches do not fit together.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        global_pool: str = "avg",
        depths: Sequence[int] = (3, 3, 27, 3),
        dims: Sequence[int] = (96, 192, 384, 768),
        kernel_sizes: KernelSizes | None = None,
        reparam: BranchType = "dilated",
        branches: Mapping[int, Branches] | None = None,
        extra: ExtraStructure = "se",
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        layer_scale_init_value: float | None = 1e-6,
        weight_init: WeightInit = "trunc_normal",
        head_init_scale: float = 1.0,
        output_stride: int | None = None,
        feature_norms: bool = False,
        inference_mode: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_chans=in_chans,
            num_classes=num_classes,
            depths=depths,
            dims=dims,
            drop_path_rate=drop_path_rate,
        )
        if min(dims) < 4 or dims[0] % 2:
            raise InputError(f"dims={tuple(dims)}: the first must be even, and all must be at least 4")
        if weight_init not in get_args(WeightInit):
            raise InputError(f"weight_init={weight_init!r}; expected one of {', '.join(get_args(WeightInit))}")
        sizes = _sizes_of_blocks(kernel_sizes, depths)
        branches = {int(size): pairs for size, pairs in (branches or {}).items()}  # the keys in JSON are strings
        unused = set(branches) - {size for stage in sizes for size in stage if size >= 7}
        if unused:
            raise InputError(f"branches are given for kernel sizes {sorted(unused)}; no LarK block of {sizes} has them")

        self.downsample_layers = nn.ModuleList([_stem(in_chans, dims[0])])
        for dim_in, dim_out in pairwise(dims):
            self.downsample_layers.append(_downsample(dim_in, dim_out))

        self.stages = nn.ModuleList()
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for dim, stage_sizes, stage_rates in zip(dims, sizes, drop_path_rates, strict=True):
            stage = nn.Sequential()
            for kernel_size, rate in zip(stage_sizes, stage_rates, strict=True):
                stage.append(
                    UniRepLKNetBlock(
                        dim,
                        kernel_size,
                        drop_path=rate,
                        layer_scale_init_value=layer_scale_init_value,
                        branches=branches.get(kernel_size, reparam),
                        extra=extra,
                        inference_mode=inference_mode,
                    )
                )
            self.stages.append(stage)
        self._limit_stride(output_stride)

        self.feature_norms = feature_norms
        if feature_norms:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights(weight_init, head_init_scale)
        self.to(device=device, dtype=dtype)

    def _init_weights(self, weight_init: WeightInit, head_init_scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if weight_init == "kaiming" and module is not self.head:
                    nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                else:
                    trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    def init_classifier(self, head: nn.Linear) -> None:
        """Initialize a new classifier as the official code does."""
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def pool_and_norm(self, x: Tensor) -> Tensor:
        """Pool the last map (B, dims[-1], H, W) and normalize the result, (B, dims[-1])."""
        return self.norm(self.global_pool(x))

    def reparameterize(self) -> None:
        """Fold the final norm into the classifier, in place; ``core.reparameterize`` folds the blocks.

        The norm stays, with a scale of 1 and a shift of 0, since the official inference form has these tensors.

        Raises:
            RuntimeError: if the model is in training mode.
        """
        require_eval(self)
        # timm.models.save_for_hf stores this argument, with which timm then builds the inference form.
        update_model_args(self, inference_mode=True)
        if type(self.head) is nn.Linear and isinstance(self.norm, nn.LayerNorm):
            set_folded(self.head, *fold_affine(self.head.weight, self.head.bias, *norm_affine(self.norm)))
            self.norm.reset_parameters()
            self.norm_in_head = True

    def entry(self, stage: int) -> nn.Module:
        """Return the stem, or the strided convolution and its norm before a later stage."""
        return self.downsample_layers[stage]

    def blocks(self, stage: int) -> nn.Sequential:
        """Return the blocks of a stage, in order."""
        return cast(nn.Sequential, self.stages[stage])

    def feature_norm(self, stage: int) -> nn.Module:
        """Return the LayerNorm of a stage's map."""
        return self.get_submodule(f"norm{stage}")

    def remove_feature_norm(self, stage: int) -> None:
        """Remove the norm of a stage's map, if there is one."""
        if hasattr(self, f"norm{stage}"):
            delattr(self, f"norm{stage}")

    def keep_stages(self, count: int) -> None:
        """Remove all stages after the first ``count``."""
        self.stages = self.stages[:count]
        self.downsample_layers = self.downsample_layers[:count]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of parameters, from input to output, for layer-wise learning-rate decay.

        This is the rule of the official code for S to XL, for any depths: the stem is a group, and so is each stage,
        except that in the third stage every three blocks are a group. A strided layer belongs to the blocks after it.
        """
        if coarse:
            return {"stem": r"^downsample_layers\.0\.", "blocks": r"^(?:stages|downsample_layers)\.(\d+)"}
        blocks: list[tuple[str, tuple[int]]] = []
        group = 1
        for stage, depth in enumerate(self.depths[: len(self.stages)]):
            if stage > 0:
                blocks.append((rf"^downsample_layers\.{stage}\.", (group,)))
            size = 3 if stage == 2 else depth
            for pattern in patterns_of_runs(rf"stages\.{stage}\.", depth, size):
                blocks.append((pattern, (group,)))
                group += 1
        return {"stem": r"^downsample_layers\.0\.", "blocks": blocks}


def _stem(in_chans: int, dim: int) -> nn.Sequential:
    """Make the layers that turn the input into a map of a quarter of its height and width."""
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1),
        LayerNorm2d(half, eps=1e-6),
        nn.GELU(),
        nn.Conv2d(half, dim, 3, stride=2, padding=1),
        LayerNorm2d(dim, eps=1e-6),
    )


def _downsample(dim_in: int, dim_out: int) -> nn.Sequential:
    """Make the layers between two stages, which halve height and width."""
    return nn.Sequential(
        nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1),
        LayerNorm2d(dim_out, eps=1e-6),
    )


# Published variants. File names and resolutions are those of huggingface.co/DingXiaoH/UniRepLKNet (Apache-2.0).
# Accuracies are those of the papers.


def _cfg(filename: str, *, top1: float | None = None, size: int = 224, num_classes: int = 1000) -> dict[str, Any]:
    return {
        "hf_hub_id": "DingXiaoH/UniRepLKNet",
        "hf_hub_filename": f"unireplknet_{filename}.pth",
        "license": "apache-2.0",
        "origin_url": "https://github.com/AILab-CVC/UniRepLKNet",
        "paper_ids": "arXiv:2311.15599",
        "paper_name": "UniRepLKNet: A Universal Perception Large-Kernel ConvNet",
        **evaluation_cfg(size, top1=top1, num_classes=num_classes, first_conv="downsample_layers.0.0"),
    }


default_cfgs = generate_default_cfgs(
    {
        "unireplknet_a.in1k": _cfg("a_in1k_224_acc77.03", top1=77.0),
        "unireplknet_f.in1k": _cfg("f_in1k_224_acc78.58", top1=78.6),
        "unireplknet_p.in1k": _cfg("p_in1k_224_acc80.23", top1=80.2),
        "unireplknet_n.in1k": _cfg("n_in1k_224_acc81.64", top1=81.6),
        "unireplknet_t.in1k": _cfg("t_in1k_224_acc83.21", top1=83.2),
        "unireplknet_s.in1k": _cfg("s_in1k_224_acc83.91", top1=83.9),
        "unireplknet_s.in22k_ft_in1k_384": _cfg("s_in22k_to_in1k_384_acc86.44", top1=86.4, size=384),
        "unireplknet_s.in22k": _cfg("s_in22k_pretrain", num_classes=21841),
        "unireplknet_b.in22k_ft_in1k_384": _cfg("b_in22k_to_in1k_384_acc87.40", top1=87.4, size=384),
        "unireplknet_b.in22k": _cfg("b_in22k_pretrain", num_classes=21841),
        "unireplknet_l.in22k_ft_in1k_384": _cfg("l_in22k_to_in1k_384_acc87.88", top1=87.9, size=384),
        "unireplknet_l.in22k": _cfg("l_in22k_pretrain", size=192, num_classes=21841),
        "unireplknet_xl.in22k_ft_in1k_384": _cfg("xl_in22k_to_in1k_384_acc87.96", top1=88.0, size=384),
        "unireplknet_xl.in22k": _cfg("xl_in22k_pretrain", size=192, num_classes=21841),
        "test_unireplknet.untrained": {
            "input_size": (3, 64, 64),
            "first_conv": "downsample_layers.0.0",
            "classifier": "head",
        },
    }
)


VARIANTS: dict[str, dict[str, Any]] = {
    "unireplknet_a": {"depths": (2, 2, 6, 2), "dims": (40, 80, 160, 320)},
    "unireplknet_f": {"depths": (2, 2, 6, 2), "dims": (48, 96, 192, 384)},
    "unireplknet_p": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512)},
    "unireplknet_n": {"depths": (2, 2, 8, 2), "dims": (80, 160, 320, 640)},
    "unireplknet_t": {"depths": (3, 3, 18, 3), "dims": (80, 160, 320, 640)},
    "unireplknet_s": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "unireplknet_b": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "unireplknet_l": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "unireplknet_xl": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
    "test_unireplknet": {"depths": (1, 1, 3, 1), "dims": (8, 16, 24, 32), "kernel_sizes": (3, 7, (9, 0, 3), 13)},
}
"""Arguments of :class:`UniRepLKNet` for each variant, by its name."""


def _create_unireplknet(name: str, pretrained: bool, **kwargs: Any) -> UniRepLKNet:
    return build_variant(UniRepLKNet, name, VARIANTS[name] | kwargs, pretrained=pretrained)


@register_model
def unireplknet_a(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-A: 4.4 M parameters and 0.64 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_a", pretrained, **kwargs)


@register_model
def unireplknet_f(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-F: 6.2 M parameters and 0.91 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_f", pretrained, **kwargs)


@register_model
def unireplknet_p(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-P: 10.7 M parameters and 1.57 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_p", pretrained, **kwargs)


@register_model
def unireplknet_n(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-N: 18.3 M parameters and 2.77 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_n", pretrained, **kwargs)


@register_model
def unireplknet_t(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-T: 31.0 M parameters and 4.90 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_t", pretrained, **kwargs)


@register_model
def unireplknet_s(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-S: 55.6 M parameters and 9.09 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_s", pretrained, **kwargs)


@register_model
def unireplknet_b(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-B: 98.0 M parameters and 16.1 GMACs at 224 in inference form."""
    return _create_unireplknet("unireplknet_b", pretrained, **kwargs)


@register_model
def unireplknet_l(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-L: 218 M parameters and 105 GMACs at 384 in inference form."""
    return _create_unireplknet("unireplknet_l", pretrained, **kwargs)


@register_model
def unireplknet_xl(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """UniRepLKNet-XL: 387 M parameters and 187 GMACs at 384 in inference form."""
    return _create_unireplknet("unireplknet_xl", pretrained, **kwargs)


@register_model
def test_unireplknet(pretrained: bool = False, **kwargs: Any) -> UniRepLKNet:
    """A tiny net with every kind of block for tests, without published weights."""
    if "depths" in kwargs:
        kwargs.setdefault("kernel_sizes", None)
    return _create_unireplknet("test_unireplknet", pretrained, **kwargs)
