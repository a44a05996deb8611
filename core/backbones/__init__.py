"""The backbone families, registered with timm when this package is imported."""

from core.backbones import unireplknet_variants
from core.backbones.unireplknet import UniRepLKNet, default_kernel_sizes

__all__ = ["UniRepLKNet", "default_kernel_sizes", "unireplknet_variants"]
