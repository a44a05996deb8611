"""Layers that several families or modalities use and timm does not have."""

from core.layers.depthwise import DepthwiseConv2d

__all__ = ["DepthwiseConv2d"]
