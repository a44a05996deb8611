"""Video: clips become one large image, images become classes."""

from video.camera_moves import CameraMoves
from video.data import VideoDataModule
from video.feature_map import clip_to_map, map_to_clip
from video.sets import FrameList, VideoFolder, VideoList
from video.task import VideoClassifier

__all__ = [
    "CameraMoves",
    "FrameList",
    "VideoClassifier",
    "VideoDataModule",
    "VideoFolder",
    "VideoList",
    "clip_to_map",
    "map_to_clip",
]
