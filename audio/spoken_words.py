"""Words spoken by a speech synthesiser: the built-in audio data, which needs no download."""

import ctypes
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor

from audio.feature_map import pad_waves, resample_wave
from audio.sets import WORDS, SpeechCommands
from core.errors import InputError

__all__ = ["SpokenWords", "speak_words"]

_RATE = 16_000
_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # espeak_Initialize's mode and option, espeak_Synth's flag
_WORDS_A_MINUTE, _PITCH = 1, 3  # espeak_SetParameter's names; the defaults are 175 and 50 of 100
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class SpokenWords(SpeechCommands):
    """The 35 words of Speech Commands as eSpeak NG speaks them in 104 voices: synthesised speech, not recordings.

    At the first use they are spoken (some seconds) and written in the layout of Speech Commands, 120 MB. As there, a
    clip lasts one second at 16 kHz and the word begins anywhere in it, over a faint noise; each is spoken at a rate and
    pitch of its own. All of that is drawn from a fixed seed, and the same in every fresh process. The split is by
    voice: 70 voices train, 17 validate, 17 test, so that validation and test voices were never heard.

    Args:
        root: folder that they are written to.
        kwargs: arguments of :class:`AudioDataModule`.
    """

    def __init__(self, root: str = "data/spoken_words", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    def check_data(self) -> None:
        """Speak the words unless they are there.

        Raises:
            InputError: if the synthesiser is not installed.
        """
        if not self.root.exists():
            speak_words(self.root)
        super().check_data()


def speak_words(root: Path) -> None:
    """Write ``root/<word>/<voice>.wav`` for all words and voices, and the lists of validation and test files.

    The folder appears when it is complete.

    Raises:
        InputError: if the synthesiser is not installed.
    """
    voices = _Voices()
    names = voices.names()
    order = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    unfinished = root.with_name(f"{root.name}.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    for word in WORDS:
        (unfinished / word).mkdir(parents=True)
    generator = np.random.default_rng(1)
    for voice in names:
        for word, wave in zip(WORDS, voices.speak(WORDS, voice, generator), strict=True):
            clip = _one_second(wave.numpy(), generator)
            soundfile.write(unfinished / word / f"{voice}.wav", clip, _RATE, subtype="PCM_16")
    for file, part in (("validation_list.txt", order[70:87]), ("testing_list.txt", order[87:])):
        lines = [f"{word}/{voice}.wav" for word in WORDS for voice in sorted(part)]
        (unfinished / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    unfinished.rename(root)


def _one_second(wave: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """(16000,): the word at a random place over noise of -40 to -60 dB."""
    clip = generator.standard_normal(_RATE).astype(np.float32) * 10 ** generator.uniform(-3, -2)
    start = generator.integers(0, max(1, _RATE - len(wave)))
    clip[start : start + len(wave)] += wave[: _RATE - start]
    return clip.clip(-1, 1)


class _Voices:
    """eSpeak NG through ctypes; the library and its voices come in the wheel of espeakng-loader (GPL-3)."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError:
            raise InputError(
                "the built-in words are spoken by eSpeak NG; type in LarKit's folder: pip install -e '.[speech]'"
            ) from None
        self.folder = Path(espeakng_loader.get_data_path())
        self.espeak = ctypes.CDLL(espeakng_loader.get_library_path())
        self.rate: int = self.espeak.espeak_Initialize(_SYNCHRONOUS, 0, str(self.folder).encode(), _DONT_EXIT)
        if self.rate <= 0:
            raise InputError(f"eSpeak NG cannot read its voices in {self.folder}; install espeakng-loader again")
        self.parts: list[np.ndarray] = []
        self.callback = _Callback(self._receive)  # kept, since the library calls it later
        self.espeak.espeak_SetSynthCallback(self.callback)
        size, number = ctypes.c_size_t, ctypes.c_uint
        pointer = ctypes.c_void_p
        self.espeak.espeak_Synth.argtypes = [
            *(ctypes.c_char_p, size, number, ctypes.c_int, number, number, pointer, pointer)
        ]

    def names(self) -> list[str]:
        """All variants of the English voice."""
        return sorted(path.name.replace(" ", "_") for path in (self.folder / "voices" / "!v").iterdir())

    def speak(self, words: Sequence[str], voice: str, generator: np.random.Generator) -> list[Tensor]:
        """Each word as (T_i,) float32 in [-1, 1] at 16 kHz, at a rate and pitch from the generator."""
        waves_BT, lengths_B = pad_waves([self._speak(word, voice, generator) for word in words])
        resampled = resample_wave(waves_BT, self.rate, _RATE).clamp(-1, 1)
        return [wave[: -(-int(n) * _RATE // self.rate)] for wave, n in zip(resampled, lengths_B, strict=True)]

    def _speak(self, word: str, voice: str, generator: np.random.Generator) -> Tensor:
        self.parts.clear()
        self.espeak.espeak_ng_SetRandSeed(0)  # some voices have breath, which is noise
        text = word.encode()
        chosen = self.espeak.espeak_SetVoiceByName(f"en+{voice.replace('_', ' ')}".encode())
        self.espeak.espeak_SetParameter(_WORDS_A_MINUTE, int(generator.integers(150, 231)), 0)
        self.espeak.espeak_SetParameter(_PITCH, int(generator.integers(25, 76)), 0)
        spoken = self.espeak.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        if chosen or spoken or not self.parts:
            raise RuntimeError(f"eSpeak NG did not speak {word!r} in voice {voice!r}")
        return torch.from_numpy(np.concatenate(self.parts).astype(np.float32) / 2**15)

    def _receive(self, wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            self.parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0
