"""Recordings on disk: found, decoded by libsndfile, resampled, and reported by name when they are broken."""

import functools
import math
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor, nn
from torchaudio.transforms import Resample

from core.data.folders import find_files
from core.errors import InputError, MissingError

__all__ = ["SUFFIXES", "audio_files", "read_wave", "resample_wave"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""Endings of the files that are taken for recordings."""

_BLOCK = 2**20
"""Samples read at once."""

_SIZE_NOTE = re.compile(r"^ *(?:data|SSND|Riff size|riff) : (\d+) \(should be", re.MULTILINE)
"""libsndfile's note on a wav or aiff with less sound than its header says, or on a shorter file with 64-bit sizes.

Its notes RIFF and FORM on the size of the whole file do not matter: the sound may be complete all the same.
"""

_PIPE_SIZE = 0x7FFFF000
"""A program that writes a wav into a pipe cannot know the size: it writes 0, or a number from here up to 2**32 - 1."""

_CUT_OFF_NOTE = re.compile(r"File ended unexpectedly|Junk after the last page")
"""libsndfile's notes on compressed files that end too early."""


_RATES = (1_000, 768_000)
"""The lowest and the highest sample rate in Hz that a recording may have; others come from damaged headers."""

_MARGIN = 0.01
"""Seconds that are read beyond the end of a part, so that the resampler's filter sees what follows it."""


_MP3_TOLERANCE = 2 * 1_152
"""Samples that an MP3 may lack of its stated length: two frames, since encoders count them in different ways."""


def audio_files(path: Path) -> list[Path]:
    """Return the recording itself, or all recordings below a folder, sorted.

    Raises:
        MissingError: if there is none.
        InputError: if a folder may not be read.
    """
    return find_files(path, SUFFIXES, "recordings")


def read_wave(path: Path, sample_rate: int, *, shortest: int = 1, longest: int | None = None) -> Tensor:
    """Return a recording as one waveform: its channels averaged, at the given rate.

    A recording of which only a part is read is not checked beyond it.

    Args:
        path: a wav, flac, mp3, ogg, opus or aiff file of any bit depth, rate and number of channels.
        sample_rate: samples per second of the result.
        shortest: the number of samples that the result must have at least.
        longest: samples to read from the beginning, at the given rate; by default all.

    Returns:
        (T,) float32 in [-1, 1]; a file of floats may hold louder samples, which are kept.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file cannot be decoded, is cut off, too short, or holds NaN, or if its rate is not between
            1 and 768 kHz.
    """
    if not path.is_file():
        raise MissingError(f"there is no recording {path}; correct the list that names it")

    try:
        with soundfile.SoundFile(path) as file:
            expected = file.frames
            rate = file.samplerate
            if not _RATES[0] <= rate <= _RATES[1]:
                raise InputError(
                    f"{path} has a sample rate of {rate} Hz; expected {_RATES[0]} to {_RATES[1]}. Correct its header, "
                    "or replace it"
                )
            needed = None if longest is None else math.ceil((longest / sample_rate + _MARGIN) * rate)
            samples = _read_samples(file, needed)
            cut_off = _is_cut_off(file.extra_info)
    except InputError:
        raise
    except Exception as error:  # libsndfile's, and those of soundfile, of several types
        raise InputError(f"{path} cannot be decoded as a recording: {error}; replace it") from error

    if path.suffix.lower() == ".mp3":
        expected = expected - _MP3_TOLERANCE if _has_frame_count(path) else 0
    if needed is not None:
        expected = min(expected, needed)
    if cut_off or len(samples) < expected:
        raise InputError(f"{path} is cut off after {len(samples) / rate:.2f} s; replace it")
    if not np.isfinite(samples).all():
        raise InputError(f"{path} holds NaN or infinity; replace it")

    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    wave = resample_wave(torch.from_numpy(mono), rate, sample_rate)[:longest]
    if len(wave) < max(shortest, 1):
        resampled = f", {len(wave)} at {sample_rate} Hz" if rate != sample_rate else ""
        raise InputError(
            f"{path} has {len(samples)} samples at {rate} Hz{resampled}; at least {shortest} are needed for one frame. "
            "Replace it"
        )
    return wave


def _has_frame_count(path: Path) -> bool:
    """Whether an MP3 begins with a frame of Xing or LAME that says how many others follow; else its length is a guess.

    The frame comes after the ID3 tags, whose size has seven bits in each of four bytes.
    """
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):
            tags = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
            file.seek(len(head) + tags)
        else:
            file.seek(0)
        first_frame = file.read(64)

    place = max(first_frame.find(b"Xing"), first_frame.find(b"Info"))
    return place >= 0 and len(first_frame) > place + 7 and bool(first_frame[place + 7] & 1)


def _is_cut_off(notes: str) -> bool:
    """Return whether libsndfile noted that the file holds less sound than it should."""
    sizes = [int(size) for size in _SIZE_NOTE.findall(notes)]
    return bool(_CUT_OFF_NOTE.search(notes)) or any(0 < size < _PIPE_SIZE for size in sizes)


def _read_samples(file: soundfile.SoundFile, needed: int | None) -> np.ndarray:
    """The first samples (T, channels) float32, by default all, also of a file whose header does not know its length."""
    # NumPy converts 16-bit samples faster than libsndfile does.
    dtype = "int16" if file.subtype == "PCM_16" else "float32"

    blocks: list[np.ndarray] = []
    count = 0
    while needed is None or count < needed:
        size = _BLOCK if needed is None else min(_BLOCK, needed - count)
        blocks.append(file.read(size, dtype=dtype, always_2d=True))
        count += len(blocks[-1])
        if len(blocks[-1]) < size:
            break

    samples = blocks[0] if len(blocks) == 1 else np.concatenate(blocks)
    return samples if dtype == "float32" else samples * np.float32(2**-15)


def resample_wave(wave: Tensor, rate: int, to: int) -> Tensor:
    """Change the sample rate of a waveform, band-limited.

    Two rates without a large common divisor, such as 44,101 and 16,000, would need a filter of gigabytes. They are
    replaced by a simpler ratio: for 99 in 100 rates up to 200 kHz it differs by less than 4e-6, for the others, which
    lie a few Hz beside a simple multiple of ``to``, by less than 2e-4.

    Args:
        wave: (..., T).
        rate: its samples per second.
        to: samples per second of the result.

    Returns:
        (..., ceil(T * to / rate)).
    """
    if rate == to:
        return wave
    resampled = _resampler(rate, to)(wave)
    length = -(-wave.shape[-1] * to // rate)
    return nn.functional.pad(resampled, (0, length - resampled.shape[-1]))


@functools.lru_cache
def _resampler(rate: int, to: int) -> Resample:
    """Torchaudio's resampler with a filter of at most about 2**23 weights, kept because they take long to compute."""
    largest = max(1, math.isqrt(2**23 * to // rate))
    ratio = Fraction(rate, to).limit_denominator(largest)
    return Resample(ratio.numerator, ratio.denominator)
