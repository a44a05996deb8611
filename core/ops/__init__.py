"""Operators that the layers are built on."""

from core.ops.depthwise import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
