"""LarKit's backbones in MMDetection and MMSegmentation: ``custom_imports = dict(imports=['vision.openmmlab'])``.

Importing this package registers the backbones and the optimizer's constructor, and stands in for mmcv's compiled
operators where they are missing. It has to come before ``mmdet.models`` or ``mmseg.models``, which a config's
``custom_imports`` does.
"""

import logging
from importlib.util import find_spec

from core.errors import MissingError

if _missing := [name for name in ("mmengine", "mmcv") if find_spec(name) is None]:
    raise MissingError(
        f"OpenMMLab's packages are not installed ({', '.join(_missing)}); type in LarKit's folder: "
        "pip install -e '.[openmmlab]'"
    )
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # mmengine imports it; it warns

from vision.openmmlab.operators import install_operators  # noqa: E402

install_operators()  # before anything imports mmcv.ops

from vision.openmmlab.backbones import MMRepLKNet, MMUniRepLKNet  # noqa: E402
from vision.openmmlab.optim import LarKLayerDecay  # noqa: E402

__all__ = ["LarKLayerDecay", "MMRepLKNet", "MMUniRepLKNet", "install_operators"]
