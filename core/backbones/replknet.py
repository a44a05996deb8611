"""RepLKNet, the ConvNet with kernels of up to 31x31.

Paper: 'Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs' (CVPR 2022, arXiv 2203.06717).
Official code: github.com/DingXiaoH/RepLKNet-pytorch at b76808a, MIT. Tensor names are the official ones in training
form and with the small kernels merged, so official files load without renaming.

Deviations, all deliberate: SyncBN and activation checkpointing are the trainer's choice, not the factory's default; the
norms of the stages' maps (``stages.0.norm``, ...) live beside the classifier instead of replacing it; there is a third
form without any batch norm.
"""

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Self, cast

import torch
from timm.models._input import update_model_args
from torch import Tensor, nn

from core.backbones.kernel_sizes import check_each_stage
from core.backbones.staged import StagedNet
from core.backbones.stages import drop_path_rates
from core.errors import InputError
from core.layers import ConvFFN, ReparamLargeKernelConv, RepLKBlock
from core.layers.replknet_block import ConvBN
from core.layers.replknet_stage import RepLKNetStage, affine_layer, map_norm
from core.reparam import fold_affine, is_batch_norm, norm_affine, require_eval, set_folded

__all__ = ["RepLKNet"]


class RepLKNet(StagedNet):
    """Stem, stages of large-kernel blocks and 1x1 networks, strided transitions, pooled classifier.

    ::

        image ─ stem /4 ─ stage 0 ─ /2 ─ stage 1 ─ /2 ─ stage 2 ─ /2 ─ stage 3 ─ BN ─ mean ─ Linear ─ logits
                             │              │              │              └── forward_features
                             └──────────────┴──────────────┴── forward_intermediates, features_only=True

    Args:
        in_chans: channels of the input map.
        num_classes: outputs of the classifier; 0 leaves it out.
        global_pool: timm's name of the pooling ('avg', 'max', 'avgmax', ...); '' keeps the map and needs num_classes 0.
        depths: pairs of blocks of each stage.
        dims: channels of each stage.
        kernel_sizes: odd size of the large kernels of each stage.
        small_kernel: size of the branch beside each large kernel, at most as large as the smallest; 0 for none (and
            None, which ``timm.create_model`` does not pass on).
        dw_ratio: channels of the large kernels over those of the stage.
        ffn_ratio: hidden channels of the 1x1 networks over those of the stage.
        drop_path_rate: stochastic depth of the last pair; rates rise linearly from 0, the two of a pair share theirs.
        drop_rate: dropout before the classifier.
        output_stride: pixels between two places of the last map: 4, 8, ...; where that is less than the stages give,
            the later strides become dilations, as DeepLab and other segmentation heads want it.
        feature_norms: add a BatchNorm for each stage's map (``stages.0.norm``, ...) for
            ``forward_intermediates(norm=True)``; timm's ``features_only`` gives the maps before them.
        small_kernel_merged: build the official merged form, for weights of :meth:`merge_small_kernels`.
        inference_mode: build the form without batch norms, for weights of :func:`core.reparameterize`.
        device: where the parameters are put.
        dtype: what the parameters are cast to.

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
            in_chans=in_chans, num_classes=num_classes, depths=depths, dims=dims, drop_path_rate=drop_path_rate
        )
        small_kernel = small_kernel or None
        check_each_stage(kernel_sizes, small_kernel, depths)
        if min(dims) * min(dw_ratio, ffn_ratio, 1) < 1:
            raise InputError(
                f"dims={tuple(dims)}, dw_ratio={dw_ratio}, ffn_ratio={ffn_ratio} leave a layer no channels"
            )
        self.stem = nn.Sequential(*_stem(in_chans, dims[0], inference_mode))
        rates = iter(drop_path_rates(drop_path_rate, sum(depths)))

        def stage(dim: int, depth: int, kernel_size: int) -> RepLKNetStage:
            blocks: list[nn.Module] = []
            for rate in (next(rates) for _ in range(depth)):
                options: dict[str, Any] = {"drop_path": rate, "inference_mode": inference_mode}
                kernels: dict[str, Any] = {"small_kernel": small_kernel, "small_kernel_merged": small_kernel_merged}
                blocks.append(RepLKBlock(dim, int(dim * dw_ratio), kernel_size, **kernels, **options))
                blocks.append(ConvFFN(dim, int(dim * ffn_ratio), **options))
            return RepLKNetStage(blocks, map_norm(dim, inference_mode) if feature_norms else None)

        self.stages = nn.ModuleList(stage(*sizes) for sizes in zip(dims, depths, kernel_sizes, strict=True))
        self.transitions = nn.ModuleList(_transition(a, b, inference_mode) for a, b in pairwise(dims))
        self._limit_stride(output_stride)
        self.feature_norms = feature_norms
        self.head_drop = nn.Dropout(drop_rate)
        self.reset_classifier(num_classes, global_pool)
        self.norm_in_head = inference_mode and self._head_takes_norm()
        self.norm = nn.Identity() if self.norm_in_head else map_norm(dims[-1], inference_mode)
        self.to(device=device, dtype=dtype)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Norm and pool a map of the last stage; with ``pre_logits`` stop before the classifier.

        Returns:
            (B, num_classes), or (B, dims[-1]) with ``pre_logits`` or without a classifier.

        Raises:
            InputError: if ``pre_logits`` is asked of a model whose final norm is folded into its classifier.
        """
        if not self.global_pool.pool_type:
            return x
        return self._logits(self.head_drop(self.global_pool(self.norm(x))), pre_logits)

    def merge_small_kernels(self) -> Self:
        """A new model in the official merged form: small kernels in the large ones, norms as they were.

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
        """Fold the last norm through the mean into the classifier, in place; ``core.reparameterize`` does the blocks.

        Without a classifier, or with another pooling, the norm becomes a scale and a shift of the map.

        Raises:
            RuntimeError: if the model is in training mode.
        """
        require_eval(self)
        update_model_args(self, inference_mode=True)  # what timm.models.save_for_hf writes, to build this form again
        if not is_batch_norm(self.norm):
            return
        if self._head_takes_norm():
            head = cast(nn.Linear, self.head)
            set_folded(head, *fold_affine(head.weight, head.bias, *norm_affine(self.norm)))
            self.norm, self.norm_in_head = nn.Identity(), True
        else:
            self.norm = affine_layer(self.norm)

    def _head_takes_norm(self) -> bool:
        """Whether norm, pooling and classifier are linear together, as they are with the mean."""
        return type(self.head) is nn.Linear and self.global_pool.pool_type == "avg"

    def _entry(self, stage: int) -> nn.Module:
        return self.transitions[stage - 1] if stage else self.stem

    def _blocks(self, stage: int) -> nn.Sequential:
        return cast(RepLKNetStage, self.stages[stage]).blocks

    def _feature_norm(self, stage: int) -> nn.Module:
        return cast(RepLKNetStage, self.stages[stage]).norm

    def _drop_feature_norm(self, stage: int) -> None:
        if hasattr(self.stages[stage], "norm"):
            del self.stages[stage].norm

    def _keep_stages(self, count: int) -> None:
        self.stages, self.transitions = self.stages[:count], self.transitions[: count - 1]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for timm, from input to output, for layer-wise learning-rate decay.

        The rule of the official code, carried over to any depth: the stem, then one group a stage, except that the
        third stage counts every two pairs of blocks as a group. A transition belongs to the blocks before it.
        """
        if coarse:
            return {"stem": r"^stem\.", "blocks": r"^(?:stages|transitions)\.(\d+)"}
        blocks: list[tuple[str, tuple[int]]] = []
        group = 0
        for stage, depth in enumerate(self.depths[: len(self.stages)]):
            width = 4 if stage == 2 else 2 * depth
            for first in range(0, 2 * depth, width):
                members = "|".join(str(i) for i in range(first, min(first + width, 2 * depth)))
                group += 1
                blocks.append((rf"^stages\.{stage}\.blocks\.(?:{members})\.", (group,)))
            blocks.append((rf"^transitions\.{stage}\.", (group,)))
        return {"stem": r"^stem\.", "blocks": blocks}


def _stem(in_chans: int, dim: int, inference_mode: bool) -> list[nn.Module]:
    options: dict[str, Any] = {"relu": True, "inference_mode": inference_mode}
    return [
        ConvBN(in_chans, dim, 3, stride=2, **options),
        ConvBN(dim, dim, 3, depthwise=True, **options),
        ConvBN(dim, dim, **options),
        ConvBN(dim, dim, 3, stride=2, depthwise=True, **options),
    ]


def _transition(dim_in: int, dim_out: int, inference_mode: bool) -> nn.Sequential:
    options: dict[str, Any] = {"relu": True, "inference_mode": inference_mode}
    return nn.Sequential(
        ConvBN(dim_in, dim_out, **options), ConvBN(dim_out, dim_out, 3, stride=2, depthwise=True, **options)
    )
