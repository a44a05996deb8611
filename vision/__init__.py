"""Image classification with large-kernel ConvNets."""

from vision.data import ImageDataModule, ImageSpec
from vision.demo import Digits
from vision.sets import CIFAR10, CIFAR100, ImageFolder
from vision.task import ImageClassifier

__all__ = ["CIFAR10", "CIFAR100", "Digits", "ImageClassifier", "ImageDataModule", "ImageFolder", "ImageSpec"]
