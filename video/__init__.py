"""Video classification with large-kernel ConvNets: a clip becomes one large image."""

from video.data import VideoDataModule, VideoSpec
from video.demo import CameraMoves
from video.feature_map import ClipMap, clip_to_map, map_to_clip
from video.sets import FrameList, VideoFolder, VideoList
from video.task import VideoClassifier

__all__ = [
    "CameraMoves",
    "ClipMap",
    "FrameList",
    "VideoClassifier",
    "VideoDataModule",
    "VideoFolder",
    "VideoList",
    "VideoSpec",
    "clip_to_map",
    "map_to_clip",
]
