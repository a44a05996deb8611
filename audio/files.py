"""Recordings on disk: found, decoded by libsndfile, resampled, and named when they are broken."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import Dataset

from audio.feature_map import resample_wave
from core.errors import InputError, MissingError
from core.files import find_files
from core.samples import Samples, read_or_skip

__all__ = ["SUFFIXES", "Recordings", "audio_files", "cut_windows", "read_wave"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")

_BLOCK = 2**20  # samples read at once
_SIZE = re.compile(r"^ *(?:data|SSND|Riff size|riff) : (\d+) \(should be", re.MULTILINE)
"""libsndfile's note on the sound of a wav or aiff, or on a file of 64-bit sizes, that is shorter than its header says.
What the lines RIFF and FORM say of the whole file does not matter: its sound may be complete."""
_PIPE = 0x7FFFF000
"""A program that writes a wav into a pipe does not know its size: it takes 0, or one from here on up to 2**32 - 1."""
_CUT = re.compile(r"File ended unexpectedly|Junk after the last page")


def audio_files(path: Path) -> list[Path]:
    """The recording itself, or all recordings below a folder, sorted.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    return find_files(path, SUFFIXES, "recordings")


def read_wave(path: Path, sample_rate: int, *, shortest: int = 1) -> Tensor:
    """A recording as a waveform (T,) float32: channels averaged, at the given rate, in [-1, 1] unless it is clipped.

    Args:
        path: wav, flac, mp3, ogg, aiff; any bit depth, rate and number of channels.
        sample_rate: samples a second of the result.
        shortest: samples that it must have at least.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file cannot be decoded, is cut off, too short, or holds NaN.
    """
    if not path.is_file():
        raise MissingError(f"there is no recording {path}; correct the list that names it")
    try:
        with soundfile.SoundFile(path) as file:
            expected, rate = file.frames, file.samplerate
            samples = _read_all(file)
            cut = _is_cut(file.extra_info)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise InputError(f"{path} cannot be decoded as a recording: {error}; replace it") from error
    estimated = path.suffix.lower() == ".mp3"
    if cut or (len(samples) < expected and not estimated):
        raise InputError(f"{path} is cut off after {len(samples) / rate:.2f} s; replace it")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds NaN or infinity; replace it")
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    wave = resample_wave(torch.from_numpy(mono), rate, sample_rate)
    if len(wave) < max(shortest, 1):
        resampled = f", {len(wave)} at {sample_rate} Hz" if rate != sample_rate else ""
        raise InputError(
            f"{path} has {len(samples)} samples at {rate} Hz{resampled}; at least {shortest} are needed for one frame. "
            "Replace it"
        )
    return wave


def _is_cut(notes: str) -> bool:
    return bool(_CUT.search(notes)) or any(0 < int(size) < _PIPE for size in _SIZE.findall(notes))


def _read_all(file: soundfile.SoundFile) -> np.ndarray:
    """(T, channels) float32, also of a file whose header does not know its length."""
    kind = "int16" if file.subtype == "PCM_16" else "float32"  # libsndfile's own conversion takes longer than NumPy's
    blocks = [file.read(_BLOCK, dtype=kind, always_2d=True)]
    while len(blocks[-1]) == _BLOCK:
        blocks.append(file.read(_BLOCK, dtype=kind, always_2d=True))
    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return samples if kind == "float32" else samples * np.float32(2**-15)


def cut_windows(wave: Tensor, size: int, overlap: float) -> list[Tensor]:
    """Overlapping windows that cover a waveform (T,): itself if it fits into one, else pieces of one length.

    The last window ends where the waveform ends.

    Args:
        wave: (T,).
        size: samples of a window.
        overlap: share that neighbours have in common, in [0, 1).
    """
    if len(wave) <= size:
        return [wave]
    step = max(1, round(size * (1 - overlap)))
    starts = [*range(0, len(wave) - size, step), len(wave) - size]
    return [wave[start : start + size] for start in starts]


class Recordings(Dataset[tuple[Tensor, Any] | None]):
    """Recordings, each with a target.

    Args:
        files: (path, target) pairs.
        sample_rate: samples a second.
        shortest: samples that each must have at least.
        longest: samples to keep from the start, or None for all.
        skip_broken: leave out files that cannot be used, with a warning, instead of stopping.
    """

    def __init__(
        self,
        files: Samples,
        sample_rate: int,
        *,
        shortest: int = 1,
        longest: int | None = None,
        skip_broken: bool = False,
    ) -> None:
        self.files, self.sample_rate = files, sample_rate
        self.shortest, self.longest, self.skip_broken = shortest, longest, skip_broken

    def __len__(self) -> int:
        """Number of files."""
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | None:
        """The waveform (T,) and target of one file, or None if it is broken and may be skipped.

        Raises:
            MissingError: if the file is not there.
            InputError: naming the file that cannot be used.
        """
        path, target = self.files[index]
        wave = read_or_skip(
            lambda: read_wave(path, self.sample_rate, shortest=self.shortest), skip_broken=self.skip_broken
        )
        return None if wave is None else (wave[: self.longest], target)
