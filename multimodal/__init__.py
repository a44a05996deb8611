"""Several modalities at once: one backbone that is trained on all of them."""

from multimodal.data import JointDataModule, JointSpec
from multimodal.extract import extract
from multimodal.sharing import SharedLayers
from multimodal.task import JointTask

__all__ = [
    "JointDataModule",
    "JointSpec",
    "JointTask",
    "SharedLayers",
    "extract",
]
