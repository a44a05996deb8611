"""Which depthwise convolutions a model calls, to be measured by :func:`core.ops.measure.measure`."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from core.ops.measure import Convolution
from core.ops.modes import memory_format
from core.ops.operators import depthwise, depthwise_weight_gradient
from core.ops.table import Kind

__all__ = ["convolutions_of"]


class _Record(TorchDispatchMode):
    """Notes the depthwise convolutions that run under it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[Convolution, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (depthwise, depthwise_weight_gradient):
            x, other = args[:2]
            forward = func is depthwise
            kernel, dilation = (tuple(other.shape[2:]), args[3]) if forward else (tuple(args[2:4]), args[4])
            last = memory_format(x) is torch.channels_last
            kind: Kind = "forward" if forward else "weight_gradient"
            self.seen[Convolution(tuple(x.shape), kernel, dilation, last, kind)] = None
        return func(*args, **kwargs or {})


def convolutions_of(model: nn.Module, x: Tensor) -> list[Convolution]:
    """The depthwise convolutions of stride 1 that a training step and a prediction call, each once.

    Args:
        model: is not changed.
        x: its input, (B, C, H, W).
    """
    record, model = _Record(), copy.deepcopy(model)
    with record:
        model.train()(x).float().sum().backward()
        with torch.no_grad():
            model.eval()(x)
    return list(record.seen)
