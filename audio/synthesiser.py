"""eSpeak NG in a process of its own, where its voices start afresh and its faults end nothing else.

Run as a program, not imported: it reads ``[[voice, word, words a minute, pitch], ...]`` as JSON from standard input
and writes the ``samples`` of all words, int16, one after the other, their ``ends`` and ``rate`` to the named .npz file.
"""

import ctypes
import json
import sys
from collections.abc import Iterator
from typing import Any

import espeakng_loader
import numpy as np

_SYNCHRONOUS, _DONT_EXIT, _UTF8 = 2, 0x8000, 1  # espeak_Initialize's mode and option, espeak_Synth's flag
_WORDS_A_MINUTE, _PITCH = 1, 3  # espeak_SetParameter's names; the defaults are 175 and 50 of 100
_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


def _main() -> None:
    voices = espeakng_loader.get_data_path()
    espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    rate = espeak.espeak_Initialize(_SYNCHRONOUS, 0, str(voices).encode(), _DONT_EXIT)
    if rate <= 0:
        sys.exit(f"cannot read its voices in {voices}")
    waves = list(_speak(espeak, json.load(sys.stdin)))
    np.savez(sys.argv[1], rate=np.array(rate), ends=np.cumsum([len(w) for w in waves]), samples=np.concatenate(waves))


def _speak(espeak: ctypes.CDLL, wanted: list[tuple[str, str, int, int]]) -> Iterator[np.ndarray]:
    parts: list[np.ndarray] = []

    @_Callback
    def receive(wave: Any, count: int, events: Any) -> int:
        if wave and count > 0:
            parts.append(np.ctypeslib.as_array(wave, (count,)).copy())
        return 0

    espeak.espeak_SetSynthCallback(receive)
    size, number, pointer = ctypes.c_size_t, ctypes.c_uint, ctypes.c_void_p
    espeak.espeak_Synth.argtypes = [ctypes.c_char_p, size, number, ctypes.c_int, number, number, pointer, pointer]
    for voice, word, words_a_minute, pitch in wanted:
        parts.clear()
        espeak.espeak_ng_SetRandSeed(0)  # some voices have breath, which is noise
        text = word.encode()
        chosen = espeak.espeak_SetVoiceByName(f"en+{voice}".encode())
        espeak.espeak_SetParameter(_WORDS_A_MINUTE, words_a_minute, 0)
        espeak.espeak_SetParameter(_PITCH, pitch, 0)
        spoken = espeak.espeak_Synth(text, len(text) + 1, 0, 0, 0, _UTF8, None, None)
        if chosen or spoken or not parts:
            sys.exit(f"does not speak {word!r} in voice {voice!r}")
        yield np.concatenate(parts)


if __name__ == "__main__":
    _main()
