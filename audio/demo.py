"""The built-in audio data: words spoken by a speech synthesizer, which need no download."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
import torch

from audio.feature_map import pad_waves
from audio.files import resample_wave
from audio.sets import WORDS, SpeechCommands
from core.errors import InputError, listed
from core.io.atomic import atomic_folder

__all__ = ["SpokenWords", "speak_words"]

_RATE = 16_000
_VALIDATION_VOICES = 17
_TEST_VOICES = 17  # all others are for training


class SpokenWords(SpeechCommands):
    """The 35 words of Speech Commands as eSpeak NG speaks them in 104 voices: synthesized speech, not recordings.

    They are spoken at first use, which takes a few seconds, and written in the layout of Speech Commands, 120 MB. As in
    the original, a clip lasts one second at 16 kHz. The word begins anywhere in it, over faint noise, and each clip has
    its own rate and pitch. All of this is drawn from a fixed seed, so the files are always the same. The split is by
    voice: 70 voices are for training, 17 others for validation, and 17 others for testing.

    Args:
        root: folder to which the clips are written.
        words: other words to speak, in the order of their labels; by default the 35.
        kwargs: arguments of :class:`AudioDataModule`.

    Raises:
        InputError: if there are fewer than two words, or a word is repeated or has other characters than letters.
    """

    def __init__(self, root: str = "data/spoken_words", *, words: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.chosen = words
        self.words = _check_words(words)

    def check_data(self) -> None:
        """Speak the words if their folder does not exist yet.

        Raises:
            InputError: if the synthesizer is not installed, or the folder holds other words.
        """
        if not self.root.exists():
            speak_words(self.root, self.words)

        absent = [word for word in self.chosen or () if not (self.root / word).is_dir()]
        if absent:
            raise InputError(
                f"{self.root} was made without {listed(absent)}; give these words another --data.root, or "
                "delete the folder"
            )


def _check_words(words: Sequence[str] | None) -> list[str]:
    """Return the words, by default all 35, and check that each can be the name of a folder."""
    chosen = list(WORDS if words is None else words)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not all(map(str.isalpha, chosen)):
        raise InputError(f"words={chosen}; give two or more different ones, which consist of letters")
    return chosen


def speak_words(root: Path, words: Sequence[str] | None = None) -> None:
    """Write ``root/<word>/<voice>.wav`` for all words and voices, and the lists of validation and test files.

    The folder appears when it is complete.

    Args:
        root: a folder that does not exist yet.
        words: the words to speak; by default the 35 words of Speech Commands.

    Raises:
        InputError: if a word cannot be spoken, or the synthesizer is not installed or fails.
    """
    words = _check_words(words)
    voices = _voices()

    shuffled = [_stem(voices[i]) for i in np.random.default_rng(0).permutation(len(voices))]
    test = shuffled[-_TEST_VOICES:]
    validation = shuffled[-_TEST_VOICES - _VALIDATION_VOICES : -_TEST_VOICES]

    with atomic_folder(root) as folder:
        for word in words:
            (folder / word).mkdir()

        generator = np.random.default_rng(2)
        for utterance, wave in _speak(voices, words):
            file = folder / utterance.word / f"{_stem(utterance.voice)}.wav"
            soundfile.write(file, _one_second(wave, generator), _RATE, subtype="PCM_16")

        for name, part in (("validation_list.txt", validation), ("testing_list.txt", test)):
            lines = [f"{word}/{stem}.wav" for word in words for stem in sorted(part)]
            (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _stem(voice: str) -> str:
    """Return the part of a file name that stands for a voice."""
    return voice.replace(" ", "_")


def _one_second(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return a clip (16000,) float32 with the word at a random position over faint noise."""
    clip = generator.standard_normal(_RATE).astype(np.float32)
    clip *= 10 ** generator.uniform(-3, -2)  # noise of -60 to -40 dB
    start = generator.integers(0, max(1, _RATE - len(wave)))
    clip[start : start + len(wave)] += wave[: _RATE - start]
    return clip.clip(-1, 1)


def _voices() -> list[str]:
    """Return the names of all variants of the English voice, which the package espeakng-loader (GPL-3) has."""
    if find_spec("espeakng_loader") is None:
        raise InputError(
            "the built-in words are spoken by eSpeak NG; type in LarKit's folder: pip install -e '.[speech]'"
        )
    import espeakng_loader

    folder = Path(espeakng_loader.get_data_path()) / "voices" / "!v"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if not names:
        raise InputError(f"eSpeak NG has no voices in {folder}; install espeakng-loader again")
    return names


class _Utterance(NamedTuple):
    """What the synthesizer is asked to say. The program in synthesizer.py reads the fields in this order."""

    voice: str
    word: str
    words_per_minute: int
    pitch: int  # 0 to 100


def _speak(voices: list[str], words: list[str]) -> Iterator[tuple[_Utterance, np.ndarray]]:
    """Yield every word in every voice, with its own rate and pitch, as (T,) float32 in [-1, 1] at 16 kHz."""
    generator = np.random.default_rng(1)
    utterances: list[_Utterance] = []
    for voice in voices:
        for word in words:
            words_per_minute = int(generator.integers(150, 231))
            pitch = int(generator.integers(25, 76))
            utterances.append(_Utterance(voice, word, words_per_minute, pitch))

    rate, waves = _synthesize(utterances)

    # All words of a voice are resampled together.
    for first in range(0, len(utterances), len(words)):
        chosen = slice(first, first + len(words))
        floats = [torch.from_numpy(wave.astype(np.float32) / 2**15) for wave in waves[chosen]]
        waves_BT, lengths_B = pad_waves(floats)
        resampled_BT = resample_wave(waves_BT, rate, _RATE).clamp(-1, 1).numpy()

        for utterance, wave, length in zip(utterances[chosen], resampled_BT, lengths_B.tolist(), strict=True):
            resampled_length = -(-length * _RATE // rate)  # rounded up
            yield utterance, wave[:resampled_length]


def _synthesize(utterances: list[_Utterance]) -> tuple[int, list[np.ndarray]]:
    """Run the synthesizer in its own process, and return the sample rate and the waveforms (T,) int16."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "words.npz")
        program = [sys.executable, "-P", str(Path(__file__).with_name("synthesizer.py")), str(file)]
        result = subprocess.run(program, input=json.dumps(utterances), capture_output=True, text=True)
        if result.returncode != 0:
            lines = result.stderr.strip().splitlines() or [f"ended with status {result.returncode}"]
            raise InputError(f"eSpeak NG {lines[-1]}; install espeakng-loader again")

        with np.load(file, allow_pickle=False) as arrays:
            return int(arrays["rate"]), np.split(arrays["samples"], arrays["ends"][:-1])
