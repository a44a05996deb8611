"""Audio data sets that are folders: one for each class, and Speech Commands."""

from pathlib import Path
from typing import Any

from audio.data import STATS, AudioDataModule
from audio.files import audio_files
from core.errors import InputError, MissingError
from core.files import Labelled, Splits, class_files
from core.training.samples import FolderDataModule

__all__ = ["WORDS", "AudioFolder", "SpeechCommands"]

WORDS = (
    *("backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog", "stop", "seven"),
    *("eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow", "no", "nine", "off", "three"),
    *("left", "marvin", "yes", "up", "sheila", "happy", "bird", "go", "one"),
)
"""The 35 words of Speech Commands V2 in the order of their published labels."""


class AudioFolder(FolderDataModule, AudioDataModule):
    """Class folders of recordings, see :class:`core.training.FolderDataModule`: ``root/train/<class>/*.wav``."""

    pattern = "*.wav"

    def stats_file(self) -> Path:
        """``root/log_mel_stats.json``."""
        if self.folders.root is None:
            return super().stats_file()
        return self.folders.root / STATS


class SpeechCommands(AudioDataModule):
    """Speech Commands V2 as its archive unpacks: ``root/<word>/*.wav``, ``validation_list.txt``, ``testing_list.txt``.

    What the two lists do not name trains; ``_background_noise_`` is left out. Labels are the published ones of
    :data:`WORDS`.

    Args:
        root: the unpacked archive, https://www.tensorflow.org/datasets/catalog/speech_commands.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(self, root: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root, self.classes = Path(root), list(WORDS)

    def check_data(self) -> None:
        """Check folders and lists before a run folder is made.

        Raises:
            MissingError: if a folder or list is missing.
            InputError: if there is a folder that is none of the words, or the lists name a recording twice.
        """
        self.splits()

    def stats_file(self) -> Path:
        """``root/log_mel_stats.json``."""
        return self.root / STATS

    def splits(self) -> Splits:
        """Deal the files to the splits by the two lists.

        Raises:
            MissingError: if a folder, a list or a recording that it names is missing.
            InputError: if there is a folder that is none of the words, or the lists name a recording twice.
        """
        _, files = class_files(self.root, audio_files, pattern="*.wav", classes=self.classes)
        by_name = {f"{path.parent.name}/{path.name}": (path, label) for path, label in files}
        parts: list[Labelled] = []
        seen: set[str] = set()
        for name in ("validation_list.txt", "testing_list.txt"):
            if not (self.root / name).is_file():
                raise MissingError(f"there is no {self.root / name}; unpack the whole archive of Speech Commands there")
            named = (self.root / name).read_text(encoding="utf-8").split()
            absent = next((file for file in named if file not in by_name), None)
            if absent:
                raise MissingError(f"{self.root / name} names {absent}, which is not there; unpack the archive again")
            twice = next((file for file in named if file in seen or named.count(file) > 1), None)
            if twice:
                raise InputError(f"{self.root / name} names {twice}, which was named before; unpack the archive again")
            seen.update(named)
            parts.append([by_name[file] for file in named])
        return Splits(self.classes, [by_name[file] for file in by_name if file not in seen], *parts)
