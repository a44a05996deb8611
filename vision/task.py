"""Image classification as a LightningModule."""

from typing import ClassVar

from core.training.pixels import PixelClassification

__all__ = ["ImageClassifier"]


class ImageClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for images."""

    pipeline_tag: ClassVar[str | None] = "image-classification"
