"""RepLKNet, a ConvNet with kernels of up to 31x31.

Paper: 'Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs' (CVPR 2022, arXiv 2203.06717).
Official code: github.com/DingXiaoH/RepLKNet-pytorch at b76808a, MIT. Tensors have their official names, both in
training form and with the small kernels merged, so official files load without renaming.

Deliberate differences from the official code:

- The trainer decides on SyncBN and activation checkpointing, not the model.
- The norms of the stages' maps (``stages.0.norm``, ...) exist beside the classifier instead of replacing it.
- There is a third form, without any batch norm.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self, cast

import torch
from timm.data.constants import IMAGENET_INCEPTION_MEAN, IMAGENET_INCEPTION_STD
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import generate_default_cfgs, register_model
from timm.models._input import update_model_args
from torch import Tensor, nn

from core.backbones.base import (
    LargeKernelNet,
    add_shortcut,
    build_variant,
    evaluation_cfg,
    may_overwrite,
    patterns_of_runs,
)
from core.errors import InputError
from core.layers import DepthwiseConv2d
from core.reparam import (
    ConvAndNorm,
    fold_affine,
    fold_bn,
    is_batch_norm,
    merged_kernel,
    norm_affine,
    require_eval,
    set_folded,
)

__all__ = ["VARIANTS", "ConvBN", "ConvFFN", "RepLKBlock", "RepLKNet", "RepLKNetStage", "ReparamLargeKernelConv"]


class ConvBN(nn.Sequential):
    """A convolution, a batch norm and an optional ReLU; in inference form, the convolution has a bias and no norm.

    Args:
        in_channels: number of channels of the input.
        out_channels: number of channels of the output.
        kernel_size: size of the kernel, odd.
        stride: step of the output grid, in pixels.
        depthwise: give each channel a kernel of its own; ``in_channels`` must equal ``out_channels``.
        relu: add a ReLU at the end.
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
        """Fold the norm into the convolution, in place; a folded layer stays as it is.

        Raises:
            RuntimeError: if the layer is in training mode.
        """
        require_eval(self)
        if is_batch_norm(self.bn):
            set_folded(self.conv, *fold_bn(self.conv.weight, self.conv.bias, self.bn))
            self.bn = nn.Identity()


class ReparamLargeKernelConv(nn.Module):
    """A large depthwise kernel with a parallel small one, which merges into it after training (section 3).

    ::

        x ──┬── DW KxK ─ BN ──┐
            ├── DW kxk ─ BN ──┼── sum ──► y        inference form:  x ── DW KxK + bias ──► y
            └── (identity) ───┘

    Args:
        channels: C.
        kernel_size: K, odd.
        small_kernel: k, odd and at most K; 0 or None for no small branch.
        stride: step of the output grid, in pixels.
        identity: add the input to the sum, which requires stride 1. RepLKNet does not need this: its blocks have
            shortcuts.
        inference_mode: build the merged form.

    Raises:
        InputError: if a kernel is even, the small one is larger than the large one, or ``identity`` is combined with a
            stride.
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
            raise InputError(f"an identity branch needs stride=1, but the stride is {stride}; use identity=False")
        self.identity = identity
        if inference_mode:
            self.lkb_reparam = DepthwiseConv2d(channels, kernel_size, stride=stride, bias=True)
            return
        self.lkb_origin = ConvBN(channels, channels, kernel_size, stride=stride, depthwise=True)
        if small_kernel is not None:
            self.small_conv = ConvBN(channels, channels, small_kernel, stride=stride, depthwise=True)

    @property
    def merged(self) -> bool:
        """Whether the layer is in inference form."""
        return hasattr(self, "lkb_reparam")

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, C, H, W) to (B, C, ceil(H / stride), ceil(W / stride))."""
        if self.merged:
            return self.lkb_reparam(x)
        y = self.lkb_origin(x)
        if hasattr(self, "small_conv"):
            y = y + self.small_conv(x)
        if self.identity:
            y = y + x
        return y

    def reparameterize(self) -> None:
        """Merge the branches into one convolution, in place; a merged layer stays as it is.

        Raises:
            RuntimeError: if the layer is in training mode.
        """
        require_eval(self)
        if self.merged:
            return
        large = self.lkb_origin.conv
        branches: list[ConvAndNorm] = []
        for name in ("lkb_origin", "small_conv"):
            if hasattr(self, name):
                part = cast(ConvBN, getattr(self, name))
                branches.append((part.conv, part.bn if is_batch_norm(part.bn) else None))
                delattr(self, name)

        weight, bias = merged_kernel(branches, identity=self.identity)
        step = large.dilation[0]  # above 1 in a net with an output_stride
        weight = weight[:, :, ::step, ::step]  # drop the zeros of the dilated kernel

        with torch.device(large.weight.device):
            merged = DepthwiseConv2d(
                large.in_channels,
                large.kernel_size[0],
                stride=large.stride[0],
                dilation=step,
                bias=True,
            )
        merged.to(large.weight.dtype).requires_grad_(large.weight.requires_grad)
        set_folded(merged, weight, bias)
        self.lkb_reparam = merged.eval()


class RepLKBlock(nn.Module):
    """A block that mixes pixels: 1x1 convolution, large depthwise kernel, 1x1 convolution, and a shortcut (figure 2).

    ::

        x ── BN ── 1x1 + BN + ReLU ── DW KxK (+ DW kxk) ── ReLU ── 1x1 + BN ── DropPath ─┐
        └───────────────────────────────────────────────────────────────────────────── + ─► y

    In inference form, the first norm is folded into the convolution after it, and each other norm into the convolution
    before it.

    Args:
        dim: C.
        hidden: number of channels between the two 1x1 convolutions.
        kernel_size: K, odd.
        small_kernel: k of the parallel branch; 0 or None for none.
        drop_path: probability that a sample skips the block.
        small_kernel_merged: build the official merged form, which still has the norms of the other layers.
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
        self.prelkb_bn = nn.Identity() if inference_mode else nn.BatchNorm2d(dim)
        self.pw1 = ConvBN(dim, hidden, relu=True, inference_mode=inference_mode)
        self.large_kernel = ReparamLargeKernelConv(
            hidden,
            kernel_size,
            small_kernel=small_kernel,
            inference_mode=small_kernel_merged or inference_mode,
        )
        self.lk_nonlinear = nn.ReLU()
        self.pw2 = ConvBN(hidden, dim, inference_mode=inference_mode)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the block, (B, C, H, W) as its input."""
        in_place = may_overwrite(self, x)
        y = self.large_kernel(self.pw1(self.prelkb_bn(x)))
        y = y.relu_() if in_place and type(self.lk_nonlinear) is nn.ReLU else self.lk_nonlinear(y)
        return add_shortcut(self.drop_path(self.pw2(y)), x, in_place=in_place)

    def reparameterize(self) -> None:
        """Fold the first norm, in place; ``core.reparameterize`` folds the parts after it.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        self.prelkb_bn = _fold_norm_before(self.prelkb_bn, self.pw1)


class ConvFFN(nn.Module):
    """A block that mixes channels: the feed-forward network after a :class:`RepLKBlock`.

    ::

        x ── BN ── 1x1 + BN ── GELU ── 1x1 + BN ── DropPath ─┐
        └───────────────────────────────────────────────── + ─► y

    Args:
        dim: C.
        hidden: number of channels between the two 1x1 convolutions.
        drop_path: probability that a sample skips the block.
        inference_mode: build the form without norms.
    """

    def __init__(self, dim: int, hidden: int, *, drop_path: float = 0.0, inference_mode: bool = False) -> None:
        super().__init__()
        self.preffn_bn = nn.Identity() if inference_mode else nn.BatchNorm2d(dim)
        self.pw1 = ConvBN(dim, hidden, inference_mode=inference_mode)
        self.nonlinear = nn.GELU()
        self.pw2 = ConvBN(hidden, dim, inference_mode=inference_mode)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Compute the output of the block, (B, C, H, W) as its input."""
        in_place = may_overwrite(self, x)
        y = self.pw1(self.preffn_bn(x))
        if in_place and type(self.nonlinear) is nn.GELU:
            torch.ops.aten.gelu_(y, approximate=self.nonlinear.approximate)
        else:
            y = self.nonlinear(y)
        return add_shortcut(self.drop_path(self.pw2(y)), x, in_place=in_place)

    def reparameterize(self) -> None:
        """Fold the first norm, in place; ``core.reparameterize`` folds the parts after it.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        self.preffn_bn = _fold_norm_before(self.preffn_bn, self.pw1)


def _fold_norm_before(norm: nn.Module, layer: ConvBN) -> nn.Identity:
    """Fold a batch norm, and the norm of the 1x1 layer after it, into that layer; return the module to replace it."""
    if is_batch_norm(norm):
        weight, bias = fold_affine(layer.conv.weight, layer.conv.bias, *norm_affine(norm))
        if is_batch_norm(layer.bn):  # fold both at once, so that a model in half precision is rounded only once
            weight, bias = fold_bn(weight, bias, layer.bn)
            layer.bn = nn.Identity()
        set_folded(layer.conv, weight, bias)
    return nn.Identity()


class RepLKNetStage(nn.Module):
    """The blocks of a stage, in which RepLK blocks and ConvFFNs alternate, and the norm of its map if there is one.

    Args:
        blocks: the 2 x depth blocks, in order.
        norm: norm of the map, which ``forward`` does not apply; None for none.
    """

    norm: nn.Module

    def __init__(self, blocks: Sequence[nn.Module], norm: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        if norm is not None:
            self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map of the stage, before its norm; (B, C, H, W) to the same shape."""
        return self.blocks(x)

    def reparameterize(self) -> None:
        """Turn the norm into a scale and a shift, in place; ``core.reparameterize`` folds the blocks.

        Raises:
            RuntimeError: if the stage is in training mode.
        """
        require_eval(self)
        if is_batch_norm(getattr(self, "norm", nn.Identity())):
            self.norm = _affine_layer(self.norm)


def _map_norm(dim: int, inference_mode: bool) -> nn.Module:
    """Make the norm of a map with ``dim`` channels: a batch norm, or in inference form the layer that replaces it."""
    if inference_mode:
        return _affine_layer(nn.BatchNorm2d(dim, eps=0.0).eval())  # an identity, until weights are loaded
    return nn.BatchNorm2d(dim)


def _affine_layer(norm: nn.Module) -> nn.Module:
    """Turn a batch norm into a depthwise 1x1 convolution, which scales and shifts each channel."""
    scale, shift = norm_affine(norm)
    layer = DepthwiseConv2d(len(scale), 1, bias=True).to(cast(Tensor, norm.running_var))
    layer.requires_grad_(all(p.requires_grad for p in norm.parameters()))
    set_folded(layer, scale.view(-1, 1, 1, 1), shift)
    return layer.eval()


class RepLKNet(LargeKernelNet):
    """A stem, stages of large-kernel blocks and 1x1 networks with strided transitions between them, and a classifier.

    ::

        image ─ stem /4 ─ stage 0 ─ /2 ─ stage 1 ─ /2 ─ stage 2 ─ /2 ─ stage 3 ─ BN ─ mean ─ Linear ─ logits
                             │              │              │              └── forward_features
                             └──────────────┴──────────────┴── forward_intermediates, features_only=True

    Args:
        in_chans: number of channels of the input map.
        num_classes: number of outputs of the classifier; 0 for no classifier.
        global_pool: timm's name of the pooling: 'avg', 'max', 'avgmax', ...; '' keeps the map and needs num_classes 0.
        depths: number of pairs of blocks of each stage.
        dims: number of channels of each stage.
        kernel_sizes: size of the large kernels of each stage, odd.
        small_kernel: size of the branch beside each large kernel, at most that of the smallest large kernel; 0 for no
            such branch. None means the same, but ``timm.create_model`` does not pass it on.
        dw_ratio: number of channels of the large kernels, divided by that of the stage.
        ffn_ratio: number of hidden channels of the 1x1 networks, divided by that of the stage.
        drop_path_rate: stochastic depth of the last pair of blocks; rates rise linearly from 0 over the pairs.
        drop_rate: dropout before the classifier.
        output_stride: stride of the last map with respect to the input: 4, 8, 16, ... If it is smaller than that of
            the stages, the later strides become dilations, as in DeepLab and other segmentation networks.
        feature_norms: add a BatchNorm for each stage's map (``stages.0.norm``, ...). ``forward_intermediates`` applies
            them with ``norm=True``; timm's ``features_only`` does not.
        small_kernel_merged: build the official merged form, for weights of :meth:`merge_small_kernels`.
        inference_mode: build the form without batch norms, for weights of :func:`core.reparameterize`.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        InputError: if depths, dims and kernel_sizes do not fit together.
    """

    def __init__(
        self,
        in_chans: int = 3,
        num_classes: int = 1000,
        *,
        global_pool: str = "avg",
        depths: Sequence[int] = (2, 2, 18, 2),
        dims: Sequence[int] = (128, 256, 512, 1024),
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        small_kernel: int | None = 5,
        dw_ratio: float = 1.0,
        ffn_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        drop_rate: float = 0.0,
        output_stride: int | None = None,
        feature_norms: bool = False,
        small_kernel_merged: bool = False,
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
        small_kernel = small_kernel or None
        _check_sizes(depths, dims, kernel_sizes, small_kernel, dw_ratio, ffn_ratio)

        self.stem = _stem(in_chans, dims[0], inference_mode)
        self.transitions = nn.ModuleList()
        for dim_in, dim_out in pairwise(dims):
            self.transitions.append(_transition(dim_in, dim_out, inference_mode))

        self.stages = nn.ModuleList()
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for dim, kernel_size, rates in zip(dims, kernel_sizes, drop_path_rates, strict=True):
            blocks: list[nn.Module] = []
            for rate in rates:
                blocks.append(
                    RepLKBlock(
                        dim,
                        int(dim * dw_ratio),
                        kernel_size,
                        small_kernel=small_kernel,
                        drop_path=rate,
                        small_kernel_merged=small_kernel_merged,
                        inference_mode=inference_mode,
                    )
                )
                blocks.append(ConvFFN(dim, int(dim * ffn_ratio), drop_path=rate, inference_mode=inference_mode))
            norm = _map_norm(dim, inference_mode) if feature_norms else None
            self.stages.append(RepLKNetStage(blocks, norm))
        self._limit_stride(output_stride)

        self.feature_norms = feature_norms
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.norm_in_head = inference_mode and self._head_takes_norm()
        self.norm = nn.Identity() if self.norm_in_head else _map_norm(dims[-1], inference_mode)
        self.to(device=device, dtype=dtype)

    def pool_and_norm(self, x: Tensor) -> Tensor:
        """Normalize the last map (B, dims[-1], H, W) and pool it to (B, dims[-1])."""
        return self.global_pool(self.norm(x))

    def merge_small_kernels(self) -> Self:
        """Return a new model in the official merged form: small kernels are merged, and the other norms stay.

        Raises:
            RuntimeError: if the model is in training mode.
        """
        require_eval(self)
        merged = copy.deepcopy(self)
        for module in merged.modules():
            if isinstance(module, ReparamLargeKernelConv):
                module.reparameterize()
        update_model_args(merged, small_kernel_merged=True)
        return merged

    def reparameterize(self) -> None:
        """Fold the final norm into the classifier, in place; ``core.reparameterize`` folds the blocks.

        Norm, average pooling and classifier are linear together. Without a classifier, or with another pooling, the
        norm becomes a scale and a shift of the map.

        Raises:
            RuntimeError: if the model is in training mode.
        """
        require_eval(self)
        # timm.models.save_for_hf stores this argument, with which timm then builds the inference form.
        update_model_args(self, inference_mode=True)
        if not is_batch_norm(self.norm):
            return
        if self._head_takes_norm():
            head = cast(nn.Linear, self.head)
            set_folded(head, *fold_affine(head.weight, head.bias, *norm_affine(self.norm)))
            self.norm = nn.Identity()
            self.norm_in_head = True
        else:
            self.norm = _affine_layer(self.norm)

    def _head_takes_norm(self) -> bool:
        """Return whether the final norm can be folded into the classifier: there is one, after average pooling."""
        return type(self.head) is nn.Linear and self.global_pool.pool_type == "avg"

    def entry(self, stage: int) -> nn.Module:
        """Return the stem, or the transition before a later stage."""
        return self.transitions[stage - 1] if stage else self.stem

    def blocks(self, stage: int) -> nn.Sequential:
        """Return the blocks of a stage, in order."""
        return cast(RepLKNetStage, self.stages[stage]).blocks

    def feature_norm(self, stage: int) -> nn.Module:
        """Return the norm of a stage's map."""
        return cast(RepLKNetStage, self.stages[stage]).norm

    def remove_feature_norm(self, stage: int) -> None:
        """Remove the norm of a stage's map, if there is one."""
        if hasattr(self.stages[stage], "norm"):
            del self.stages[stage].norm

    def keep_stages(self, count: int) -> None:
        """Remove all stages after the first ``count``."""
        self.stages = self.stages[:count]
        self.transitions = self.transitions[: count - 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of parameters, from input to output, for layer-wise learning-rate decay.

        This is the rule of the official code for any depths: the stem is a group, and so is each stage, except that
        in the third stage every two pairs of blocks are a group. A transition belongs to the blocks before it.
        """
        if coarse:
            return {"stem": r"^stem\.", "blocks": r"^(?:stages|transitions)\.(\d+)"}
        blocks: list[tuple[str, tuple[int]]] = []
        group = 0
        for stage, depth in enumerate(self.depths[: len(self.stages)]):
            size = 4 if stage == 2 else 2 * depth
            for pattern in patterns_of_runs(rf"stages\.{stage}\.blocks\.", 2 * depth, size):
                group += 1
                blocks.append((pattern, (group,)))
            blocks.append((rf"^transitions\.{stage}\.", (group,)))
        return {"stem": r"^stem\.", "blocks": blocks}


def _check_sizes(
    depths: Sequence[int],
    dims: Sequence[int],
    kernel_sizes: Sequence[int],
    small_kernel: int | None,
    dw_ratio: float,
    ffn_ratio: float,
) -> None:
    """Check that the sizes of a net fit together and leave every layer at least one channel."""
    given = list(kernel_sizes) if isinstance(kernel_sizes, Sequence) else []
    if len(given) != len(depths) or not all(isinstance(size, int) for size in given):
        raise InputError(
            f"kernel_sizes={kernel_sizes!r} for {len(depths)} stages; give one odd size for each, such as "
            "(31, 29, 27, 13)"
        )
    if min(kernel_sizes) < (small_kernel or 1):
        raise InputError(
            f"kernel_sizes={tuple(kernel_sizes)} has a kernel smaller than small_kernel={small_kernel}; choose larger "
            "ones, or small_kernel=0 for no small branch"
        )
    if min(dims) * min(dw_ratio, ffn_ratio, 1) < 1:
        raise InputError(f"dims={tuple(dims)}, dw_ratio={dw_ratio}, ffn_ratio={ffn_ratio} leave a layer no channels")


def _stem(in_chans: int, dim: int, inference_mode: bool) -> nn.Sequential:
    """Make the layers that turn the input into a map of a quarter of its height and width."""
    return nn.Sequential(
        ConvBN(in_chans, dim, 3, stride=2, relu=True, inference_mode=inference_mode),
        ConvBN(dim, dim, 3, depthwise=True, relu=True, inference_mode=inference_mode),
        ConvBN(dim, dim, relu=True, inference_mode=inference_mode),
        ConvBN(dim, dim, 3, stride=2, depthwise=True, relu=True, inference_mode=inference_mode),
    )


def _transition(dim_in: int, dim_out: int, inference_mode: bool) -> nn.Sequential:
    """Make the layers between two stages, which halve height and width."""
    return nn.Sequential(
        ConvBN(dim_in, dim_out, relu=True, inference_mode=inference_mode),
        ConvBN(dim_out, dim_out, 3, stride=2, depthwise=True, relu=True, inference_mode=inference_mode),
    )


# Published variants. The authors' files are on Google Drive, from which programs cannot download. ``pretrained=True``
# loads the same weights from OpenMMLab's server, where they have mmpretrain's names. Accuracies are those of the paper.
# The weights are under the MIT license. XL takes pixels normalized by mean 0.5 and standard deviation 0.5.

_MIRROR = "https://download.openmmlab.com/mmclassification/v0/replknet/replknet-"
_DRIVE = "https://drive.google.com/file/d/"


def _cfg(
    drive: str,
    mirror: str | None,
    *,
    top1: float | None = None,
    size: int = 224,
    num_classes: int = 1000,
    **kwargs: Any,
) -> dict[str, Any]:
    url = {"url": f"{_MIRROR}{mirror}.pth"} if mirror else {}
    return {
        **url,
        "license": "mit",
        "origin_url": f"{_DRIVE}{drive}",
        "paper_ids": "arXiv:2203.06717",
        "paper_name": "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
        **evaluation_cfg(size, top1=top1, num_classes=num_classes, first_conv="stem.0.conv"),
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {
        "replknet_13.in1k_e120": _cfg("15gohkZof_Qi4__jluUXacB_0Gvbuf5GI", None, top1=83.02),
        "replknet_31b.in1k": _cfg(
            "1azQUiCxK9feYVkkrPqwVPBtNsTzDrX7S",
            "31B_3rdparty_in1k_20221118-fd08e268",
            top1=83.5,
        ),
        "replknet_31b.in1k_384": _cfg(
            "1vo-P3XB6mRLUeDzmgv90dOu73uCeLfZN",
            "31B_3rdparty_in1k-384px_20221118-03a170ce",
            top1=84.8,
            size=384,
        ),
        "replknet_31b.in22k_ft_in1k": _cfg(
            "1DslZ2voXZQR1QoFY9KnbsHAeF84hzS0s",
            "31B_in21k-pre_3rdparty_in1k_20221118-54ed5c46",
            top1=85.2,
        ),
        "replknet_31b.in22k_ft_in1k_384": _cfg(
            "1Sc46BWdXXm2fVP-K_hKKU_W8vAB-0duX",
            "31B_in21k-pre_3rdparty_in1k-384px_20221118-76c92b24",
            top1=86.0,
            size=384,
        ),
        "replknet_31b.in22k": _cfg("1PYJiMszZYNrkZOeYwjccvxX8UHMALB7z", None, num_classes=21841),
        "replknet_31l.in22k_ft_in1k_384": _cfg(
            "1JYXoNHuRvC33QV1pmpzMTKEni1hpWfBl",
            "31L_in21k-pre_3rdparty_in1k-384px_20221118-dc3fc07c",
            top1=86.6,
            size=384,
        ),
        "replknet_31l.in22k": _cfg("16jcPsPwo5rko7ojWS9k_W-svHX-iFknY", None, num_classes=21841),
        "replknet_xl.meg73m_ft_in1k_320": _cfg(
            "1tPC60El34GntXByIRHb-z-Apm4Y5LX1T",
            "XL_meg73m-pre_3rdparty_in1k-320px_20221118-88259b1d",
            top1=87.8,
            size=320,
            mean=IMAGENET_INCEPTION_MEAN,
            std=IMAGENET_INCEPTION_STD,
        ),
        "test_replknet.untrained": {
            "input_size": (3, 64, 64),
            "first_conv": "stem.0.conv",
            "classifier": "head",
        },
    }
)


VARIANTS: dict[str, dict[str, Any]] = {
    "replknet_13": {"dims": (128, 256, 512, 1024), "kernel_sizes": (13, 13, 13, 13)},
    "replknet_31b": {"dims": (128, 256, 512, 1024)},
    "replknet_31l": {"dims": (192, 384, 768, 1536)},
    "replknet_xl": {
        "dims": (256, 512, 1024, 2048),
        "kernel_sizes": (27, 27, 27, 13),
        "small_kernel": 0,
        "dw_ratio": 1.5,
    },
    "test_replknet": {
        "dims": (8, 16, 24, 32),
        "depths": (1, 1, 2, 1),
        "kernel_sizes": (9, 7, 13, 5),
        "small_kernel": 3,
    },
}
"""Arguments of :class:`RepLKNet` for each variant, by its name."""


def _create_replknet(name: str, pretrained: bool, **kwargs: Any) -> RepLKNet:
    return build_variant(RepLKNet, name, VARIANTS[name] | kwargs, pretrained=pretrained)


@register_model
def replknet_13(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-13: 74.2 M parameters in training form and 73.8 M with merged kernels, 13.5 GMACs at 224.

    This is RepLKNet-31B with 13x13 kernels, from the comparison of kernel sizes (RepLKNet section 4.2). Its weights
    were published to compare receptive fields. They were trained for 120 epochs, after which RepLKNet-31B has an
    accuracy of 83.07 percent.
    """
    return _create_replknet("replknet_13", pretrained, **kwargs)


@register_model
def replknet_31b(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31B: 79.9 M parameters in training form and 79.5 M with merged kernels, 15.4 GMACs at 224."""
    return _create_replknet("replknet_31b", pretrained, **kwargs)


@register_model
def replknet_31l(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-31L: 173 M parameters in training form and 172 M with merged kernels, 96 GMACs at 384."""
    return _create_replknet("replknet_31l", pretrained, **kwargs)


@register_model
def replknet_xl(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """RepLKNet-XL: 335 M parameters, 129 GMACs at 320; without small kernels, and with wider large-kernel layers."""
    return _create_replknet("replknet_xl", pretrained, **kwargs)


@register_model
def test_replknet(pretrained: bool = False, **kwargs: Any) -> RepLKNet:
    """A tiny net for tests, without published weights."""
    return _create_replknet("test_replknet", pretrained, **kwargs)
