"""A sum of depthwise convolutions, each with a batch norm of its own, as one convolution before they are folded.

With the kernels w_i, the batch norms' weights gamma_i, biases beta_i and statistics mean_i, var_i of z_i = w_i * x,

    s_i = gamma_i / sqrt(var_i + eps),    y = sum_i s_i (z_i - mean_i) + beta_i
                                            = (sum_i s_i w_i) * x + sum_i (beta_i - s_i mean_i)

which is how UniRepLKNet folds its branches after training (section 3.2 of arXiv 2311.15599). In training the statistics
are those of the batch, and the gradient goes through them: :func:`core.ops.depthwise_statistics`. The maps z_i are then
made one at a time, or in Triton not at all, and x alone is kept for the backward pass, where each z_i is made again:
less memory for more multiplications.
"""

import os
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.fx._symbolic_trace import is_fx_symbolic_tracing
from torch.nn.modules.module import _has_any_global_hook

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.ops import autocast_dtype, depthwise_conv2d, depthwise_statistics, eager, transformed, written_down
from core.reparam import add_kernel

__all__ = ["ENVIRONMENT", "Branch", "TrainingForm", "as_one_convolution", "check_form", "goes_as_one"]

TrainingForm = Literal["", "branches", "merged"]
Branch = tuple[DepthwiseConv2d, nn.BatchNorm2d]

ENVIRONMENT = "LARKIT_TRAINING_FORM"
"""Environment variable that says how blocks with branches are computed: 'branches' or 'merged'."""


def check_form(form: str) -> None:
    """Refuse what is no form.

    Raises:
        InputError: if ``form`` is none of :data:`TrainingForm`.
    """
    if form not in get_args(TrainingForm):
        raise InputError(
            f"training form {form!r}; expected 'branches' or 'merged' (or '' for the default) as training_form= or in "
            f"the environment variable {ENVIRONMENT}"
        )


def goes_as_one(branches: Sequence[Branch], x: Tensor, asked: TrainingForm) -> bool:
    """Whether :func:`as_one_convolution` takes the place of the branches.

    By default it does in eval mode, where one convolution is less work than several, run eagerly without autocast. With
    'merged' it does in training too. Never where others look at the parts or replaced them (hooks, parametrisations,
    other kinds of norms, exporters, tracers, ``torch.func``), nor where ``nn.BatchNorm2d`` would refuse the map.

    Args:
        branches: the largest kernel first.
        x: (B, C, H, W).
        asked: 'branches', 'merged', or '' to leave it to :data:`ENVIRONMENT` and then to the default.

    Raises:
        InputError: if ``asked`` or the environment variable is no form.
    """
    form = asked or os.environ.get(ENVIRONMENT, "")
    check_form(form)
    if form == "branches" or (not form and not _better_as_one(branches, x)):
        return False
    if transformed() or written_down() or is_fx_symbolic_tracing() or _has_any_global_hook():
        return False
    largest = branches[0][0]
    if x.ndim != 4 or x.numel() <= x.shape[1] or not (autocast_dtype(x) or x.dtype == largest.weight.dtype):
        return False  # let the parts say what is wrong with it: batch norm has no statistics of one value
    same = len({norm.eps for _, norm in branches}) == 1
    return same and all(_plain(conv, norm, largest.dilation[0]) for conv, norm in branches)


def as_one_convolution(branches: Sequence[Branch], x: Tensor) -> Tensor:
    """The sum over the branches of norm(conv(x)), whose running statistics move as those of ``nn.BatchNorm2d`` do.

    Norms in eval mode use their running statistics.

    Args:
        branches: the largest kernel first; :func:`goes_as_one` says whether they can be computed so.
        x: (B, C, H, W).
    """
    largest = branches[0][0]
    if dtype := autocast_dtype(x):  # once, so that all operators keep the same map
        x = x.to(dtype)
    wide = torch.promote_types(largest.weight.dtype, torch.float32)
    moments = [(*_statistics(conv, norm, x), norm.weight, norm.bias) for conv, norm in branches]
    means, variances, gammas, betas = (torch.stack(each).to(wide) for each in zip(*moments, strict=True))
    scales = gammas * (variances + branches[0][1].eps).rsqrt()
    bias = (betas - scales * means).sum(0)
    weight = largest.weight * scales[0].view(-1, 1, 1, 1)
    for (conv, _), scale in zip(branches[1:], scales[1:], strict=True):
        add_kernel(weight, conv.weight * scale.view(-1, 1, 1, 1), conv.dilation[0] // largest.dilation[0])
    return depthwise_conv2d(x, weight.to(x.dtype), bias.to(x.dtype), dilation=largest.dilation[0])


def _statistics(conv: DepthwiseConv2d, norm: nn.BatchNorm2d, x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance that a norm takes: those of the batch, counted in, in training mode; else the running ones."""
    running_mean, running_var, seen = norm.running_mean, norm.running_var, norm.num_batches_tracked
    assert running_mean is not None
    assert running_var is not None
    assert seen is not None
    if not norm.training:
        return running_mean, running_var
    mean, var = depthwise_statistics(x, conv.weight, dilation=conv.dilation[0])
    with torch.no_grad():
        seen.add_(1)
        factor = 1.0 / float(seen) if norm.momentum is None else norm.momentum
        values = x.numel() // x.shape[1]
        running_mean.lerp_(mean.to(running_mean.dtype), factor)
        running_var.lerp_((var * (values / (values - 1))).to(running_var.dtype), factor)
    return mean, var


def _better_as_one(branches: Sequence[Branch], x: Tensor) -> bool:
    """The default: in eval mode, eager, without autocast."""
    return not any(norm.training for _, norm in branches) and eager() and not autocast_dtype(x)


def _plain(conv: nn.Module, norm: nn.Module, step: int) -> bool:
    """Whether a convolution and its norm are as the block made them and nobody looks at what goes in and out."""
    if type(conv) is not DepthwiseConv2d or type(norm) is not nn.BatchNorm2d or _hooked(conv) or _hooked(norm):
        return False
    if conv.bias is not None or conv.stride != (1, 1) or conv.dilation[0] % step or conv.dilation[1] % step:
        return False
    return norm.affine and norm.running_mean is not None


def _hooked(part: nn.Module) -> bool:
    return bool(part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks)
