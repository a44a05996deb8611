"""What every backbone of the project has in common: stages, a classifier after pooling, and timm's methods."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import register_notrace_function, register_notrace_module
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from core.backbones.stages import dilate
from core.errors import InputError
from core.layers.checkpointing import checkpoint_blocks
from core.layers.pointwise import PointwiseConv2d, PointwiseLinear
from core.ops import depthwise_conv2d, in_fast_format, response_norm

# they look at sizes and devices, which timm's graph extraction cannot follow
for function in (depthwise_conv2d, response_norm, in_fast_format):
    register_notrace_function(function)
register_notrace_module(PointwiseConv2d)
register_notrace_module(PointwiseLinear)

__all__ = ["StagedNet"]


class StagedNet(nn.Module, ABC):
    """Base of UniRepLKNet and RepLKNet: subclasses say what a stage, a feature norm and the final norm are.

    Attributes:
        stages: what ``feature_info`` names, one entry a stage.
        norm: the norm between the last map and the classifier.
        head: the classifier, or an identity.
        in_chans: channels of the input map.
        num_classes: outputs of the classifier; 0 without one.
        num_features: channels of the last map.
        feature_norms: whether each stage's map has a norm of its own for ``forward_intermediates(norm=True)``.
        depths: number of blocks of each stage.
        pruned: whether parts that the wanted maps do not need were taken away; files may have them.
        norm_in_head: whether the final norm is folded into the classifier, so that the vector between them is gone.

    Raises:
        InputError: if depths and dims do not fit together, or a number is out of range.
    """

    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    global_pool: SelectAdaptivePool2d

    def __init__(
        self, *, in_chans: int, num_classes: int, depths: Sequence[int], dims: Sequence[int], drop_path_rate: float
    ) -> None:
        super().__init__()
        if len(depths) != len(dims) or not depths or min(depths) < 1:
            raise InputError(
                f"depths={tuple(depths)}, dims={tuple(dims)}: give both for every stage, each depth 1 or more"
            )
        if not 0 <= drop_path_rate < 1 or num_classes < 0 or in_chans < 1:
            raise InputError(
                f"drop_path_rate={drop_path_rate}, num_classes={num_classes}, in_chans={in_chans}; "
                "expected a rate in [0, 1), 0 or more classes, 1 or more channels"
            )
        self.depths, self.in_chans = tuple(depths), in_chans
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, dims[-1], dims[-1]
        self.grad_checkpointing, self.feature_norms, self.norm_in_head, self.pruned = False, False, False, False
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**i, "module": f"stages.{i}"} for i, dim in enumerate(dims)
        ]

    @abstractmethod
    def _entry(self, stage: int) -> nn.Module:
        """The stem, or the strided layers before a later stage."""

    @abstractmethod
    def _blocks(self, stage: int) -> nn.Sequential:
        """The blocks of a stage, in order."""

    @abstractmethod
    def _feature_norm(self, stage: int) -> nn.Module:
        """The norm on a stage's map, of a model with feature norms."""

    @abstractmethod
    def _drop_feature_norm(self, stage: int) -> None:
        """Take away the norm on a stage's map."""

    @abstractmethod
    def _keep_stages(self, count: int) -> None:
        """Take away all stages after the first ``count``."""

    @abstractmethod
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and norm a map of the last stage; with ``pre_logits`` stop before the classifier.

        Returns:
            (B, num_classes), or (B, dims[-1]) with ``pre_logits`` or without a classifier.

        Raises:
            InputError: if ``pre_logits`` is asked of a model whose final norm is folded into its classifier.
        """

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups for timm, from input to output, for layer-wise learning-rate decay."""

    def _limit_stride(self, output_stride: int | None) -> None:
        """Let no map be coarser than ``output_stride``, in place: strides become dilations, as in timm's models.

        At the pixels that the strided net keeps, each convolution then reads what it reads there.

        Raises:
            InputError: if no stage ends with this stride.
        """
        if output_stride is None:
            return
        reductions = [info["reduction"] for info in self.feature_info]
        if output_stride not in reductions:
            raise InputError(f"output_stride={output_stride}; expected one of {', '.join(map(str, reductions))}")
        for stage, info in enumerate(self.feature_info):
            dilation = info["reduction"] // output_stride
            if dilation > 1:
                info["reduction"] = output_stride
                dilate(self._entry(stage), dilation // 2)
                dilate(self._blocks(stage), dilation)

    def _logits(self, x: Tensor, pre_logits: bool) -> Tensor:
        """(B, dims[-1]) after norm and pooling to logits, or as it is."""
        if pre_logits and self.norm_in_head:
            raise InputError(
                "the final norm of this folded model is part of its classifier, with no vector between them; fold a "
                "model with num_classes=0 for embeddings"
            )
        return x if pre_logits else self.head(x)

    def _init_classifier(self, head: nn.Linear) -> None:
        """Give a new classifier its weights; by default those of torch."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W), normalised, to logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's map before any final norm, (B, dims[-1], ceil(H / 32), ceil(W / 32)) with four stages."""
        for stage in range(len(self.stages)):
            x = self._forward_stage(x, stage)
        return x

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | Sequence[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Maps of chosen stages, with timm's arguments.

        Args:
            x: (B, in_chans, H, W).
            indices: the last n stages if an int, all if None, else the stages named; negative ones count from the end.
            norm: apply the feature norms to the maps.
            stop_early: do not compute stages after the last one asked for.
            output_fmt: 'NCHW', the only layout there is.
            intermediates_only: return the list alone.

        Returns:
            The last map computed, before any norm, and the list of maps, stage i being (B, dims[i], H / 4 / 2^i, ...).

        Raises:
            InputError: if ``norm`` is asked of a model without feature norms, or another layout.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}; {type(self).__name__} gives 'NCHW'")
        if norm and not self.feature_norms:
            raise InputError(
                "norm=True needs a model built with feature_norms=True; this one has no norms for its maps"
            )
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = []
        for stage in range(last + 1 if stop_early else len(self.stages)):
            x = self._forward_stage(x, stage)
            if stage in wanted:
                maps.append(self._feature_norm(stage)(x) if norm else x)
        return maps if intermediates_only else (x, maps)

    def _forward_stage(self, x: Tensor, stage: int) -> Tensor:
        # not in training: PyTorch's batch norms of channels_last maps are 4 to 16 times less exact
        if stage == 0 and not self.training:
            x = in_fast_format(x)
        x, blocks = self._entry(stage)(x), self._blocks(stage)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint_blocks(blocks, x)
        return blocks(x)

    def prune_intermediate_layers(
        self, indices: int | Sequence[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop what the named stages do not need, in place; timm's ``features_only`` calls this."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        if self.feature_norms:
            for stage in range(len(self.stages)):
                if prune_norm or stage not in wanted:
                    self._drop_feature_norm(stage)
        self._keep_stages(last + 1)
        self.pruned = True
        self.feature_norms &= not prune_norm
        if prune_head or shortened:
            self.norm = nn.Identity()
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
            self.reset_classifier(0, "")
        return wanted

    def get_classifier(self) -> nn.Module:
        """The last linear layer, or an identity."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one (0 classes: none), and the pooling if one is named.

        Raises:
            InputError: if classes are asked for without a pooling, or none of a model whose classifier holds the norm.
        """
        if self.norm_in_head and num_classes == 0 and not self.pruned:
            raise InputError(
                "the last norm's scale and shift are folded into this classifier; remove it before core.reparameterize"
            )
        pool = self.global_pool.pool_type if global_pool is None else global_pool
        if num_classes > 0 and not pool:
            raise InputError(f"num_classes={num_classes} needs a pooling; pass global_pool='avg' or num_classes=0")
        self.global_pool = SelectAdaptivePool2d(pool_type=pool, flatten=bool(pool))
        if self.global_pool.feat_mult() != 1:
            raise InputError(f"global_pool={pool!r} changes the number of features; use 'avg', 'max' or 'avgmax'")
        like = next(self.parameters())
        self.num_classes, self.norm_in_head = num_classes, False
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self._init_classifier(self.head)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names exempt from weight decay besides those with one dimension: none, as in the papers' recipes."""
        return set()
