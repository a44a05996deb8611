"""Audio classification with large-kernel ConvNets: a recording becomes a log-mel map."""

from audio.data import AudioDataModule, AudioSpec
from audio.demo import SpokenWords
from audio.feature_map import LogMel
from audio.sets import ESC50, AudioFolder, AudioTable, SpeechCommands
from audio.task import AudioClassifier

__all__ = [
    "ESC50",
    "AudioClassifier",
    "AudioDataModule",
    "AudioFolder",
    "AudioSpec",
    "AudioTable",
    "LogMel",
    "SpeechCommands",
    "SpokenWords",
]
