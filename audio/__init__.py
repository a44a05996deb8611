"""Audio: recordings become log-mel maps, maps become classes."""

from audio.data import AudioDataModule
from audio.feature_map import LogMel
from audio.sets import AudioFolder, SpeechCommands
from audio.spoken_words import SpokenWords
from audio.tables import ESC50, AudioTable
from audio.task import AudioClassifier

__all__ = [
    "ESC50",
    "AudioClassifier",
    "AudioDataModule",
    "AudioFolder",
    "AudioTable",
    "LogMel",
    "SpeechCommands",
    "SpokenWords",
]
