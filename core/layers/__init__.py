"""The layers that timm does not have and that several families or modalities use."""

from core.layers.depthwise import DepthwiseConv2d

__all__ = ["DepthwiseConv2d"]
