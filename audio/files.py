"""Find recordings, decode them with libsndfile, and resample them; errors name the file."""

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

__all__ = ["SUFFIXES", "audio_files", "read_wave", "resample_wave", "stated_seconds"]

SUFFIXES = (".aif", ".aiff", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".wav")
"""Suffixes of the files that are found in folders."""

_BLOCK = 2**20
"""Number of samples to read at once."""

_SIZE_NOTE = re.compile(r"^ *(?:data|SSND|Riff size|riff) : (\d+) \(should be", re.MULTILINE)
"""libsndfile's note on a wav or aiff file with less sound than its header says, or on a short file with 64-bit sizes.

Its notes on the size of other whole files (RIFF, FORM) do not matter, since the sound may be complete all the same.
"""

_PIPE_SIZE = 0x7FFFF000
"""Smallest size that stands for an unknown one. A program that writes a wav file to a pipe writes 0 or such a size."""

_CUT_OFF_NOTE = re.compile(r"File ended unexpectedly|Junk after the last page")
"""libsndfile's notes on compressed files that end too early."""

_RATES = (1_000, 768_000)
"""Lowest and highest sample rate of a recording in Hz; other rates come from damaged headers."""

_MARGIN = 0.01
"""Seconds to read beyond the end of a part, so that the resampling filter sees what follows it."""

_UNKNOWN = 2**62
"""Number of samples from which on a header stands for an unknown length."""

_MP3_TOLERANCE = 2 * 1_152
"""Number of samples that an MP3 may lack of its stated length: two frames, since encoders count them differently."""


def audio_files(path: Path) -> list[Path]:
    """Find all recordings below a folder, sorted; a path to a recording gives that recording alone.

    Raises:
        MissingError: if there is no recording.
        InputError: if there is no permission to read a folder.
    """
    return find_files(path, SUFFIXES, "recordings")


def stated_seconds(path: Path) -> float | None:
    """Return the length of a recording by its header, in seconds, or None if it cannot be read or does not know."""
    try:
        info = soundfile.info(path)
    except Exception:  # a broken file is named when it is read
        return None
    return info.frames / info.samplerate if 0 < info.frames < _UNKNOWN and info.samplerate > 0 else None


def read_wave(
    path: Path,
    sample_rate: int,
    *,
    shortest: int = 1,
    longest: int | None = None,
    place: float = 0.0,
) -> Tensor:
    """Decode a recording, average its channels, and resample it.

    If only a part is read, the rest of the file is not checked.

    Args:
        path: a wav, flac, mp3, ogg, opus or aiff file of any bit depth, rate and number of channels.
        sample_rate: samples per second of the result.
        shortest: smallest number of samples of the result.
        longest: largest number of samples of the result; only this part of the file is read. By default, all of it is.
        place: where this part lies in a longer recording, from 0 for its beginning to 1 for its end.

    Returns:
        A waveform (T,) float32 in [-1, 1]. Files of floats may hold louder samples, which are kept.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file cannot be decoded, is cut off or too short, holds NaN or infinity, or has a rate that is
            not between 1 and 768 kHz.
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

            # Number of samples to read, at the rate of the file.
            needed = None if longest is None else math.ceil((longest / sample_rate + _MARGIN) * rate)
            if needed is not None and place > 0 and needed < file.frames < _UNKNOWN and file.seekable():
                start = int(place * (file.frames - needed))
                file.seek(start)
                expected -= start
            samples = _read_samples(file, needed)
            cut_off = _is_cut_off(file.extra_info)
    except InputError:
        raise
    except Exception as error:  # libsndfile and soundfile raise errors of several types
        raise InputError(f"{path} cannot be decoded as a recording: {error}; replace it") from error

    # The stated length is only a guess for an MP3 without a frame count.
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
    """Return whether the first frame of an MP3 is a Xing or LAME header that holds the number of frames.

    This frame comes after the ID3 tags, whose size is stored in four bytes of seven bits each.
    """
    with path.open("rb") as file:
        head = file.read(10)
        if head.startswith(b"ID3"):
            tags_size = sum(byte << shift for byte, shift in zip(head[6:], (21, 14, 7, 0), strict=False))
            file.seek(len(head) + tags_size)
        else:
            file.seek(0)
        first_frame = file.read(64)

    # Four bytes of flags follow the name; the lowest bit says that the number of frames is there.
    name = max(first_frame.find(b"Xing"), first_frame.find(b"Info"))
    flags = first_frame[name + 4 : name + 8] if name >= 0 else b""
    return len(flags) == 4 and bool(flags[-1] & 1)


def _is_cut_off(notes: str) -> bool:
    """Return whether libsndfile noted that the file holds less sound than it should."""
    sizes = [int(size) for size in _SIZE_NOTE.findall(notes)]
    return bool(_CUT_OFF_NOTE.search(notes)) or any(0 < size < _PIPE_SIZE for size in sizes)


def _read_samples(file: soundfile.SoundFile, needed: int | None) -> np.ndarray:
    """Read the first samples of a file, by default all, even if its header does not state its length.

    Returns:
        Samples (T, channels) float32.
    """
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
    """Change the sample rate of waveforms, with a band-limiting filter.

    Two rates without a large common divisor, such as 44,101 and 16,000, would need a filter of gigabytes, so their
    ratio is replaced by a simpler one. It differs by less than 4e-6 for 99 of 100 rates up to 200 kHz, and by less than
    2e-4 for the others, which are within a few Hz of a simple multiple of ``to``.

    Args:
        wave: waveforms (..., T).
        rate: samples per second of the waveforms.
        to: samples per second of the result.

    Returns:
        Waveforms (..., ceil(T * to / rate)).
    """
    if rate == to:
        return wave

    resampled = _resampler(rate, to)(wave)
    length = -(-wave.shape[-1] * to // rate)  # rounded up
    return nn.functional.pad(resampled, (0, length - resampled.shape[-1]))


@functools.lru_cache
def _resampler(rate: int, to: int) -> Resample:
    """Build torchaudio's resampler with a filter of at most about 2**23 weights, which take long to compute."""
    largest = max(1, math.isqrt(2**23 * to // rate))
    ratio = Fraction(rate, to).limit_denominator(largest)
    return Resample(ratio.numerator, ratio.denominator)
