"""The base class of UniRepLKNet and RepLKNet, with the methods that timm expects of a ConvNet."""

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

__all__ = [
    "LargeKernelNet",
    "add_shortcut",
    "build_variant",
    "evaluation_cfg",
    "has_hooks",
    "may_overwrite",
    "patterns_of_runs",
]

Net = TypeVar("Net", bound="LargeKernelNet")


class LargeKernelNet(nn.Module, ABC):
    """A net of stages of large-kernel blocks, a final norm and a classifier.

    The constructor of a family builds the layers. Its methods then tell this class which layers come before a stage,
    which are the blocks of a stage, and where the norms are.

    Attributes:
        stages: the stages, under the names in ``feature_info``.
        norm: the norm between the last map and the classifier.
        head_drop: the dropout before the classifier.
        head: the classifier, or an identity.
        in_chans: number of channels of the input map.
        num_classes: number of outputs of the classifier; 0 if there is none.
        num_features: number of channels of the last map.
        feature_norms: whether each stage's map has a norm of its own for ``forward_intermediates(norm=True)``.
        depths: number of blocks of each stage; for RepLKNet, number of pairs of blocks.
        pruned: whether :meth:`prune_intermediate_layers` removed layers; files of weights may still have them.
        norm_in_head: whether the final norm is folded into the classifier. The vector between the two is then gone.

    Raises:
        InputError: if depths and dims do not fit together, or a number is out of range.
    """

    stages: nn.ModuleList
    norm: nn.Module
    head_drop: nn.Module
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
                f"depths={tuple(depths)}, dims={tuple(dims)}: give both for every stage, and depths of 1 or more"
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

        self.feature_info: list[dict[str, Any]] = []
        for stage, dim in enumerate(dims):
            self.feature_info.append({"num_chs": dim, "reduction": 4 * 2**stage, "module": f"stages.{stage}"})

    # The layers of a family

    @abstractmethod
    def entry(self, stage: int) -> nn.Module:
        """Return the layers before a stage: the stem, or those that halve the map before a later stage."""

    @abstractmethod
    def blocks(self, stage: int) -> nn.Sequential:
        """Return the blocks of a stage, in order."""

    @abstractmethod
    def feature_norm(self, stage: int) -> nn.Module:
        """Return the norm of a stage's map; only models with ``feature_norms`` have one."""

    @abstractmethod
    def remove_feature_norm(self, stage: int) -> None:
        """Remove the norm of a stage's map, if there is one."""

    @abstractmethod
    def keep_stages(self, count: int) -> None:
        """Remove all stages after the first ``count``."""

    @abstractmethod
    def pool_and_norm(self, x: Tensor) -> Tensor:
        """Turn the last map (B, dims[-1], H, W) into the vector (B, dims[-1]) that the classifier takes."""

    @abstractmethod
    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's groups of parameters, from input to output, for layer-wise learning-rate decay."""

    def init_classifier(self, head: nn.Linear) -> None:
        """Initialize a new classifier; without a rule of the family, PyTorch's initial weights stay."""

    # Forward

    def forward(self, x: Tensor) -> Tensor:
        """Compute logits (B, num_classes) from normalized maps (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Compute the last map, before any norm of it.

        Args:
            x: (B, in_chans, H, W), normalized.

        Returns:
            (B, dims[-1], ceil(H / 32), ceil(W / 32)) if there are four stages.
        """
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
        """Compute the maps of chosen stages, with timm's arguments.

        Args:
            x: (B, in_chans, H, W), normalized.
            indices: numbers of the stages, of which negative ones count from the end; an int n for the last n stages,
                None for all.
            norm: apply the feature norms to the maps, if the model has them.
            stop_early: skip the stages after the last chosen one.
            output_fmt: 'NCHW', the only layout.
            intermediates_only: return the list alone.

        Returns:
            The last map that was computed, before any norm, and the list of the chosen maps. The map of stage i is
            (B, dims[i], ceil(H / (4 * 2^i)), ceil(W / (4 * 2^i))).

        Raises:
            InputError: if ``output_fmt`` is another layout.
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

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool, norm and classify the last map; with ``pre_logits``, stop before the classifier.

        Args:
            x: the last map, (B, dims[-1], H, W).
            pre_logits: return the vector that the classifier takes.

        Returns:
            Logits (B, num_classes); the vector (B, dims[-1]) with ``pre_logits`` or without a classifier; the map
            itself if ``global_pool`` is ''.

        Raises:
            InputError: if ``pre_logits`` is asked of a model whose final norm is folded into its classifier.
        """
        if not self.global_pool.pool_type:
            return x
        x = self.head_drop(self.pool_and_norm(x))
        if not pre_logits:
            return self.head(x)
        if self.norm_in_head:
            raise InputError(
                "the final norm of this folded model is part of its classifier, with no vector between them; fold a "
                "model with num_classes=0 for embeddings"
            )
        return x

    def _forward_stage(self, x: Tensor, stage: int) -> Tensor:
        # Training keeps the format: PyTorch's batch norms are 4 to 16 times less exact on channels_last maps.
        if stage == 0 and not self.training:
            x = to_fastest_format(x)
        x = self.entry(stage)(x)
        if self.grad_checkpointing and torch.is_grad_enabled():
            return _checkpoint_blocks(self.blocks(stage), x)
        return self.blocks(stage)(x)

    # Changes to a built model, by timm's names

    def get_classifier(self) -> nn.Module:
        """Return the classifier, a linear layer, or an identity if there is none."""
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a new one.

        Args:
            num_classes: number of its outputs; 0 for no classifier.
            global_pool: timm's name of a new pooling, '' for none; by default the pooling stays.

        Raises:
            InputError: if there are classes but no pooling, if the pooling changes the number of features, or if the
                classifier is to be removed while the final norm is folded into it.
        """
        if self.norm_in_head and num_classes == 0 and not self.pruned:
            raise InputError(
                "the final norm is folded into this classifier; remove it before core.reparameterize, by "
                "reset_classifier(0)"
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
        """Remove the layers that the maps of the chosen stages do not need, in place, as timm's ``features_only`` asks.

        Args:
            indices: the chosen stages, as in :meth:`forward_intermediates`.
            prune_norm: remove the feature norms of the chosen stages as well.
            prune_head: remove the final norm and the classifier; they are always removed with the last stage.

        Returns:
            The numbers of the chosen stages.
        """
        wanted, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1

        if self.feature_norms:
            for stage in range(len(self.stages)):
                if prune_norm or stage not in wanted:
                    self.remove_feature_norm(stage)
        self.feature_norms = self.feature_norms and not prune_norm
        self.keep_stages(last + 1)
        self.pruned = True

        if prune_head or shortened:
            self.norm = nn.Identity()
            self.num_features = self.feature_info[last]["num_chs"]
            self.head_hidden_size = self.num_features
            self.reset_classifier(0, "")
        return wanted

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Set whether each block is computed again in the backward pass, instead of keeping its activations."""
        self.grad_checkpointing = enable

    def no_weight_decay(self) -> set[str]:
        """Return no names: as in the papers, only parameters of one dimension are exempt from weight decay."""
        return set()

    def _limit_stride(self, output_stride: int | None) -> None:
        """Replace strides by dilations, in place, so that no map is coarser than ``output_stride``.

        A pixel that the strided net also has gets the same value: its convolutions read the same pixels.

        Raises:
            InputError: if ``output_stride`` is not the stride of a stage's map.
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
    """Return a map in channels_last where oneDNN computes: all layers are fastest in this format, and keep it."""
    if not runs_on_onednn(x) or is_exporting():
        return x
    return x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # torch.func.vmap takes no memory_format


register_notrace_function(depthwise_conv2d)  # depends on sizes, which timm's feature extraction cannot trace


def _dilate(layers: nn.Module, factor: int) -> None:
    """Remove the strides of convolutions and multiply their dilations, in place; pointwise ones stay as they are."""
    for conv in layers.modules():
        if isinstance(conv, nn.Conv2d) and conv.kernel_size != (1, 1):
            conv.stride = (1, 1)
            conv.dilation = tuple(factor * r for r in conv.dilation)
            conv.padding = tuple(r * (k - 1) // 2 for k, r in zip(conv.kernel_size, conv.dilation, strict=True))


# In-place computation in blocks


def has_hooks(module: nn.Module) -> bool:
    """Return whether a module has forward or backward hooks, which see its input and output."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )


def may_overwrite(block: nn.Module, x: Tensor) -> bool:
    """Return whether a block may overwrite the maps that it makes of ``x``: without gradients, and without hooks.

    This saves the allocation of new maps, which takes time on CPUs. Compilers reuse memory by themselves.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or is_exporting() or isinstance(x, torch.fx.Proxy):
        return False
    return not any(has_hooks(module) for module in block.modules())


def add_shortcut(y: Tensor, x: Tensor, *, in_place: bool) -> Tensor:
    """Return ``x + y``.

    Args:
        y: output of the branch (B, C, H, W).
        x: input of the block (B, C, H, W).
        in_place: ``y`` may be overwritten, see :func:`may_overwrite`; it is if both have the same dtype.
    """
    if in_place and y.dtype == x.dtype:
        return y.add_(x)
    return x + y


# Activation checkpointing


def _checkpoint_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """Run blocks one after the other, and let the backward pass compute each of them again.

    With timm's ``checkpoint_seq``, batch norms would update their running statistics a second time in the backward
    pass.
    """
    for block in blocks:
        if torch.compiler.is_compiling():  # the compiler recomputes in its own way and takes no context managers
            x = checkpoint(block, x, use_reentrant=False)
        else:
            x = checkpoint(block, x, use_reentrant=False, context_fn=_checkpoint_contexts(block))
    return x


Contexts = tuple[AbstractContextManager[None], AbstractContextManager[None]]


def _checkpoint_contexts(block: nn.Module) -> Callable[[], Contexts]:
    """Return a function that makes the contexts of a block's first and second computation."""
    return lambda: (nullcontext(), _keep_statistics(block))


@contextmanager
def _keep_statistics(block: nn.Module) -> Iterator[None]:
    """Let the batch norms of a block update copies of their running statistics, which are then thrown away."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.training]
    statistics = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, statistics, strict=True):
        norm._buffers.update({name: buffer.clone() for name, buffer in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, statistics, strict=True):
            norm._buffers.update(buffers)


# Parameter groups


def patterns_of_runs(prefix: str, count: int, size: int) -> list[str]:
    r"""Return regular expressions for the parameters of a stage, one for each run of consecutive blocks.

    Args:
        prefix: regular expression for the part of a name before the number of the block.
        count: number of blocks of the stage.
        size: number of blocks in a run; the last run may be shorter.

    Example:
        >>> patterns_of_runs(r"stages\.2\.", 4, 3)
        ['^stages\\.2\\.(?:0|1|2)\\.', '^stages\\.2\\.(?:3)\\.']
    """
    patterns = []
    for first in range(0, count, size):
        numbers = "|".join(str(i) for i in range(first, min(first + size, count)))
        patterns.append(rf"^{prefix}(?:{numbers})\.")
    return patterns


# Registered variants


def build_variant(net: type[Net], name: str, args: dict[str, Any], *, pretrained: bool) -> Net:
    """Build a registered variant with timm's builder; published weights are checked against their hash.

    Args:
        net: class of the family.
        name: name of the variant in timm's registry.
        args: arguments of the class, which include ``dims``, and of timm's builder.
        pretrained: load the weights that the variant's pretrained configuration names.
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
    """Return the entries of timm's pretrained configuration that follow the official evaluation scripts.

    Below 384 pixels, the shorter side is resized to size / 0.875 and the center is cropped. From 384 pixels on, the
    whole image is squashed.

    Args:
        size: side of the input, in pixels.
        top1: the paper's accuracy on ImageNet-1K, in percent; None for weights of a pretraining.
        num_classes: number of outputs of the classifier in the file.
        first_conv: name of the layer that timm adapts to another number of input channels.
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
