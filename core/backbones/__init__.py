"""The backbone families, registered with timm when this package is imported."""

from core.backbones import enlarged
from core.backbones.base import LargeKernelNet
from core.backbones.replknet import RepLKNet
from core.backbones.unireplknet import UniRepLKNet

__all__ = ["LargeKernelNet", "RepLKNet", "UniRepLKNet", "enlarged"]
