"""Audio data sets that are folders: one for each class, and Speech Commands."""

from pathlib import Path
from typing import Any

from audio.data import STATS, AudioDataModule
from audio.files import audio_files
from core.errors import InputError, MissingError
from core.files import ClassFolders, Labelled, class_files

__all__ = ["WORDS", "AudioFolder", "SpeechCommands"]

WORDS = (
    *("backward", "follow", "five", "bed", "zero", "on", "learn", "two", "house", "tree", "dog", "stop", "seven"),
    *("eight", "down", "six", "forward", "cat", "right", "visual", "four", "wow", "no", "nine", "off", "three"),
    *("left", "marvin", "yes", "up", "sheila", "happy", "bird", "go", "one"),
)
"""The 35 words of Speech Commands V2 in the order of their published labels."""


class AudioFolder(AudioDataModule):
    """Class folders: ``root/train/<class>/*.wav`` and ``root/val/<class>/*.wav``.

    Classes are numbered by name. ``root/test`` is used for ``test`` if it is there, else ``root/val``. Without a
    ``val`` folder a share of each class is held out of ``train``. Folders that begin with an underscore are left out.

    Args:
        root: folder with the split folders; may be left out for ``predict`` alone.
        train_split: name of the training folder.
        val_split: name of the validation folder.
        val_share: share of each class held out when there is no validation folder.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(
        self,
        root: str | None = None,
        *,
        train_split: str = "train",
        val_split: str = "val",
        val_share: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.folders = ClassFolders(
            Path(root) if root else None, audio_files, "*.wav", train_split, val_split, val_share
        )

    def check_data(self) -> None:
        """Check the folders before a run folder is made.

        Raises:
            MissingError: if a folder is missing, or a class folder holds no recordings.
        """
        if self.trainer is None or not self.trainer.predicting or not self.predict_path:
            self.folders.check()

    def stats_file(self) -> Path:
        """``root/log_mel_stats.json``."""
        if self.folders.root is None:
            return super().stats_file()
        return self.folders.root / STATS

    def fill(self, stage: str) -> None:
        """List the files of the splits that ``stage`` needs."""
        if stage == "predict" and self.predict_path:
            self.predict_set = self._predict_files()
            return
        splits = self.folders.split()
        self.classes = splits.classes
        self.train_set, self.val_set = self._recordings(splits.train), self._recordings(splits.val)
        self.test_set, self.predict_set = self._recordings(splits.test), self._predict_files(splits.val)


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
            InputError: if there is a folder that is none of the words.
        """
        self._splits()

    def stats_file(self) -> Path:
        """``root/log_mel_stats.json``."""
        return self.root / STATS

    def fill(self, stage: str) -> None:
        """Deal the files to the splits."""
        train, val, test = self._splits()
        self.train_set, self.val_set, self.test_set = map(self._recordings, (train, val, test))
        self.predict_set = self._predict_files(test)

    def _splits(self) -> tuple[Labelled, Labelled, Labelled]:
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
        return [by_name[file] for file in by_name if file not in seen], parts[0], parts[1]
