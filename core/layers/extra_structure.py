"""What may follow the depthwise convolution of a UniRepLKNet block: SE, or the structures it was chosen from."""

from typing import Literal, get_args

from torch import nn

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.layers.squeeze_excite import SqueezeExcite

__all__ = ["ExtraStructure", "extra_structure"]

ExtraStructure = Literal["se", "none", "bottleneck", "two_1x1", "two_dw3x3"]


def extra_structure(kind: ExtraStructure, dim: int) -> nn.Module:
    """The extra structure of a block, (B, C, H, W) to the same shape (UniRepLKNet section 3.1, first guideline).

    'se' mixes channels by the pooled map, 'two_1x1' mixes channels at each place, 'two_dw3x3' mixes places in each
    channel, 'bottleneck' (1x1, depthwise 3x3, 1x1) both; all go through C / 4 channels except 'two_dw3x3'. The papers
    print their parameters and multiplications, which these have; the ReLU between two layers is SE's, since no code of
    the others was published.

    Args:
        kind: its name.
        dim: C.

    Raises:
        InputError: if there is no such structure.
    """
    hidden = dim // 4
    match kind:
        case "se":
            return SqueezeExcite(dim, hidden)
        case "none":
            return nn.Identity()
        case "two_1x1":
            return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, dim, 1))
        case "bottleneck":
            middle = DepthwiseConv2d(hidden, 3, bias=True)
            return nn.Sequential(nn.Conv2d(dim, hidden, 1), nn.ReLU(), middle, nn.ReLU(), nn.Conv2d(hidden, dim, 1))
        case "two_dw3x3":
            return nn.Sequential(DepthwiseConv2d(dim, 3, bias=True), nn.ReLU(), DepthwiseConv2d(dim, 3, bias=True))
    raise InputError(f"extra={kind!r}; expected one of {', '.join(get_args(ExtraStructure))}")
