"""Point-cloud classification with large-kernel ConvNets: a cloud is drawn as images."""

from pointcloud.data import PointDataModule, PointSpec
from pointcloud.demo import DigitClouds
from pointcloud.feature_map import PointViews
from pointcloud.sets import ModelNet40, PointFolder, ScanObjectNN
from pointcloud.task import PointCloudClassifier

__all__ = [
    "DigitClouds",
    "ModelNet40",
    "PointCloudClassifier",
    "PointDataModule",
    "PointFolder",
    "PointSpec",
    "PointViews",
    "ScanObjectNN",
]
