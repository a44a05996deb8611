"""Parameter groups and the learning-rate schedule of the papers' recipes."""

import difflib
import math
from typing import Any

from timm.optim import list_optimizers, param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from core.errors import InputError

__all__ = ["check_recipe", "parameter_groups", "run_factor", "warmup_cosine"]


def parameter_groups(
    module: nn.Module, *, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Build parameter groups for the optimizer from the trainable parameters of a module with a ``backbone``.

    Biases and parameters with one dimension have no weight decay. With layer decay d, the learning rate of a backbone
    parameter is lr * d^(n - i), where i is the index of its layer group, counted from the input
    (``backbone.group_matcher``), and n is the index of the last group. Parameters outside the backbone get the full
    rate. timm stores the factor d^(n - i) as ``lr_scale``, which torch's schedulers ignore, so it is multiplied into
    ``lr`` here.

    Args:
        module: a task, whose ``backbone`` may be any timm model.
        lr: learning rate of the last layer group.
        weight_decay: weight decay of parameters with two or more dimensions.
        layer_decay: d, in (0, 1].
    """
    backbone = module.get_submodule("backbone")
    exempt: set[str] = getattr(backbone, "no_weight_decay", set)()
    if layer_decay < 1:
        groups = param_groups_layer_decay(
            backbone,
            weight_decay,
            no_weight_decay_list=exempt,
            layer_decay=layer_decay,
        )
    else:
        groups = param_groups_weight_decay(backbone, weight_decay, no_weight_decay_list=exempt)

    # Parameters outside the backbone belong to the head or to a feature map that is trained.
    in_backbone = {id(p) for p in backbone.parameters()}
    trainable = [p for p in module.parameters() if p.requires_grad]
    others = nn.ParameterList([p for p in trainable if id(p) not in in_backbone])
    groups += param_groups_weight_decay(others, weight_decay)

    return [{**group, "lr": lr * group.get("lr_scale", 1.0)} for group in groups if group["params"]]


def warmup_cosine(step: int, *, warmup: int, total: int, floor: float = 0.0) -> float:
    """Return the factor on the learning rate: linear from 0 to 1 in the warm-up, then half a cosine to ``floor``.

    Args:
        step: number of optimizer steps taken so far.
        warmup: number of steps in the warm-up.
        total: number of steps in the run.
        floor: last factor, min_lr / lr.

    Returns:
        A factor in [0, 1]; ``floor`` from ``total`` on.

    Example:
        >>> [round(warmup_cosine(s, warmup=2, total=6), 3) for s in range(7)]
        [0.0, 0.5, 1.0, 0.854, 0.5, 0.146, 0.0]
    """
    if step < warmup:
        return step / warmup

    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def run_factor(
    step: int, *, epoch: int, decay_rate: float | None, decay_start: int, warmup: int, total: int, floor: float
) -> float:
    """Return the factor on the learning rate: a linear warm-up, then half a cosine or a decay by epoch.

    Args:
        step: number of optimizer steps taken so far.
        epoch: number of steps in an epoch; used by the decay only.
        decay_rate: factor on the learning rate after each epoch from ``decay_start`` on; None for the cosine.
        decay_start: last epoch at the full rate, counted from 1; used by the decay only.
        warmup: number of steps in the warm-up.
        total: number of steps in the run; used by the cosine only.
        floor: last factor of the cosine.
    """
    if decay_rate is None or step < warmup:
        return warmup_cosine(step, warmup=warmup, total=total, floor=floor)

    decays = max(0, step // epoch - decay_start + 1)
    return float(decay_rate**decays)


def check_recipe(
    opt: str, lr: float, min_lr: float, weight_decay: float, layer_decay: float, warmup_epochs: float
) -> None:
    """Check the options of the optimizer and the schedule.

    Args:
        opt: timm's name of the optimizer.
        lr: highest learning rate, above 0.
        min_lr: learning rate at the end, at most ``lr``.
        weight_decay: weight decay, 0 or more.
        layer_decay: factor on the learning rate from each layer group to the one before it, in (0, 1].
        warmup_epochs: length of the warm-up, 0 or more.

    Raises:
        InputError: if timm has no such optimizer, or a number is out of range.
    """
    known = list_optimizers()
    if opt not in known:
        near = difflib.get_close_matches(opt, known, n=3)
        raise InputError(f"unknown optimizer {opt!r}; timm has {', '.join(near or known)}")
    if not 0 < lr < math.inf or not 0 <= min_lr <= lr or not 0 <= weight_decay < math.inf:
        raise InputError(
            f"lr={lr}, min_lr={min_lr}, weight_decay={weight_decay}; expected lr > 0, 0 <= min_lr <= lr, "
            "weight_decay >= 0, all finite"
        )
    if not 0 < layer_decay <= 1 or not 0 <= warmup_epochs < math.inf:
        raise InputError(
            f"layer_decay={layer_decay}, warmup_epochs={warmup_epochs}; expected 0 < layer_decay <= 1, "
            "warmup_epochs >= 0"
        )
