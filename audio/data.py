"""The base of all audio data modules, which turn recordings into waveforms and measure the statistics of their maps."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from audio.feature_map import LogMel, pad_waves
from audio.files import audio_files, read_wave, stated_seconds
from core.data.labeled import SampleDataModule, Split
from core.data.samples import EmptyBatch, SampleDataset, Samples, collate_found, source_name
from core.data.spec import DataSpec
from core.errors import InputError

__all__ = ["AudioDataModule", "AudioSpec", "Recordings", "Waves"]

_MEASURED = 5_000
"""Largest number of recordings on which mean and standard deviation are measured; larger sets are sampled."""

_TIMED = 1_000
"""Largest number of recordings whose lengths are read to choose the width of a map; larger sets are sampled."""

_LENGTHS = (64, 512)
"""Smallest and largest width of a map, in frames, that is chosen by the lengths of the recordings."""


@dataclass(frozen=True)
class AudioSpec(DataSpec):
    """What a model must know about recordings.

    Attributes:
        sample_rate: samples per second.
        num_mels: height of a map, in mel bands.
        frame_length: length of a frame, in milliseconds.
        frame_shift: step from one frame to the next, in milliseconds.
        target_length: width of a map, in frames; None until it is chosen by the lengths of the training recordings.
        mean: mean of the log-mel values of the training data; None until it is measured.
        std: standard deviation of these values; None until it is measured.
        overlap: share in [0, 1) of a window that the next one repeats, for recordings that are longer than a map.

    Raises:
        InputError: if ``overlap`` is out of range, or only one of ``mean`` and ``std`` is given.
    """

    sample_rate: int = 16_000
    num_mels: int = 128
    frame_length: float = 25.0
    frame_shift: float = 10.0
    target_length: int | None = 128
    mean: float | None = None
    std: float | None = None
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise InputError(f"overlap={self.overlap}; expected a share in [0, 1)")
        if (self.mean is None) != (self.std is None):
            raise InputError(f"mean={self.mean}, std={self.std}; give both or neither")

    def feature_map(self) -> LogMel:
        """Build the feature map; as long as the statistics are not known, it leaves the log-mel values as they are."""
        return LogMel(
            sample_rate=self.sample_rate,
            num_mels=self.num_mels,
            frame_length=self.frame_length,
            frame_shift=self.frame_shift,
            target_length=self.target_length or _LENGTHS[0],
            mean=0.0 if self.mean is None else self.mean,
            std=0.5 if self.std is None else self.std,
        )


class Waves(NamedTuple):
    """A raw batch: waveforms (B, T) float32, padded with zeros, and their lengths (B,) int64 in samples.

    It is a named tuple because pinning the memory of a batch turns plain tuples into lists.
    """

    waves: Tensor
    lengths: Tensor


class AudioDataModule(SampleDataModule):
    """Base of the audio data modules: sample rate and maps of the recordings, and prediction on any files.

    Training batches are (:class:`Waves`, targets), with waveforms (B, T) float32 in [-1, 1] at ``sample_rate``; of a
    recording that is longer than a map, training hears a random part. Targets are labels (B,) int64 or, if a recording
    may have several, (B, K) float32 of 0 and 1. Evaluation and prediction hear whole recordings: their batches are (a
    list of B waveforms, targets or names), since one recording may last a second and the next one an hour.

    Args:
        sample_rate: samples per second; recordings at other rates are resampled.
        num_mels: height of a map, in mel bands.
        frame_length: length of a frame, in milliseconds.
        frame_shift: step from one frame to the next, in milliseconds.
        target_length: width of a map, in frames; None chooses it so that a map holds nine of ten training recordings,
            but at least 64 and at most 512 frames.
        mean: mean of the log-mel values; by default measured on the training recordings and stored in the checkpoint.
        std: standard deviation of the log-mel values; by default measured together with the mean.
        overlap: share in [0, 1) of a window that the next one repeats, for recordings that are longer than a map.
        kwargs: arguments of :class:`core.data.labeled.SampleDataModule`.

    Raises:
        InputError: if an option is out of range, or only one of ``mean`` and ``std`` is given.
    """

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        num_mels: int = 128,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        target_length: int | None = 128,
        mean: float | None = None,
        std: float | None = None,
        overlap: float = 0.5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._settings = AudioSpec(
            sample_rate=sample_rate,
            num_mels=num_mels,
            frame_length=frame_length,
            frame_shift=frame_shift,
            target_length=target_length,
            mean=mean,
            std=std,
            overlap=overlap,
        )
        self._feature_map = self._settings.feature_map()
        self._statistics: tuple[float, float] | None = None
        self._knows_lengths = False
        self.collate = _collate
        self.evaluation_collate = _collate_whole

    def settings(self) -> AudioSpec:
        """Return the settings of the maps, with mean and standard deviation if they were given."""
        return replace(self._settings, multi_label=self.multi_label)

    def spec(self) -> AudioSpec:
        """Return the settings, completed by the class names and the statistics of the training recordings.

        Unless the statistics were given, they are measured at the first call. Runs that only evaluate use those of the
        checkpoint; nothing is measured for them, and ``mean`` and ``std`` stay None.
        """
        classes = tuple(self.read_splits().classes)
        if not self._only_evaluates():
            self._choose_length()

        spec = replace(self.settings(), classes=classes)
        if spec.mean is not None:
            return spec
        if self._statistics is None and not self._only_evaluates():
            self.measure()

        if self._statistics is None:
            return spec
        mean, std = self._statistics
        return replace(spec, mean=mean, std=std)

    def _only_evaluates(self) -> bool:
        """Return whether this run has a trainer and does not train."""
        return self.trainer is not None and self.trainer.state.fn != TrainerFn.FITTING

    def know_statistics(self, mean: float, std: float) -> None:
        """Use these statistics instead of measuring them, as a run that continues from a checkpoint does."""
        self._statistics = (mean, std)

    def find(self, path: Path) -> list[Path]:
        """Find all recordings below a folder; a path to a recording gives that recording alone."""
        return audio_files(path)

    def dataset(self, samples: Samples, split: Split) -> "Recordings":
        """Return the dataset of a split: random parts of the length of a map for training, else whole recordings."""
        trains = split == "train"
        if trains and not self._only_evaluates():
            self._choose_length()
        return Recordings(
            samples,
            self._settings.sample_rate,
            shortest=self._feature_map.window,
            longest=self._feature_map.samples() if trains else None,
            random_part=trains,
            skip_broken=self.skip_broken,
        )

    def _choose_length(self) -> None:
        """Choose the width of a map if it was not given, else say once if one of ten recordings or more do not fit."""
        if self._knows_lengths:
            return
        self._knows_lengths = True

        samples = self.read_splits().train
        seconds = _long_recording(samples, self._settings.sample_rate)
        if seconds is None:
            return

        frames = self._feature_map.frames(math.ceil(seconds * self._settings.sample_rate))
        suggested = min(max(32 * math.ceil(frames / 32), _LENGTHS[0]), _LENGTHS[1])
        if self._settings.target_length is None:
            self._settings = replace(self._settings, target_length=suggested)
            self._feature_map = self._settings.feature_map()
            rank_zero_info(
                f"Nine of ten recordings last up to {seconds:.2f} s: a map holds {self._map_seconds():.2f} s "
                f"(--data.target_length {suggested})"
            )
        elif frames > self._feature_map.target_length:
            rank_zero_info(
                f"One of ten recordings or more are longer than a map of {self._map_seconds():.2f} s: training hears a "
                f"random part of them, evaluation all of it in windows. A longer map: --data.target_length {suggested}"
            )

    def _map_seconds(self) -> float:
        return self._feature_map.samples() / self._settings.sample_rate

    def measure(self) -> dict[str, float]:
        """Measure mean and standard deviation of the log-mel values of the training recordings, padding included.

        Of more than 5,000 recordings, a sample of 5,000 is measured, which is the same in every run. The result is
        kept.

        Returns:
            ``mean`` and ``std``, rounded to six decimal places.

        Raises:
            InputError: if a recording cannot be used, or all values are the same.
        """
        if self._statistics is None:
            self._statistics = self._measure()
        mean, std = self._statistics
        return {"mean": mean, "std": std}

    def _measure(self) -> tuple[float, float]:
        """Compute the statistics in one pass over the recordings, which shows a progress bar."""
        samples = self.read_splits().train
        dataset = self.dataset(samples, "train")
        dataset.random_part = False  # the beginnings are measured, which are the same in every run
        recordings: Dataset[Any] = self._filled(dataset, "train")
        count = min(len(samples), _MEASURED)
        if count < len(samples):
            chosen = np.random.default_rng(0).choice(len(samples), count, replace=False)
            recordings = Subset(recordings, sorted(chosen.tolist()))

        loader = DataLoader(
            recordings,
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            collate_fn=self.collate,
            generator=torch.Generator(),  # its own, so that measuring does not change the random numbers of a run
        )
        progress = tqdm(
            loader,
            desc=f"Measuring mean and std on {count} of {len(samples)} recordings",
            leave=False,
            disable=bool(getattr(rank_zero_only, "rank", 0)),  # only the first process shows it
        )

        values = 0
        total = 0.0
        squares = 0.0
        for batch in progress:
            if isinstance(batch, EmptyBatch):
                continue

            raw, _ = batch
            mel_BFT = self._feature_map.filter_bank(*raw).double()
            values += mel_BFT.numel()
            total += mel_BFT.sum().item()
            squares += mel_BFT.square().sum().item()

        if values == 0:
            raise InputError("no recording can be used; check the files named in the warnings")

        mean = total / values
        std = max(0.0, squares / values - mean**2) ** 0.5
        if std == 0:
            raise InputError("the maps of all training recordings are the same; check the recordings")

        rank_zero_info(f"Mean {mean:.6f} and std {std:.6f} of the log-mel values, measured on {count} recordings")
        return round(mean, 6), round(std, 6)


class Recordings(SampleDataset):
    """A dataset of waveforms from files and arrays, each with a target.

    Args:
        samples: (recording, target) pairs; a recording is a file, or a pair of a name and an array (T,) of floats at
            ``sample_rate``.
        sample_rate: samples per second of the waveforms; files at other rates are resampled.
        shortest: smallest number of samples of a waveform.
        longest: largest number of samples to keep; None for all.
        random_part: keep a random part of a longer recording instead of its beginning.
        skip_broken: leave out recordings that cannot be used, with a warning, instead of stopping.
    """

    def __init__(
        self,
        samples: Samples,
        sample_rate: int,
        *,
        shortest: int = 1,
        longest: int | None = None,
        random_part: bool = False,
        skip_broken: bool = False,
    ) -> None:
        super().__init__(samples, skip_broken=skip_broken)
        self.sample_rate = sample_rate
        self.shortest = shortest
        self.longest = longest
        self.random_part = random_part

    def read(self, source: Any) -> Tensor:
        """Return the waveform of a recording (T,) float32, or a part of ``longest`` samples."""
        place = torch.rand(()).item() if self.random_part else 0.0
        if isinstance(source, tuple):
            wave = self._to_wave(source_name(source), source[1])
            start = 0 if self.longest is None else int(place * max(0, len(wave) - self.longest))
            wave = wave[start:]
        else:
            wave = read_wave(source, self.sample_rate, shortest=self.shortest, longest=self.longest, place=place)
        return wave[: self.longest]

    def _to_wave(self, name: str, array: np.ndarray) -> Tensor:
        """Check an array and convert it to a waveform."""
        if array.ndim != 1 or array.dtype.kind != "f" or len(array) < self.shortest:
            raise InputError(
                f"{name} has the shape {array.shape} and the dtype {array.dtype}; expected a waveform (T,) of floats "
                f"in [-1, 1] at {self.sample_rate} Hz, with at least {self.shortest} samples"
            )
        if not np.isfinite(array).all():
            raise InputError(f"{name} holds NaN or infinity; replace it")
        return torch.from_numpy(array.astype(np.float32))


def _stack(recordings: list[tuple[Tensor, Any]]) -> tuple[Waves, Tensor]:
    """Make a batch for training."""
    waves, targets = zip(*recordings, strict=True)
    return Waves(*pad_waves(waves)), _stack_targets(targets)


def _keep_whole(recordings: list[tuple[Tensor, Any]]) -> tuple[list[Tensor], Tensor | list[str]]:
    """Make a batch for evaluation or, with names in the place of targets, for prediction."""
    waves, targets = zip(*recordings, strict=True)
    if isinstance(targets[0], str):
        return list(waves), list(targets)
    return list(waves), _stack_targets(targets)


def _stack_targets(targets: Sequence[Any]) -> Tensor:
    """Stack labels to (B,) int64, or targets (K,) to (B, K)."""
    return torch.stack(list(targets)) if isinstance(targets[0], Tensor) else torch.tensor(targets)


def _long_recording(samples: Samples, sample_rate: int) -> float | None:
    """Return the length in seconds that nine of ten recordings do not exceed, or None if no length is known."""
    if len(samples) > _TIMED:
        chosen = np.random.default_rng(0).choice(len(samples), _TIMED, replace=False)
        samples = [samples[i] for i in sorted(chosen.tolist())]

    seconds: list[float] = []
    for source, _ in samples:
        length = len(source[1]) / sample_rate if isinstance(source, tuple) else stated_seconds(source)
        if length is not None:
            seconds.append(length)
    return float(np.quantile(seconds, 0.9)) if seconds else None


# They are defined here and not in the class, so that they can be sent to worker processes.
_collate = partial(collate_found, kind="recording", collate=_stack)
_collate_whole = partial(collate_found, kind="recording", collate=_keep_whole)
