"""A program that speaks words with eSpeak NG, in its own process, so that a crash of the library ends nothing else.

:mod:`audio.demo` runs this file and does not import it. The program reads a JSON list of
``[voice, word, words per minute, pitch]`` from standard input, and writes the .npz file that is its argument:
``samples`` (int16, one word after the other), their ``ends``, and the sample ``rate``.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

import espeakng_loader
import numpy as np

# Constants of eSpeak NG's speak_lib.h
_SYNCHRONOUS = 2  # mode of espeak_Initialize
_DONT_EXIT = 0x8000  # option of espeak_Initialize
_UTF8 = 1  # flag of espeak_Synth
_WORDS_PER_MINUTE = 1  # parameter of espeak_SetParameter, by default 175
_PITCH = 3  # parameter of espeak_SetParameter, by default 50 of 100
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _main() -> None:
    voices = espeakng_loader.get_data_path()
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, str(voices).encode(), _DONT_EXIT)
    if rate <= 0:
        sys.exit(f"cannot read its voices in {voices}")

    waves = list(_speak(espeak, json.load(sys.stdin)))
    ends = np.cumsum([len(wave) for wave in waves])
    np.savez(sys.argv[1], rate=np.array(rate), ends=ends, samples=np.concatenate(waves))


def _speak(espeak: ctypes.CDLL, utterances: list[tuple[str, str, int, int]]) -> Iterator[np.ndarray]:
    """Yield the waveform (T,) int16 of each utterance."""
    parts: list[np.ndarray] = []

    # The library calls this with one part of the waveform after the other.
    @_Callback
    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(receive)
    espeak.espeak_Synth.argtypes = [
        ctypes.c_char_p,  # text
        ctypes.c_size_t,  # size of the text in bytes
        ctypes.c_uint,  # position to start from
        ctypes.c_int,  # kind of that position
        ctypes.c_uint,  # position to end at
        ctypes.c_uint,  # flags
        ctypes.c_void_p,  # unused here
        ctypes.c_void_p,  # unused here
    ]
    for voice, word, words_per_minute, pitch in utterances:
        parts.clear()
        text = word.encode()
        espeak.espeak_ng_SetRandSeed(0)  # some voices breathe, which is random noise
        not_chosen = espeak.espeak_SetVoiceByName(f"en+{voice}".encode())
        espeak.espeak_SetParameter(_WORDS_PER_MINUTE, words_per_minute, 0)
        espeak.espeak_SetParameter(_PITCH, pitch, 0)
        not_spoken = espeak.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        if not_chosen or not_spoken or not parts:
            sys.exit(f"does not speak {word!r} in voice {voice!r}")

        yield np.concatenate(parts)


if __name__ == "__main__":
    _main()
