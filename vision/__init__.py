"""Image classification with large-kernel ConvNets."""

from vision.data import Digits, ImageFolder
from vision.task import ImageClassifier

__all__ = ["Digits", "ImageClassifier", "ImageFolder"]
