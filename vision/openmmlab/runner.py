"""Parts for MMEngine's ``Runner``: layer-wise decay of the learning rate, and TF32."""

import re
from collections import defaultdict
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import HOOKS, OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn

from core.backbones import LargeKernelNet
from core.errors import InputError

__all__ = ["AllowTF32", "LarKLayerDecay"]

_FEATURE_NORM = re.compile(r"norm\d+\.|stages\.\d+\.norm\.")


@HOOKS.register_module()
class AllowTF32(Hook):
    """Computes matrix products in TF32 where the GPU has it, as UniRepLKNet's training scripts do.

    The previous setting is restored when the run ends. Convolutions use TF32 in any case, which is torch's default.

    Args:
        enable: whether to use TF32; ``--cfg-options default_hooks.tf32.enable=False`` for full precision.
    """

    def __init__(self, enable: bool = True) -> None:
        self.enable = enable
        self.previous = False

    def before_run(self, runner: Any) -> None:
        """Apply the setting and remember the previous one."""
        self.previous = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.enable

    def after_run(self, runner: Any) -> None:
        """Restore the previous setting."""
        torch.backends.cuda.matmul.allow_tf32 = self.previous


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LarKLayerDecay(DefaultOptimWrapperConstructor):
    """Layer-wise decay: ``optim_wrapper=dict(constructor='LarKLayerDecay', paramwise_cfg=dict(decay_rate=0.8), ...)``.

    The rule is that of the official detection and segmentation code. The stem is layer 0, the first stage layer 1, the
    second stage layer 2, every three blocks of the third stage are one more layer, and the last stage is layer n. The
    strided layers before a stage belong to the stage. Feature norms, necks and heads are layer n + 1. Layer i has the
    learning rate ``lr * decay_rate ** (n + 1 - i)``, so heads have ``lr``. Biases and parameters with one dimension
    have no weight decay.

    Options in ``paramwise_cfg``:

    - ``decay_rate``: factor from layer to layer, in (0, 1].
    - ``num_layers``: n; by default it follows from the backbone's depths (12 for S to XL, 9 for T). The published
      detector with T uses 12, which leaves three layers empty and lowers all rates below them.
    - ``decay_type``: 'layer_wise', or 'stage_wise', where each stage is one layer and all strided layers are layer 0.
    - ``dw_scale``: a further factor for depthwise convolutions (parameters with 'dwconv' in their names).

    Raises:
        InputError: if an option is unknown or out of range, or the model has no backbone of LarKit.
    """

    _OPTIONS = ("decay_rate", "decay_type", "dw_scale", "num_layers")

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append one group for each combination of layer, weight decay and factor to ``params``."""
        given = dict(self.paramwise_cfg)
        decay_rate = given.get("decay_rate", 1.0)
        decay_type = given.get("decay_type", "layer_wise")
        dw_scale = given.get("dw_scale", 1.0)

        unknown = set(given) - set(self._OPTIONS)
        if unknown or not 0 < decay_rate <= 1 or decay_type not in ("layer_wise", "stage_wise"):
            raise InputError(
                f"paramwise_cfg={given}; expected {', '.join(self._OPTIONS)}, a rate in (0, 1] and "
                "decay_type 'layer_wise' or 'stage_wise'"
            )

        layers, head_layer = layer_numbers(
            module,
            by_stage=decay_type == "stage_wise",
            num_layers=given.get("num_layers"),
        )

        groups: dict[tuple[int, bool, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue

            layer = layers.get(name, head_layer)
            no_decay = parameter.ndim == 1 or name.endswith(".bias")
            factor = dw_scale if "dwconv" in name else 1.0
            groups[layer, no_decay, factor].append(parameter)

        for layer, no_decay, factor in sorted(groups):
            scale = factor * decay_rate ** (head_layer - layer)
            params.append(
                {
                    "params": groups[layer, no_decay, factor],
                    "lr": scale * self.base_lr,
                    "lr_scale": scale,
                    "weight_decay": 0.0 if no_decay else self.base_wd,
                }
            )


def layer_numbers(
    model: nn.Module, *, by_stage: bool = False, num_layers: int | None = None
) -> tuple[dict[str, int], int]:
    """Number the layers of a detector or segmentor.

    Args:
        model: a model whose ``backbone`` is one of LarKit's.
        by_stage: count each stage as one layer, and all strided layers as layer 0.
        num_layers: layer of the last stage; by default it follows from the depths.

    Returns:
        The layer of each parameter in the backbone's stem and stages, by its full name, and the layer of all others.

    Raises:
        InputError: if there is no such backbone, or it has more than ``num_layers`` layers.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, LargeKernelNet):
        raise InputError(f"LarKLayerDecay needs a backbone of LarKit, not {type(backbone).__name__}")

    numbers: dict[str, int] = group_parameters(backbone, backbone.group_matcher(), reverse=True)
    numbers = {name: layer for name, layer in numbers.items() if not _FEATURE_NORM.match(name)}
    if by_stage:
        numbers = {name: _stage_number(name) for name in numbers}
        last = len(backbone.stages)
    else:
        last = max(numbers.values())

    if num_layers is None:
        num_layers = last
    elif num_layers < last:
        raise InputError(
            f"num_layers={num_layers}; the last stage of the backbone is layer {last}: give at least that, or "
            "leave the option out"
        )

    layers = {}
    for name, layer in numbers.items():
        layers[f"backbone.{name}"] = num_layers if layer == last else layer
    return layers, num_layers + 1


def _stage_number(name: str) -> int:
    """Return 1 to 4 for a parameter of a stage, and 0 for one of the stem or the strided layers."""
    kind, number, *_ = name.split(".")
    return int(number) + 1 if kind == "stages" else 0
