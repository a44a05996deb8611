"""What UniRepLKNet and RepLKNet share: timm's methods around stages, a final norm and a classifier."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from timm.layers import SelectAdaptivePool2d
from timm.models import build_model_with_cfg, register_notrace_function, resolve_pretrained_cfg
from timm.models._features import feature_take_indices
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from core.errors import InputError
from core.io.downloads import download_pretrained
from core.io.weights import checkpoint_filter_fn
from core.ops import depthwise_conv2d, is_exporting, runs_on_onednn

__all__ = ["LargeKernelNet", "add_shortcut", "build_variant", "evaluation_cfg", "has_hooks", "may_overwrite"]

Net = TypeVar("Net", bound="LargeKernelNet")


class LargeKernelNet(nn.Module, ABC):
    """Stages of large-kernel blocks, a final norm and a classifier, with the methods that timm expects of a ConvNet.

    A family says what the layers before a stage, its blocks and the norms are, and builds them in its constructor.

    Attributes:
        stages: what ``feature_info`` names, one entry a stage.
        norm: the norm between the last map and the classifier.
        head: the classifier, or an identity.
        in_chans: channels of the input map.
        num_classes: outputs of the classifier; 0 without one.
        num_features: channels of the last map.
        feature_norms: whether each stage's map has a norm of its own for ``forward_intermediates(norm=True)``.
        depths: number of blocks of each stage.
        pruned: whether parts that the wanted maps do not need were removed; files may have them.
        norm_in_head: whether the final norm is folded into the classifier, so that the vector between them is gone.

    Raises:
        InputError: if depths and dims do not fit together, or a number is out of range.
    """

    stages: nn.ModuleList
    norm: nn.Module
    head: nn.Module
    global_pool: SelectAdaptivePool2d

    def __init__(
        self,
        *,
        in_chans: int,
        num_classes: int,
        depths: Sequence[int],
        dims: Sequence[int],
        drop_path_rate: float,
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
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = dims[-1]
        self.head_hidden_size = dims[-1]
        self.depths = tuple(depths)
        self.feature_norms = False
        self.norm_in_head = False
        self.pruned = False
        self.grad_checkpointing = False
        self.feature_info = [
            {"num_chs": dim, "reduction": 4 * 2**stage, "module": f"stages.{stage}"} for stage, dim in enumerate(dims)
        ]

    # What a family says about its stages

    @abstractmethod
    def entry(self, stage: int) -> nn.Module:
        """The stem, or the strided layers before a later stage."""

    @abstractmethod
    def blocks(self, stage: int) -> nn.Sequential:
        """The blocks of a stage, in order."""

    @abstractmethod
    def feature_norm(self, stage: int) -> nn.Module:
        """The norm on a stage's map, of a model with feature norms."""

    @abstractmethod
    def remove_feature_norm(self, stage: int) -> None:
        """Remove the norm on a stage's map, if there is one."""

    @abstractmethod
    def keep_stages(self, count: int) -> None:
        """Remove all stages after the first ``count``."""

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

    def init_classifier(self, head: nn.Linear) -> None:
        """Initialize a new classifier; by default its weights are those of torch."""

    # Forward

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W), normalized, to logits (B, num_classes)."""
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
            norm: apply the feature norms, where the model has them, to the maps.
            stop_early: do not compute stages after the last one asked for.
            output_fmt: 'NCHW', the only layout there is.
            intermediates_only: return the list alone.

        Returns:
            The last map computed, before any norm, and the list of maps, stage i being (B, dims[i], H / 4 / 2^i, ...).

        Raises:
            InputError: if another layout is asked for.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt is {output_fmt!r}; {type(self).__name__} gives 'NCHW'")
        wanted, last = feature_take_indices(len(self.stages), indices)
        maps = []
        for stage in range(last + 1 if stop_early else len(self.stages)):
            x = self._forward_stage(x, stage)
            if stage in wanted:
                maps.append(self.feature_norm(stage)(x) if norm and self.feature_norms else x)
        return maps if intermediates_only else (x, maps)

    def _forward_stage(self, x: Tensor, stage: int) -> Tensor:
        # Not in training, where PyTorch's batch norms of channels_last maps are 4 to 16 times less exact.
        if stage == 0 and not self.training:
            x = to_fastest_format(x)
        x = self.entry(stage)(x)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return _checkpoint_blocks(self.blocks(stage), x)
        return self.blocks(stage)(x)

    def classify(self, x: Tensor, pre_logits: bool) -> Tensor:
        """(B, dims[-1]) after norm and pooling to logits, or with ``pre_logits`` as it is."""
        if pre_logits and self.norm_in_head:
            raise InputError(
                "the final norm of this folded model is part of its classifier, with no vector between them; fold a "
                "model with num_classes=0 for embeddings"
            )
        return x if pre_logits else self.head(x)

    # Changes of a built model, with timm's names

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
        self.num_classes = num_classes
        self.norm_in_head = False
        self.head = nn.Identity()
        if num_classes > 0:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
            self.init_classifier(self.head)

    def prune_intermediate_layers(
        self,
        indices: int | Sequence[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove what the named stages do not need, in place; timm's ``features_only`` calls this."""
        wanted, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        if self.feature_norms:
            for stage in range(len(self.stages)):
                if prune_norm or stage not in wanted:
                    self.remove_feature_norm(stage)
        self.keep_stages(last + 1)
        self.pruned = True
        self.feature_norms = self.feature_norms and not prune_norm
        if prune_head or shortened:
            self.norm = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block in the backward pass instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Names exempt from weight decay besides those with one dimension: none, as in the papers' recipes."""
        return set()

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
                _dilate(self.entry(stage), dilation // 2)
                _dilate(self.blocks(stage), dilation)


@register_notrace_function
def to_fastest_format(x: Tensor) -> Tensor:
    """A map in channels_last where oneDNN computes, which is fastest for all layers; they keep that format."""
    if not runs_on_onednn(x) or is_exporting():
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # torch.func.vmap takes no memory_format


register_notrace_function(depthwise_conv2d)  # looks at sizes, which timm's extraction of graphs cannot follow


def _dilate(layers: nn.Module, factor: int) -> None:
    """Remove the strides of convolutions and spread their taps, in place."""
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
            conv.stride = (1, 1)
            conv.dilation = tuple(factor * r for r in conv.dilation)
            conv.padding = tuple(r * (k - 1) // 2 for k, r in zip(conv.kernel_size, conv.dilation, strict=True))


# What blocks ask before they depart from one module after the other


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody looks at what goes into a module and comes out of it."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def may_overwrite(block: nn.Module, x: Tensor) -> bool:
    """Whether a block may write over the maps that it makes of ``x``: no gradients, and nobody looks at them.

    That is faster on a CPU, which would have to request memory for each new map. Compilers do it themselves.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exporting() or isinstance(x, torch.fx.Proxy):
        return False
    return not any(has_hooks(module) for module in block.modules())


def add_shortcut(y: Tensor, x: Tensor, *, in_place: bool) -> Tensor:
    """Return ``x + y``, written over ``y`` where that is allowed and both have one dtype.

    Args:
        y: output of the branch (B, C, H, W).
        x: input of the block (B, C, H, W).
        in_place: the result of :func:`may_overwrite`.
    """
    if in_place and y.dtype == x.dtype:
        return y.add_(x)
    return x + y


# Activation checkpointing


def _checkpoint_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run blocks one after the other, each recomputed in the backward pass.

    timm's ``checkpoint_seq`` would update the running statistics of batch norms a second time in the recomputation.
    """
    for block in blocks:
        if torch.compiler.is_compiling():  # the compiler plans its own recomputation and takes no context managers
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(block, x, use_reentrant=False, context_fn=_recomputation(block))
    return x


Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def _recomputation(block: nn.Module) -> Callable[[], Contexts]:
    """What surrounds the first computation of a block, and what its second one."""
    return lambda: (nullcontext(), _preserved_statistics(block))


@contextmanager
def _preserved_statistics(block: nn.Module) -> Iterator[None]:
    """Lend copies of the running statistics to the batch norms of a block."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    statistics = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            norm._buffers.update(buffers)


# Registered variants


def build_variant(net: type[Net], name: str, args: dict[str, Any], *, pretrained: bool) -> Net:
    """A registered variant by timm's builder, with published weights on request, compared with their hash.

    Args:
        net: class of the family.
        name: the name under which timm knows the variant.
        args: of the class, ``dims`` among them, and of the builder.
        pretrained: load the weights of the variant's pretrained configuration.
    """
    if pretrained:
        overlay = args.get("pretrained_cfg_overlay")
        download_pretrained(resolve_pretrained_cfg(name, args.get("pretrained_cfg"), overlay))
    model: Net = build_model_with_cfg(
        net,
        name,
        pretrained,
        feature_cfg={"out_indices": tuple(range(len(args["dims"]))), "feature_cls": "getter"},
        pretrained_filter_fn=checkpoint_filter_fn,
        **args,
    )
    return model


def evaluation_cfg(size: int, *, top1: float | None, num_classes: int, first_conv: str) -> dict[str, Any]:
    """Entries of timm's pretrained configuration by the rule of both official scripts.

    Below 384 pixels the shorter side is resized to size / 0.875 and the center cut out; from 384 on the whole image is
    squashed.

    Args:
        size: side of the input, in pixels.
        top1: accuracy on ImageNet-1K in percent, the paper's; None for weights of a pretraining.
        num_classes: outputs of the classifier in the file.
        first_conv: name of the layer that adapts to other input channels.
    """
    accuracy = f"ImageNet-1K top-1 {top1} (paper)" if top1 else "pretraining, no accuracy published"
    return {
        "notes": (accuracy,),
        "input_size": (3, size, size),
        "crop_pct": 1.0 if size >= 384 else 0.875,
        "crop_mode": "squash" if size >= 384 else "center",
        "interpolation": "bicubic",
        "num_classes": num_classes,
        "first_conv": first_conv,
        "classifier": "head",
    }
