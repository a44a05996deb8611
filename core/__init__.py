"""LarKit's shared core: large-kernel backbones and everything that all modalities have in common.

Importing it registers the backbones with timm, so that ``timm.create_model("unireplknet_t")`` works.
"""

from importlib.metadata import PackageNotFoundError, version

from core.backbones import RepLKNet, UniRepLKNet
from core.backbones.enlarged import enlarge_kernels
from core.io.weights import load_weights
from core.reparam import reparameterize

__all__ = ["RepLKNet", "UniRepLKNet", "enlarge_kernels", "load_weights", "reparameterize"]

try:
    __version__ = version("larkit")
except PackageNotFoundError:  # imported from the source folder without an installation
    __version__ = "0+unknown"
