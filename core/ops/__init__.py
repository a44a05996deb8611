"""Operators that the layers are built on."""

from core.ops.choose import chosen_implementations
from core.ops.depthwise import depthwise_conv2d, depthwise_statistics
from core.ops.implementations import IMPLEMENTATIONS
from core.ops.modes import autocast_dtype, eager, in_fast_format, onednn, transformed, written_down
from core.ops.response_norm import response_norm, response_scale

__all__ = [
    "IMPLEMENTATIONS",
    "autocast_dtype",
    "chosen_implementations",
    "depthwise_conv2d",
    "depthwise_statistics",
    "eager",
    "in_fast_format",
    "onednn",
    "response_norm",
    "response_scale",
    "transformed",
    "written_down",
]
