"""The blocks of the papers that timm.layers does not have."""

from core.layers.depthwise import DepthwiseConv2d
from core.layers.dilated_reparam import DilatedReparamBlock, dilated_branches
from core.layers.grn import GlobalResponseNorm
from core.layers.squeeze_excite import SqueezeExcite
from core.layers.unireplknet_block import UniRepLKNetBlock

__all__ = [
    "DepthwiseConv2d",
    "DilatedReparamBlock",
    "GlobalResponseNorm",
    "SqueezeExcite",
    "UniRepLKNetBlock",
    "dilated_branches",
]
