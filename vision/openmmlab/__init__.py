"""LarKit's backbones in MMDetection and MMSegmentation: ``custom_imports = dict(imports=['vision.openmmlab'])``.

Importing this package registers the backbones, the layer decay and a hook, and replaces mmcv's compiled operators where
they are missing. It must be imported before ``mmdet.models`` or ``mmseg.models``. In the training scripts, a config's
``custom_imports`` does so. Other scripts, and ``mmdet.apis``, import the models before they read a config: run such a
script as ``python -m vision.openmmlab TOOL.py ARGS...``, and in your own code write ``import vision.openmmlab`` before
``import mmdet.apis``.
"""

import logging
from importlib.util import find_spec

from core.errors import MissingError

if _missing := [name for name in ("mmengine", "mmcv") if find_spec(name) is None]:
    raise MissingError(
        f"OpenMMLab's packages are not installed ({', '.join(_missing)}); type in LarKit's folder: "
        "pip install -e '.[openmmlab]'"
    )

logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # mmengine imports it, and it logs warnings

from vision.openmmlab.operators import install_operators  # noqa: E402

install_operators()  # before anything imports mmcv.ops

from vision.openmmlab.backbones import MMRepLKNet, MMUniRepLKNet  # noqa: E402
from vision.openmmlab.losses import PixelCrossEntropy  # noqa: E402
from vision.openmmlab.runner import AllowTF32, LarKLayerDecay  # noqa: E402

__all__ = ["AllowTF32", "LarKLayerDecay", "MMRepLKNet", "MMUniRepLKNet", "PixelCrossEntropy", "install_operators"]
