"""Recordings on disk: formats, rates and channels, and unusable files of each kind."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_sounds import tone, write_tone
from torch import Tensor
from torch.testing import assert_close

from audio.data import Recordings
from audio.files import audio_files, read_wave
from core.errors import InputError, MissingError

EXACT = [("wav", "PCM_16", 2**-15), ("wav", "PCM_24", 2**-23), ("wav", "PCM_32", 2**-23), ("wav", "FLOAT", 0.0)]
EXACT += [("wav", "DOUBLE", 0.0), ("wav", "PCM_U8", 2**-7), ("flac", "PCM_16", 2**-15), ("flac", "PCM_24", 2**-23)]
EXACT += [("aiff", "PCM_16", 2**-15), ("aiff", "PCM_24", 2**-23)]


def _write(file: Path, samples: Any, rate: int = 16_000, **options: Any) -> Path:
    soundfile.write(file, samples, rate, **options)
    return file


def _peak(wave: Tensor, rate: int) -> float:
    """Return the strongest frequency in Hz."""
    spectrum = torch.fft.rfft(wave * torch.hann_window(len(wave))).abs()
    return float(spectrum.argmax()) * rate / len(wave)


@pytest.mark.parametrize(("suffix", "subtype", "step"), EXACT)
def test_samples_of_any_bit_depth(suffix: str, subtype: str, step: float, tmp_path: Path) -> None:
    samples = tone(440.0, 4_000, 16_000)
    wave = read_wave(_write(tmp_path / f"a.{suffix}", samples, subtype=subtype), 16_000)
    assert wave.dtype == torch.float32
    assert_close(wave, torch.from_numpy(samples), rtol=0, atol=step)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [("ogg", {}), ("oga", {"format": "OGG"}), ("mp3", {}), ("opus", {"format": "OGG", "subtype": "OPUS"})],
)
def test_compressed_recordings_keep_length_and_tone(suffix: str, options: dict[str, str], tmp_path: Path) -> None:
    samples = tone(440.0, 32_000, 16_000)
    wave = read_wave(_write(tmp_path / f"a.{suffix}", samples, **options), 16_000)
    assert len(wave) == 32_000
    assert _peak(wave, 16_000) == pytest.approx(440, abs=1)
    assert_close(wave[1_000:-1_000], torch.from_numpy(samples)[1_000:-1_000], rtol=0, atol=0.15)


@pytest.mark.parametrize("frequency", [300.0, 2_500.0])
@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000])
def test_resampling_keeps_duration_and_tone(rate: int, frequency: float, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", tone(frequency, rate + 7, rate), rate)
    wave = read_wave(file, 16_000)
    assert len(wave) == math.ceil((rate + 7) * 16_000 / rate)
    assert _peak(wave, 16_000) == pytest.approx(frequency, abs=1.5)
    assert float(wave[1_000:-1_000].std()) == pytest.approx(0.4 / 2**0.5, rel=0.02)


def test_resampling_leaves_out_what_the_lower_rate_cannot_hold(tmp_path: Path) -> None:
    both = tone(1_000.0, 48_000, 48_000) + tone(10_000.0, 48_000, 48_000)
    wave = read_wave(_write(tmp_path / "a.wav", both, 48_000), 16_000)
    assert _peak(wave, 16_000) == pytest.approx(1_000, abs=1.5)
    spectrum = torch.fft.rfft(wave).abs()
    assert spectrum[5_500:6_500].max() < 0.05 * spectrum[1_000]  # where 10 kHz would fold to


def test_channels_are_averaged(tmp_path: Path) -> None:
    channels = np.stack([tone(300.0, 900), tone(900.0, 900), np.zeros(900, np.float32)], axis=1)
    wave = read_wave(_write(tmp_path / "a.wav", channels, 8_000, subtype="FLOAT"), 8_000)
    assert_close(wave, torch.from_numpy(channels.mean(axis=1)))


@settings(max_examples=25)
@given(st.integers(1, 400), st.integers(1, 3), st.sampled_from([8_000, 16_000, 44_100]))
def test_any_short_recording_is_read_whole(tmp_path_factory: Any, samples: int, channels: int, rate: int) -> None:
    file = tmp_path_factory.getbasetemp() / "short.wav"
    _write(file, np.random.default_rng(samples).uniform(-1, 1, (samples, channels)), rate)
    assert read_wave(file, 16_000).shape == (math.ceil(samples * 16_000 / rate),)


@pytest.mark.parametrize("share", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff"])
def test_cut_off_recording(suffix: str, share: float, tmp_path: Path) -> None:
    file = write_tone(tmp_path / f"a.{suffix}", 440.0, 80_000)
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(InputError, match=rf"{file} (is cut off after \d\.\d\d s|cannot be decoded).*replace it"):
        read_wave(file, 8_000)


@pytest.mark.parametrize("kind", ["RF64", "W64", "WAVEX"])
@pytest.mark.parametrize("share", [0.5, 0.99])
def test_cut_off_wav_of_another_header(kind: str, share: float, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", tone(440.0, 8_000), 8_000, format=kind, subtype="PCM_16")
    assert len(read_wave(file, 8_000)) == 8_000
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(InputError, match=f"{file} is cut off after"):
        read_wave(file, 8_000)


def test_cut_off_ogg_of_one_page(tmp_path: Path) -> None:
    file = write_tone(tmp_path / "a.ogg", 440.0)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{file} (has 0 samples|cannot be decoded)"):
        read_wave(file, 8_000)


@pytest.mark.parametrize(("suffix", "options"), [("ogg", {}), ("opus", {"format": "OGG", "subtype": "OPUS"})])
def test_cut_off_compressed_recording(suffix: str, options: dict[str, str], tmp_path: Path) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 160_000)
    file = _write(tmp_path / f"a.{suffix}", noise, **options)
    assert len(read_wave(file, 16_000)) == 160_000
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(InputError, match=f"{file} is cut off after"):
        read_wave(file, 16_000)


@pytest.mark.parametrize(("suffix", "place"), [("wav", slice(40, 44)), ("flac", slice(22, 26))])
def test_recording_that_was_written_into_a_pipe(suffix: str, place: slice, tmp_path: Path) -> None:
    """The header then holds the largest number (wav) or none (flac, which libsndfile cannot read) as the length."""
    file = write_tone(tmp_path / f"a.{suffix}", 440.0, 8_000)
    content = bytearray(file.read_bytes())
    content[place] = b"\xff" * 4 if suffix == "wav" else bytes(4)
    file.write_bytes(content)
    if suffix == "wav":
        assert len(read_wave(file, 8_000)) == 8_000
    else:
        with pytest.raises(InputError, match=f"{file} cannot be decoded as a recording: .*; replace it"):
            read_wave(file, 8_000)


@pytest.mark.parametrize("size", [0x7FFFF000, 0x7FFFFFDB, 0x7FFFFFFF, 0x80000000, 0xFFFFFFD8, 0xFFFFFFFF])
@pytest.mark.parametrize("more", [0, 36])
def test_sizes_that_programs_write_into_a_pipe(size: int, more: int, tmp_path: Path) -> None:
    file = write_tone(tmp_path / "a.wav", 440.0, 8_000)
    content = bytearray(file.read_bytes())
    assert content[36:40] == b"data"
    content[4:8], content[40:44] = (min(s, 2**32 - 1).to_bytes(4, "little") for s in (size + more, size))
    file.write_bytes(content)
    assert len(read_wave(file, 8_000)) == 8_000


@pytest.mark.parametrize(("data", "cut"), [(16_000, False), (16_002, True), (0x7FFFEFFE, True)])
@pytest.mark.parametrize("riff", [0, 16_036, 16_048, 0x7FFFF024, 0xFFFFFFFF])
def test_size_of_the_sound_says_whether_it_is_cut_off(riff: int, data: int, cut: bool, tmp_path: Path) -> None:
    file = write_tone(tmp_path / "a.wav", 440.0, 8_000)
    content = bytearray(file.read_bytes())
    content[4:8], content[40:44] = riff.to_bytes(4, "little"), data.to_bytes(4, "little")
    file.write_bytes(content)
    if cut:
        with pytest.raises(InputError, match=rf"{file} is cut off after 1\.00 s; replace it"):
            read_wave(file, 8_000)
    else:
        assert len(read_wave(file, 8_000)) == 8_000


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
@pytest.mark.parametrize("content", [b"", b"RIFF", b"these are words, not sounds\n" * 50])
def test_empty_file_and_text(content: bytes, suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file} cannot be decoded as a recording: .*; replace it"):
        read_wave(file, 16_000)


@pytest.mark.parametrize(
    ("samples", "rate", "after", "said"),
    [(0, 16_000, 0, ""), (1, 16_000, 1, ""), (100, 8_000, 200, ", 200 at 16000 Hz")],
)
def test_recording_shorter_than_a_frame(samples: int, rate: int, after: int, said: str, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", np.zeros(samples), rate)
    message = rf"{file} has {samples} samples at {rate} Hz{said}; at least 400 are needed"
    with pytest.raises(InputError, match=message):
        read_wave(file, 16_000, shortest=400)
    if samples:
        assert len(read_wave(file, 16_000, shortest=after)) == after


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_samples_that_are_no_numbers(value: float, tmp_path: Path) -> None:
    samples = tone(440.0, 900)
    samples[5] = value
    file = _write(tmp_path / "a.wav", samples, subtype="FLOAT")
    with pytest.raises(InputError, match=f"{file} holds NaN or infinity; replace it"):
        read_wave(file, 16_000)


@pytest.mark.parametrize("rate", [1, 999, 768_001])
def test_rates_that_no_recording_has(rate: int, tmp_path: Path) -> None:
    file = _write(tmp_path / "a.wav", tone(440.0, 4_000), 8_000)
    content = bytearray(file.read_bytes())
    content[24:28] = rate.to_bytes(4, "little")
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{file} has a sample rate of {rate} Hz; expected 1000 to 768000"):
        read_wave(file, 16_000)


@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_only_the_part_that_is_needed_is_decoded(
    suffix: str, rate: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = _write(tmp_path / f"a.{suffix}", tone(440.0, 20 * rate, rate), rate)
    whole = read_wave(file, 16_000)

    decoded: list[int] = []
    read = soundfile.SoundFile.read

    def count(self: Any, frames: int, **options: Any) -> Any:
        block = read(self, frames, **options)
        decoded.append(len(block))
        return block

    monkeypatch.setattr(soundfile.SoundFile, "read", count)
    part, _ = Recordings([(file, 0)], 16_000, longest=8_000)[0] or pytest.fail("left out")
    assert sum(decoded) <= 0.52 * rate
    assert_close(part, whole[:8_000], rtol=0, atol=1e-6)


def test_cut_off_mp3(tmp_path: Path) -> None:
    """The first frame that LAME writes holds the number of all frames."""
    file = _write(tmp_path / "a.mp3", tone(440.0, 32_000, 16_000), 16_000)
    content = file.read_bytes()
    tags = b"ID3\x04\0\0\0\0\x02\x01" + bytes(257)
    for start in (b"", tags):
        file.write_bytes(start + content)
        assert len(read_wave(file, 16_000)) == 32_000
        file.write_bytes(start + content[: len(content) // 2])
        with pytest.raises(InputError, match=rf"^{file} is cut off after \d\.\d\d s; replace it"):
            read_wave(file, 16_000)


def test_whatever_a_decoder_raises_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_tone(tmp_path / "a.wav", 440.0)

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("too large")

    monkeypatch.setattr(soundfile.SoundFile, "read", fail)
    with pytest.raises(InputError, match=rf"^{file} cannot be decoded as a recording: too large; replace it$"):
        read_wave(file, 8_000)


def test_missing_recording(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=rf"no recording {tmp_path}/no\.wav; correct the list"):
        read_wave(tmp_path / "no.wav", 16_000)
    with pytest.raises(MissingError, match=f"no recording {tmp_path};"):
        read_wave(tmp_path, 16_000)


def test_files_of_a_folder(tmp_path: Path) -> None:
    for name in ("b.WAV", "a.mp3", "deep/c.flac", ".hidden.wav", "notes.txt", "d.opus"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.wav").mkdir()
    found = [str(path.relative_to(tmp_path)) for path in audio_files(tmp_path)]
    assert found == ["a.mp3", "b.WAV", "d.opus", "deep/c.flac"]
    with pytest.raises(MissingError, match=r"holds no recordings; expected files ending in \.aif, .*\.wav"):
        audio_files(tmp_path / "folder.wav")
    with pytest.raises(MissingError, match="neither a file nor a folder; give recordings"):
        audio_files(tmp_path / "nowhere")


@pytest.fixture
def mixed(tmp_path: Path) -> list[tuple[Path, int]]:
    """A good recording, a broken one and one that is too short, with labels."""
    good, short = write_tone(tmp_path / "good.wav", 440.0), write_tone(tmp_path / "short.wav", 440.0, 30)
    (tmp_path / "broken.wav").write_bytes(good.read_bytes()[:2_000])
    return [(good, 0), (tmp_path / "broken.wav", 1), (short, 2)]


def test_recordings_give_waveforms_with_targets(mixed: list[tuple[Path, int]]) -> None:
    recordings = Recordings(mixed, 8_000, shortest=200, longest=1_000)
    wave, target = recordings[0] or pytest.fail("left out")
    assert len(recordings) == 3
    assert target == 0
    assert_close(wave, read_wave(mixed[0][0], 8_000)[:1_000], rtol=0, atol=0)
    whole, _ = Recordings(mixed, 8_000)[0] or pytest.fail("left out")
    assert len(whole) == 2_680


@pytest.mark.parametrize(
    ("index", "what"), [(1, "broken.wav is cut off after 0.12 s"), (2, "short.wav has 30 samples")]
)
def test_broken_recordings_stop_or_are_left_out(index: int, what: str, mixed: list[tuple[Path, int]]) -> None:
    with pytest.raises(InputError, match=f"{what}.*, or type --data.skip_broken true"):
        Recordings(mixed, 8_000, shortest=200)[index]
    with pytest.warns(UserWarning, match=f"skipped: .*{what}"):
        assert Recordings(mixed, 8_000, shortest=200, skip_broken=True)[index] is None


def test_missing_recording_is_never_left_out(tmp_path: Path) -> None:
    recordings = Recordings([(tmp_path / "no.wav", 0)], 8_000, skip_broken=True)
    with pytest.raises(MissingError, match="there is no recording"):
        recordings[0]


def test_arrays_are_recordings_too() -> None:
    samples = tone(440.0, 900)
    recordings = Recordings([(("array 0", samples.astype(np.float64)), "array 0")], 8_000, shortest=200)
    wave, name = recordings[0] or pytest.fail("left out")
    assert name == "array 0"
    assert wave.dtype == torch.float32
    assert_close(wave, torch.from_numpy(samples))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((2, 900), np.float32),
            r"array 0 has the shape \(2, 900\) and the dtype float32; expected a waveform \(T,\) of floats",
        ),
        (np.zeros(900, np.int16), r"array 0 has the shape \(900,\) and the dtype int16; .* in \[-1, 1\] at 8000 Hz"),
        (np.zeros(199, np.float32), r"array 0 has the shape \(199,\).* with at least 200 samples"),
        (np.full(900, np.nan, np.float32), "array 0 holds NaN or infinity"),
    ],
    ids=str,
)
def test_arrays_that_are_no_waveform(array: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Recordings([(("array 0", array), "array 0")], 8_000, shortest=200)[0]
