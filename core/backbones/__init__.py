"""The backbone families, registered with timm when this package is imported."""

from core.backbones import enlarged_variants, replknet_variants, unireplknet_variants
from core.backbones.kernel_sizes import default_kernel_sizes
from core.backbones.replknet import RepLKNet
from core.backbones.unireplknet import UniRepLKNet

__all__ = [
    "RepLKNet",
    "UniRepLKNet",
    "default_kernel_sizes",
    "enlarged_variants",
    "replknet_variants",
    "unireplknet_variants",
]
