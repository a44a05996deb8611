"""Layer-wise decay of the learning rate for ``Runner``: one group rule for every depth of both families."""

from collections import defaultdict
from typing import Any

from mmengine.optim import DefaultOptimWrapperConstructor
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS
from timm.models import group_parameters
from torch import nn

from core.backbones.staged import StagedNet
from core.errors import InputError

__all__ = ["LarKLayerDecay"]


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LarKLayerDecay(DefaultOptimWrapperConstructor):
    """``optim_wrapper=dict(constructor='LarKLayerDecay', paramwise_cfg=dict(decay_rate=0.8), ...)``.

    The rule of the official detection and segmentation code: the stem is layer 0, the first stage 1, the second 2,
    every three blocks of the third stage one more, then the last stage; norms of the maps, necks and heads come after
    it. A strided layer belongs to the stage that follows it. Layer i of n learns at ``lr * decay_rate ** (n + 1 - i)``,
    so that heads learn at ``lr``. Biases and parameters with one dimension do not decay.

    Options in ``paramwise_cfg``:

    - ``decay_rate``: factor from layer to layer, in (0, 1].
    - ``num_layers``: n; by default that of the backbone's depths (12 for S to XL, 9 for T). The published detector
      with T uses 12, which leaves three layers empty and lowers all rates below them.
    - ``decay_type``: 'layer_wise', or 'stage_wise', where a stage is a layer and strided layers are layer 0.
    - ``dw_scale``: further factor for depthwise convolutions (names with 'dwconv').

    Raises:
        InputError: if an option is unknown or out of range, or the model has no backbone of LarKit.
    """

    _OPTIONS = frozenset({"decay_rate", "num_layers", "decay_type", "dw_scale"})

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, **kwargs: Any) -> None:
        """Append one group for every layer and kind of decay to ``params``."""
        options = dict(self.paramwise_cfg)
        rate, kind = options.get("decay_rate", 1.0), options.get("decay_type", "layer_wise")
        if set(options) - self._OPTIONS or not 0 < rate <= 1 or kind not in ("layer_wise", "stage_wise"):
            raise InputError(
                f"paramwise_cfg={options}; expected {', '.join(sorted(self._OPTIONS))}, a rate in (0, 1] and "
                "decay_type 'layer_wise' or 'stage_wise'"
            )
        layers, last = layer_numbers(module, by_stage=kind == "stage_wise", num_layers=options.get("num_layers"))
        groups: dict[tuple[int, bool, float], list[nn.Parameter]] = defaultdict(list)
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim == 1 or name.endswith(".bias")
                extra = options.get("dw_scale", 1.0) if "dwconv" in name else 1.0
                groups[layers.get(name, last), plain, extra].append(parameter)
        for (layer, plain, extra), members in sorted(groups.items(), key=lambda item: item[0]):
            scale = extra * rate ** (last - layer)
            decay = 0.0 if plain else self.base_wd
            params.append({"params": members, "lr": scale * self.base_lr, "lr_scale": scale, "weight_decay": decay})


def layer_numbers(
    model: nn.Module, *, by_stage: bool = False, num_layers: int | None = None
) -> tuple[dict[str, int], int]:
    """The layer of every parameter in the backbone's stem and stages, by its full name, and that of all others.

    Args:
        model: a detector or segmentor with a ``backbone`` of LarKit.
        by_stage: a stage is a layer, and strided layers are layer 0.
        num_layers: number of the last stage, if it is to be another than the depths give.

    Raises:
        InputError: if there is no such backbone, or it has more layers.
    """
    backbone = getattr(model, "backbone", None)
    if not isinstance(backbone, StagedNet):
        raise InputError(f"LarKLayerDecay needs a backbone of LarKit, not {type(backbone).__name__}")
    numbers: dict[str, int] = group_parameters(backbone, backbone.group_matcher(), reverse=True)
    heads = max(numbers.values())  # timm gives what no pattern matches, here the norms of the maps, the last number
    numbers = {name: layer for name, layer in numbers.items() if layer < heads}
    if by_stage:
        numbers = {name: _stage_number(name) for name in numbers}
        heads = len(backbone.stages) + 1
    if num_layers is not None and num_layers < heads - 1:
        raise InputError(f"num_layers={num_layers}; the backbone has {heads - 1}, leave it out or give at least that")
    last = heads - 1 if num_layers is None else num_layers
    return {f"backbone.{n}": last if layer == heads - 1 else layer for n, layer in numbers.items()}, last + 1


def _stage_number(name: str) -> int:
    kind, number, *_ = name.split(".")
    return int(number) + 1 if kind == "stages" else 0
