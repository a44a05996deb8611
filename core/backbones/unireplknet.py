"""UniRepLKNet, a large-kernel ConvNet for every modality.

Papers: 'UniRepLKNet: A Universal Perception Large-Kernel ConvNet' (CVPR 2024, arXiv 2311.15599) and 'Scaling Up Your
Kernels' (TPAMI 2025, arXiv 2410.08049). Official code: github.com/AILab-CVC/UniRepLKNet at b5677d8, Apache-2.0, weights
Apache-2.0. Tensor names are the official ones in both forms, so official files load without renaming.

Deviations, all deliberate: statistics of half-precision inputs are taken in float32; the map of the last stage, its
pooled vector and the logits are three methods instead of one output that depends on a flag; the features' norms
(``norm0`` to ``norm3``) live beside the classifier instead of replacing it; checkpointing is non-reentrant and leaves
the running statistics as they would be without it.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from timm.layers import LayerNorm2d, trunc_normal_
from timm.models._input import update_model_args
from torch import Tensor, nn

from core.backbones.kernel_sizes import KernelSizes, per_block
from core.backbones.staged import StagedNet
from core.backbones.stages import drop_path_rates
from core.errors import InputError
from core.layers import UniRepLKNetBlock
from core.layers.dilated_reparam import Branches, BranchType
from core.layers.extra_structure import ExtraStructure
from core.reparam import fold_affine, norm_affine, require_eval, set_folded

__all__ = ["UniRepLKNet"]


class UniRepLKNet(StagedNet):
    """Stem, stages of LarK and SmaK blocks with strided 3x3 convolutions between them, pooled classifier.

    ::

        image ─ stem /4 ─ stage 0 ─ /2 ─ stage 1 ─ /2 ─ stage 2 ─ /2 ─ stage 3 ─ mean ─ LayerNorm ─ Linear ─ logits
                             │              │              │              └── forward_features
                             └──────────────┴──────────────┴── forward_intermediates, features_only=True

    Args:
        in_chans: channels of the input map.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: timm's name of the pooling ('avg', 'max', 'avgmax', ...); '' keeps the map and needs num_classes 0.
        depths: number of blocks of each stage.
        dims: channels of each stage.
        kernel_sizes: for each stage one size, or one size a block; by default :func:`default_kernel_sizes`. 0 means no
            depthwise convolution.
        reparam: the parallel branches of every LarK block, see :func:`core.layers.dilated_branches`: 'dilated', or one
            of the paper's ablations: 'none', 'same_kernel', 'same_equivalent_kernel' (section 3.1).
        branches: kernel size to the (k, r) pairs of its branches, where they differ from that.
        extra: what follows the depthwise convolution in every block: 'se', or one of the paper's ablations: 'none',
            'bottleneck', 'two_1x1', 'two_dw3x3' (section 3.1).
        drop_path_rate: stochastic depth of the last block; rates rise linearly from 0.
        drop_rate: dropout before the classifier.
        layer_scale_init_value: start of the per-channel scale of each block; 0 leaves it out.
        head_init_scale: factor on the initial weights of the classifier.
        output_stride: pixels between two places of the last map: 4, 8, ...; where that is less than the stages give,
            the later strides become dilations, as DeepLab and other segmentation heads want it.
        feature_norms: add a LayerNorm for each stage's map (``norm0``, ...) for ``forward_intermediates(norm=True)``;
            timm's ``features_only`` gives the maps before them.
        inference_mode: build the folded form, for weights that :func:`core.reparameterize` made.
        device: where the parameters are put.
        dtype: what the parameters are cast to.

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
        head_init_scale: float = 1.0,
        output_stride: int | None = None,
        feature_norms: bool = False,
        inference_mode: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            in_chans=in_chans, num_classes=num_classes, depths=depths, dims=dims, drop_path_rate=drop_path_rate
        )
        if min(dims) < 4 or dims[0] % 2:
            raise InputError(f"dims={tuple(dims)}: the first must be even and all at least 4")
        sizes = per_block(kernel_sizes, depths)
        branches = {int(size): pairs for size, pairs in (branches or {}).items()}  # JSON has names for keys only
        unused = set(branches) - {k for stage in sizes for k in stage if k >= 7}
        if unused:
            raise InputError(f"branches are given for kernel sizes {sorted(unused)}; no LarK block of {sizes} has them")
        self.downsample_layers = nn.ModuleList([_stem(in_chans, dims[0])])
        self.downsample_layers += [_downsample(a, b) for a, b in pairwise(dims)]
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))
        self.stages = nn.ModuleList(
            nn.Sequential(
                *[
                    UniRepLKNetBlock(
                        dim,
                        kernel_size,
                        drop_path=next(rates),
                        layer_scale_init_value=layer_scale_init_value,
                        branches=branches.get(kernel_size, reparam),
                        extra=extra,
                        inference_mode=inference_mode,
                    )
                    for kernel_size in stage
                ]
            )
            for dim, stage in zip(dims, sizes, strict=True)
        )
        self._limit_stride(output_stride)
        self.feature_norms = feature_norms
        if feature_norms:
            for i, dim in enumerate(dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self._init_weights(head_init_scale)
        self.to(device=device, dtype=dtype)

    def _init_weights(self, head_init_scale: float) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if isinstance(self.head, nn.Linear):
            with torch.no_grad():
                self.head.weight.mul_(head_init_scale)

    def _init_classifier(self, head: nn.Linear) -> None:
        trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and norm a map of the last stage; with ``pre_logits`` stop before the classifier.

        Returns:
            (B, num_classes), or (B, dims[-1]) with ``pre_logits`` or without a classifier.

        Raises:
            InputError: if ``pre_logits`` is asked of a model whose final norm is folded into its classifier.
        """
        if not self.global_pool.pool_type:
            return x
        return self._logits(self.head_drop(self.norm(self.global_pool(x))), pre_logits)

    def reparameterize(self) -> None:
        """Fold the last norm's scale and shift into the classifier, in place; ``core.reparameterize`` does the blocks.

        The norm keeps its names, with a scale of 1 and a shift of 0, so that the form's names stay the official ones.

        Raises:
            RuntimeError: if the model is in training mode.
        """
        require_eval(self)
        update_model_args(self, inference_mode=True)  # what timm.models.save_for_hf writes, to build this form again
        if type(self.head) is nn.Linear and isinstance(self.norm, nn.LayerNorm):
            set_folded(self.head, *fold_affine(self.head.weight, self.head.bias, *norm_affine(self.norm)))
            self.norm.reset_parameters()
            self.norm_in_head = True

    def _entry(self, stage: int) -> nn.Module:
        return self.downsample_layers[stage]

    def _blocks(self, stage: int) -> nn.Sequential:
        return cast(nn.Sequential, self.stages[stage])

    def _feature_norm(self, stage: int) -> nn.Module:
        return self.get_submodule(f"norm{stage}")

    def _drop_feature_norm(self, stage: int) -> None:
        if hasattr(self, f"norm{stage}"):
            delattr(self, f"norm{stage}")

    def _keep_stages(self, count: int) -> None:
        self.stages, self.downsample_layers = self.stages[:count], self.downsample_layers[:count]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for timm, from input to output, for layer-wise learning-rate decay.

        The rule of the official code for S to XL, carried over to any depth: the stem, then one group a stage, except
        that the third stage counts every three blocks as a group. A strided layer belongs to the blocks that follow it.
        """
        if coarse:
            return {"stem": r"^downsample_layers\.0\.", "blocks": r"^(?:stages|downsample_layers)\.(\d+)"}
        blocks: list[tuple[str, tuple[int]]] = []
        group = 1
        for stage, depth in enumerate(self.depths[: len(self.stages)]):
            if stage > 0:
                blocks.append((rf"^downsample_layers\.{stage}\.", (group,)))
            width = 3 if stage == 2 else depth
            for first in range(0, depth, width):
                members = "|".join(str(i) for i in range(first, min(first + width, depth)))
                blocks.append((rf"^stages\.{stage}\.(?:{members})\.", (group,)))
                group += 1
        return {"stem": r"^downsample_layers\.0\.", "blocks": blocks}


def _stem(in_chans: int, dim: int) -> nn.Sequential:
    half = dim // 2
    return nn.Sequential(
        nn.Conv2d(in_chans, half, 3, stride=2, padding=1),
        LayerNorm2d(half, eps=1e-6),
        nn.GELU(),
        nn.Conv2d(half, dim, 3, stride=2, padding=1),
        LayerNorm2d(dim, eps=1e-6),
    )


def _downsample(dim_in: int, dim_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(dim_in, dim_out, 3, stride=2, padding=1), LayerNorm2d(dim_out, eps=1e-6))
