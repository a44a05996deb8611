"""The blocks of the papers that timm.layers does not have."""

from core.layers.depthwise import DepthwiseConv2d
from core.layers.dilated_reparam import DilatedReparamBlock, dilated_branches
from core.layers.extra_structure import extra_structure
from core.layers.grn import GlobalResponseNorm
from core.layers.replknet_block import ConvFFN, ReparamLargeKernelConv, RepLKBlock
from core.layers.squeeze_excite import SqueezeExcite
from core.layers.unireplknet_block import UniRepLKNetBlock

__all__ = [
    "ConvFFN",
    "DepthwiseConv2d",
    "DilatedReparamBlock",
    "GlobalResponseNorm",
    "RepLKBlock",
    "ReparamLargeKernelConv",
    "SqueezeExcite",
    "UniRepLKNetBlock",
    "dilated_branches",
    "extra_structure",
]
