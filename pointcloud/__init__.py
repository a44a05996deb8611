"""Point clouds: points become views, views become classes."""

from pointcloud.data import PointDataModule
from pointcloud.digit_clouds import DigitClouds
from pointcloud.feature_map import PointViews
from pointcloud.furniture import Furniture
from pointcloud.sets import ModelNet40, PointFolder, ScanObjectNN
from pointcloud.task import PointCloudClassifier

__all__ = [
    "DigitClouds",
    "Furniture",
    "ModelNet40",
    "PointCloudClassifier",
    "PointDataModule",
    "PointFolder",
    "PointViews",
    "ScanObjectNN",
]
