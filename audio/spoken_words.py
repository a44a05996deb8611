"""Words spoken by a speech synthesiser: the built-in audio data, which needs no download."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from audio.feature_map import pad_waves, resample_wave
from audio.sets import WORDS, SpeechCommands
from core.errors import InputError, listed
from core.writing import whole_folder

__all__ = ["SpokenWords", "speak_words"]

_RATE = 16_000
_VALIDATION, _TEST = 17, 17  # voices; the others train


class SpokenWords(SpeechCommands):
    """The 35 words of Speech Commands as eSpeak NG speaks them in 104 voices: synthesised speech, not recordings.

    At the first use they are spoken (some seconds) and written in the layout of Speech Commands, 120 MB. As there, a
    clip lasts one second at 16 kHz and the word begins anywhere in it, over a faint noise; each is spoken at a rate and
    pitch of its own. All of that is drawn from a fixed seed, and always the same. The split is by voice: 70 voices
    train, 17 validate, 17 test, so that validation and test voices were never heard.

    Args:
        root: folder that they are written to.
        words: others to speak, in the order of their labels; by default the 35.
        kwargs: arguments of :class:`AudioDataModule`.

    Raises:
        InputError: if a word is none.
    """

    def __init__(self, root: str = "data/spoken_words", *, words: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(root, **kwargs)
        self.classes, self.words = _checked(words), words

    def check_data(self) -> None:
        """Speak the words unless they are there.

        Raises:
            InputError: if the synthesiser is not installed, or the folder holds other words.
        """
        if not self.root.exists():
            speak_words(self.root, self.classes)
        absent = [word for word in self.words or () if not (self.root / word).is_dir()]
        if absent:
            raise InputError(
                f"{self.root} was made without {listed(absent)}; give these words another --data.root, or "
                "delete the folder"
            )
        super().check_data()


def _checked(words: Sequence[str] | None) -> list[str]:
    """The words, by default all, if each can name a folder."""
    chosen = list(WORDS if words is None else words)
    if len(chosen) < 2 or len(set(chosen)) < len(chosen) or not all(map(str.isalpha, chosen)):
        raise InputError(f"words={chosen}; give two or more different ones, of letters alone")
    return chosen


def speak_words(root: Path, words: Sequence[str] | None = None) -> None:
    """Write ``root/<word>/<voice>.wav`` for all words and voices, and the lists of validation and test files.

    The folder appears when it is complete.

    Args:
        root: a folder that is not there yet.
        words: what is spoken; by default the 35 words of Speech Commands.

    Raises:
        InputError: if a word is none, or the synthesiser is not installed or ends with an error.
    """
    words, voices = _checked(words), _voices()
    order = [voices[i].replace(" ", "_") for i in np.random.default_rng(0).permutation(len(voices))]
    held_out = _VALIDATION + _TEST
    parts = {"validation_list.txt": order[-held_out:-_TEST], "testing_list.txt": order[-_TEST:]}
    with whole_folder(root) as folder:
        for word in words:
            (folder / word).mkdir()
        generator = np.random.default_rng(2)
        for voice, word, wave in _spoken(voices, words):
            clip = _one_second(wave, generator)
            soundfile.write(folder / word / f"{voice.replace(' ', '_')}.wav", clip, _RATE, subtype="PCM_16")
        for file, part in parts.items():
            lines = [f"{word}/{voice}.wav" for word in words for voice in sorted(part)]
            (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _one_second(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(16000,): the word at a random place over noise of -40 to -60 dB."""
    clip = generator.standard_normal(_RATE).astype(np.float32) * 10 ** generator.uniform(-3, -2)
    start = generator.integers(0, max(1, _RATE - len(wave)))
    clip[start : start + len(wave)] += wave[: _RATE - start]
    return clip.clip(-1, 1)


def _voices() -> list[str]:
    """All variants of the English voice, which come in the wheel of espeakng-loader (GPL-3)."""
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


def _spoken(voices: list[str], words: list[str]) -> Iterator[tuple[str, str, np.ndarray]]:
    """Every word in every voice, at a rate and pitch of its own, as (T,) float32 in [-1, 1] at 16 kHz."""
    generator = np.random.default_rng(1)
    wanted = [
        (voice, word, int(generator.integers(150, 231)), int(generator.integers(25, 76)))
        for voice in voices
        for word in words
    ]
    rate, waves = _synthesise(wanted)
    for first in range(0, len(wanted), len(words)):
        some = slice(first, first + len(words))
        waves_BT, lengths_B = pad_waves([torch.from_numpy(wave.astype(np.float32) / 2**15) for wave in waves[some]])
        resampled = resample_wave(waves_BT, rate, _RATE).clamp(-1, 1).numpy()
        for (voice, word, *_), wave, n in zip(wanted[some], resampled, lengths_B.tolist(), strict=True):
            yield voice, word, wave[: -(-n * _RATE // rate)]


def _synthesise(wanted: list[tuple[str, str, int, int]]) -> tuple[int, list[np.ndarray]]:
    """Rate and int16 waves of (voice, word, words a minute, pitch)."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "words.npz")
        program = [sys.executable, "-P", str(Path(__file__).with_name("synthesiser.py")), str(file)]
        ended = subprocess.run(program, input=json.dumps(wanted), capture_output=True, text=True)
        if ended.returncode:
            said = ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"]
            raise InputError(f"eSpeak NG {said[-1]}; install espeakng-loader again")
        with np.load(file, allow_pickle=False) as arrays:
            return int(arrays["rate"]), np.split(arrays["samples"], arrays["ends"][:-1])
