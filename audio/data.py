"""What all audio data modules share: recordings become maps in batches, on the device that trains."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.nn import functional as F

from audio.feature_map import AudioAugment, LogMel, pad_waves
from audio.files import Recordings, audio_files, cut_windows
from core.errors import InputError, MissingError
from core.samples import Samples, collate_found
from core.training.samples import SampleDataModule, Split
from core.writing import whole_file

__all__ = ["STATS", "AudioDataModule"]

STATS = "log_mel_stats.json"
"""File beside a data set that holds its measured statistics."""

Batch = tuple[tuple[Tensor, Tensor], Any]
"""((waveforms (B, T), lengths (B,)), targets), as the loader gives it and before it becomes (maps, targets)."""


class AudioDataModule(SampleDataModule):
    """Base of the audio data modules: the map's shape, its augmentation, its statistics, prediction on any recordings.

    Loading processes only decode; the maps of a whole batch are computed at once, where the model is.

    Args:
        sample_rate: samples a second; recordings at another rate are resampled.
        num_mels: height of the map, in mel bands.
        frame_length: length of a frame in milliseconds.
        frame_shift: step between frames in milliseconds.
        target_length: width of the map, in frames.
        mean: of the log-mel values; by default what ``lightning stats`` has measured and stored beside the data.
        std: of the log-mel values, likewise.
        mixup: probability of a training waveform to be mixed with another.
        frequency_mask: largest band of mels that training masks.
        time_mask: largest stretch of frames that training masks.
        noise: largest strength of the noise that training adds.
        roll: largest turn in time of a training map, in frames.
        overlap: share that neighbouring windows of a long recording have in common in ``predict``.
        skip_broken: leave out recordings that cannot be used, with a warning, instead of stopping.
        kwargs: arguments of :class:`core.training.SampleDataModule`.

    Raises:
        InputError: if a number is out of range.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        num_mels: int = 128,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        target_length: int = 128,
        mean: float | None = None,
        std: float | None = None,
        mixup: float = 0.6,
        frequency_mask: int = 48,
        time_mask: int = 48,
        noise: float = 0.1,
        roll: int = 10,
        overlap: float = 0.5,
        skip_broken: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= overlap < 1 or (mean is None) != (std is None):
            raise InputError(
                f"overlap={overlap}, mean={mean}, std={std}; a share in [0, 1), and both mean and std or none"
            )
        self.maps = LogMel(
            sample_rate=sample_rate,
            num_mels=num_mels,
            frame_length=frame_length,
            frame_shift=frame_shift,
            target_length=target_length,
            mean=0.0 if mean is None else mean,
            std=0.5 if std is None else std,
        )
        self.mean, self.std = mean, std
        self.augment = AudioAugment(mixup, frequency_mask, time_mask, noise, roll)
        self.overlap, self.skip_broken = overlap, skip_broken
        self.collate = partial(collate_found, kind="recording", collate=_collate)

    def find(self, path: Path) -> list[Path]:
        """The recording itself, or all recordings below a folder."""
        return audio_files(path)

    def dataset(self, samples: Samples, split: Split) -> Recordings:
        """Recordings, cut to the length of a map but for prediction."""
        longest = None if split == "predict" else self.maps.samples(self.maps.target_length)
        options: dict[str, Any] = {"shortest": self.maps.window, "skip_broken": self.skip_broken}
        return Recordings(samples, self.maps.sample_rate, longest=longest, **options)

    def prepare_data(self) -> None:
        """Check the paths and the statistics before a run folder is made.

        Raises:
            MissingError: if there is nothing to read, or nothing was measured.
            InputError: if it cannot be used.
        """
        super().prepare_data()
        self._use_statistics()

    def setup(self, stage: str | None = None) -> None:
        """List the recordings of the splits, and read the statistics."""
        super().setup(stage)
        self._use_statistics()

    def stats_file(self) -> Path:
        """Where the measured statistics of this data set are stored; a data set says it.

        Raises:
            MissingError: if the data set has no place of its own.
        """
        raise MissingError(
            f"{type(self).__name__} has no folder to keep statistics in; type --data.mean and --data.std"
        )

    def _settings(self) -> str:
        maps = self.maps
        shape = f"{maps.num_mels} mels, {maps.target_length} frames"
        return f"{maps.sample_rate} Hz, {shape}, {maps.frame_length:g} ms every {maps.frame_shift:g} ms"

    def _use_statistics(self) -> None:
        if self.mean is not None and self.std is not None:
            self.maps.mean, self.maps.std = self.mean, self.std
            return
        file, stored = self.stats_file(), self._stored()
        if self._settings() not in stored:
            raise MissingError(
                f"no mean and std are known for maps of {self._settings()}: {file} does not hold them. Measure them "
                "with the same options: lightning stats -c FILE, or set --data.mean and --data.std"
            )
        self.maps.mean, self.maps.std = stored[self._settings()]

    def _stored(self) -> dict[str, tuple[float, float]]:
        """Settings of maps, and the mean and standard deviation measured for them."""
        file = self.stats_file()
        try:
            content = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            return {name: (float(values["mean"]), float(values["std"])) for name, values in content.items()}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{file} is damaged ({error!r}); delete it and type lightning stats -c FILE") from error

    def measure(self) -> dict[str, float]:
        """Mean and standard deviation of the un-normalised training maps, padding included, stored in ``stats_file``.

        Raises:
            InputError: if a recording cannot be used, or the maps are all the same.
        """
        self.check_data()
        super().setup("fit")
        total, squares, count = 0.0, 0.0, 0
        for (wave_BT, lengths_B), _ in self._ordered(self._filled(self.train_set, "train")):
            mel = self.maps.filter_bank(wave_BT, lengths_B).double()
            total, squares, count = total + mel.sum().item(), squares + mel.square().sum().item(), count + mel.numel()
        mean = total / count
        std = max(0.0, squares / count - mean**2) ** 0.5
        if std == 0:
            raise InputError("all training maps are the same; check the recordings")
        file, stored = self.stats_file(), self._stored() | {self._settings(): (round(mean, 6), round(std, 6))}
        content = {name: {"mean": values[0], "std": values[1]} for name, values in stored.items()}
        with whole_file(file) as unfinished:
            unfinished.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        rank_zero_info(f"{self._settings()}: mean {mean:.6f}, std {std:.6f}; stored in {file}")
        return {"mean": mean, "std": std}

    def predict_dataloader(self) -> Any:
        """``predict_set`` in order, every recording cut into windows of the map's length."""
        loader = super().predict_dataloader()
        loader.collate_fn = _CollateWindows(self.maps.samples(self.maps.target_length), self.overlap)
        return loader

    def windows(self, wave: Tensor) -> list[Tensor]:
        """:func:`audio.files.cut_windows` of the map's length."""
        return cut_windows(wave, self.maps.samples(self.maps.target_length), self.overlap)

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> tuple[Tensor, Any]:
        """Waveforms to maps (B, 1, F, T); in training augmented, with targets (B, K) float."""
        (wave_BT, lengths_B), y = batch
        with torch.autocast(wave_BT.device.type, enabled=False):  # a filter bank in half precision loses quiet bands
            if self.trainer is not None and self.trainer.training:
                y = F.one_hot(y, len(self.classes)).float() if y.dtype == torch.int64 else y
                x, y = self.augment(self.maps, wave_BT, lengths_B, y)
            else:
                x = self.maps(wave_BT, lengths_B)
        return x.to(self._model_dtype()), y


@dataclass(frozen=True)
class _CollateWindows:
    """Cuts recordings into windows; it holds numbers alone, so that it can be sent to a loading process."""

    size: int
    overlap: float

    def __call__(self, samples: list[Any]) -> Any:
        return collate_found(samples, "recording", self._windows)

    def _windows(self, recordings: list[tuple[Tensor, Any]]) -> Batch:
        windows = [cut_windows(wave, self.size, self.overlap) for wave, _ in recordings]
        counts = torch.tensor([len(cut) for cut in windows])
        return pad_waves([wave for cut in windows for wave in cut]), ([name for _, name in recordings], counts)


def _collate(recordings: list[tuple[Tensor, Any]]) -> Batch:
    waves, targets = zip(*recordings, strict=True)
    y = torch.stack(targets) if isinstance(targets[0], Tensor) else torch.tensor(targets)
    return pad_waves(waves), y
