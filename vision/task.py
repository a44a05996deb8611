"""Image classification as a LightningModule."""

from core.training.pixels import PixelClassification

__all__ = ["ImageClassifier"]


class ImageClassifier(PixelClassification):
    """:class:`core.training.ClassificationTask` for images."""
