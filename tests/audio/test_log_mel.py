"""From waveforms to log-mel maps: the values of Kaldi's filter bank, padding and cutting, batches, wrong input."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torch.testing import assert_close
from torchaudio.compliance.kaldi import fbank
from torchaudio.transforms import Resample

from audio import LogMel
from audio.feature_map import pad_waves
from audio.files import _resampler, resample_wave
from core.errors import InputError

EPSILON = 2.0**-23
SETTINGS = [
    {},
    {"sample_rate": 8_000, "num_mels": 40},
    {"sample_rate": 22_050, "num_mels": 64, "target_length": 50},
    {"sample_rate": 48_000, "frame_length": 40.0, "frame_shift": 20.0, "target_length": 20},
    {"frame_length": 32.0, "num_mels": 80, "target_length": 300},
    {"sample_rate": 11_025, "frame_length": 10.0, "frame_shift": 15.0, "num_mels": 13},
    {"sample_rate": 44_100, "num_mels": 4, "frame_shift": 1.0, "target_length": 1},
]
LONG, SHORT = LogMel(), LogMel(sample_rate=8_000, num_mels=16, frame_length=4.0, frame_shift=2.5, target_length=12)


def _mel(frequency: Any) -> Any:
    return 1127.0 * np.log1p(frequency / 700.0)


def _triangles(rate: int, size: int, mels: int) -> NDArray[np.float64]:
    """Return the weights (mels, size // 2) of frequencies below the Nyquist frequency: triangles on the mel scale."""
    edges = np.linspace(_mel(20.0), _mel(rate / 2), mels + 2)[:, None]
    place = _mel(np.arange(size // 2) * rate / size)[None]
    rising = (place - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - place) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def _kaldi(wave: NDArray[Any], maps: LogMel) -> NDArray[np.float64]:
    """Return the log-mel values (mels, frames), computed frame by frame in double precision."""
    rate, mels, window, shift = maps.sample_rate, maps.num_mels, maps.window, maps.shift
    size = 2 ** math.ceil(math.log2(window))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / (window - 1))
    columns = []
    for start in range(0, len(wave) - window + 1, shift):
        frame = wave[start : start + window].astype(np.float64)
        frame = frame - frame.mean()
        frame = (frame - 0.97 * np.concatenate([frame[:1], frame[:-1]])) * hann
        power = np.abs(np.fft.rfft(frame, size)[: size // 2]) ** 2
        columns.append(np.log(np.maximum(_triangles(rate, size, mels) @ power, EPSILON)))
    return np.stack(columns, axis=1)


def _noise(samples: int, seed: int = 0) -> Tensor:
    """Return noise in [-1, 1] with a tone and an offset."""
    generator = torch.Generator().manual_seed(seed)
    tone = torch.sin(torch.arange(samples) * (0.1 + 0.01 * seed))
    return (0.1 * torch.randn(samples, generator=generator) + 0.3 * tone + 0.2).clamp(-1, 1)


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_values_are_those_of_a_plainly_written_filter_bank(options: dict[str, Any]) -> None:
    maps = LogMel(**options, mean=-3.0, std=2.0)
    wave = _noise(maps.sample_rate)
    expected = _kaldi(wave.numpy(), maps)
    assert maps.window == int(maps.sample_rate * options.get("frame_length", 25.0) * 0.001)
    assert maps.shift == int(maps.sample_rate * options.get("frame_shift", 10.0) * 0.001)
    own = min(expected.shape[1], maps.target_length)
    mel = maps.filter_bank(wave[None])[0]
    assert mel.shape == (maps.num_mels, maps.target_length)
    error = np.abs(mel[:, :own].numpy() - expected[:, :own])
    assert error.mean() < 1e-5
    assert error.max() < 5e-4  # a band that is nearly empty, in single precision
    x = maps(wave[None])
    assert x.shape == (1, 1, maps.num_mels, maps.target_length)
    assert_close(x[0, 0], (mel + 3.0) / 4.0)


def _frames(options: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in options.items() if name.startswith("frame_")}


@pytest.mark.parametrize("options", SETTINGS, ids=str)
def test_values_are_those_of_torchaudio_for_one_recording(options: dict[str, Any]) -> None:
    maps = LogMel(**options)
    wave = _noise(maps.sample_rate * 3 // 4, seed=1)
    expected = fbank(
        (wave - wave.mean())[None],
        **{"sample_frequency": maps.sample_rate, "num_mel_bins": maps.num_mels, "dither": 0.0, "htk_compat": True},
        **{"frame_length": 25.0, "frame_shift": 10.0, "window_type": "hanning"} | _frames(options),
    ).T[:, : maps.target_length]
    assert expected.shape[1] == min(maps.frames(len(wave)), maps.target_length)
    error = (maps.filter_bank(wave[None])[0, :, : expected.shape[1]] - expected).abs()
    assert error.mean() < 1e-5
    assert error.max() < 5e-4  # a band that is nearly empty, in single precision


def test_published_settings_give_98_frames_a_second_and_padding_before_normalization() -> None:
    maps = LogMel(mean=-6.845978, std=5.5654526)
    x = maps(_noise(16_000)[None])
    assert maps.frames(16_000) == 98
    assert x.shape == (1, 1, 128, 128)
    padded = (0 + 6.845978) / (2 * 5.5654526)
    assert padded == pytest.approx(0.615, abs=1e-3)
    assert_close(x[..., 98:], torch.full((1, 1, 128, 30), padded))
    assert not (x[0, 0, :, 97] == x[0, 0, :, 98]).any()


def test_low_tones_are_in_the_first_rows_and_late_sounds_in_the_last_columns() -> None:
    time = torch.arange(16_000) / 16_000
    low, high = (torch.sin(2 * torch.pi * frequency * time) for frequency in (150, 6_000))
    mels = LONG.filter_bank(torch.stack([low, high, torch.where(time > 0.5, high, 0)]))
    assert mels[0, :, 10].argmax() < 10
    assert mels[1, :, 10].argmax() > 100
    assert mels[2, 110, 60] > mels[2, 110, 20] + 5


@given(st.integers(0, 700), st.integers(1, 400))
def test_number_of_frames(length: int, frames: int) -> None:
    starts = range(0, length - SHORT.window + 1, SHORT.shift)
    assert SHORT.frames(length) == len(starts)
    assert SHORT.frames(SHORT.samples(frames)) == frames
    assert SHORT.frames(SHORT.samples(frames) - 1) == frames - 1


def test_longer_waveforms_are_cut_at_the_end() -> None:
    wave = _noise(3 * 16_000)
    assert_close(LONG(wave[None]), LONG(wave[None, : LONG.samples(128)]), rtol=0, atol=1e-3)
    assert not torch.equal(LONG(wave[None]), LONG(wave[None, -LONG.samples(128) :]))


@settings(max_examples=40)
@given(st.lists(st.integers(32, 400), min_size=1, max_size=6))
def test_batch_equals_one_by_one(lengths: list[int]) -> None:
    waves = [_noise(length, seed) for seed, length in enumerate(lengths)]
    batch, stored = pad_waves(waves)
    assert batch.shape == (len(lengths), max(lengths))
    assert stored.tolist() == lengths
    x = SHORT(batch, stored)
    for i, wave in enumerate(waves):
        assert_close(x[i], SHORT(wave[None])[0], rtol=0, atol=1e-4)
        assert bool((x[i, :, :, SHORT.frames(lengths[i]) :] == 0).all())


def test_what_lies_beyond_a_length_does_not_matter() -> None:
    wave = _noise(500)[None].repeat(2, 1)
    wave[1, 200:] = 0.9
    lengths = torch.tensor([200, 200])
    assert_close(SHORT(wave, lengths)[0], SHORT(wave, lengths)[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_computed_in_single(dtype: torch.dtype) -> None:
    wave = _noise(2_000)[None].to(dtype)
    x = LONG(wave)
    assert x.dtype == torch.float32
    assert_close(x, LONG(wave.float()), rtol=0, atol=0)


@pytest.mark.parametrize("level", [0.0, 0.3, -1.0])
def test_silence_gives_the_logarithm_of_epsilon(level: float) -> None:
    mel = LONG.filter_bank(torch.full((2, 8_000), level))
    assert_close(mel[:, :, :48], torch.full((2, 128, 48), math.log(EPSILON)), rtol=0, atol=1e-2)
    assert bool((mel[:, :, 48:] == 0).all())


@pytest.mark.parametrize(
    ("wave", "lengths", "message"),
    [
        (torch.zeros(2, 399), None, r"has 399 samples, a frame 400 \(25\.0 ms at 16000 Hz\)"),
        (torch.zeros(2, 900), torch.tensor([900, 10]), r"has 10 samples, .*shorter --data\.frame_length"),
        (torch.full((1, 900), math.nan), None, r"holds NaN or infinity; replace the recording"),
        (torch.full((1, 900), -math.inf), None, r"holds NaN or infinity"),
        (
            torch.zeros(1, 900, dtype=torch.int16),
            None,
            r"dtype torch\.int16; give floats in \[-1, 1\], such as x / 32768",
        ),
    ],
)
def test_unusable_waveforms(wave: Tensor, lengths: Tensor | None, message: str) -> None:
    with pytest.raises(InputError, match=message):
        LONG(wave, lengths)


def test_statistics_travel_with_the_weights_and_stay_in_single_precision() -> None:
    maps = LogMel(mean=-6.845978, std=5.5654526)
    assert set(maps.state_dict()) == {"mean", "std"}
    other = LogMel()
    other.load_state_dict(maps.state_dict())
    wave = _noise(16_000)[None]
    assert torch.equal(other(wave), maps(wave))
    assert torch.equal(other.to(torch.bfloat16)(wave), maps(wave))
    other.set_statistics(0.0, 0.5)
    assert torch.equal(other(wave)[:, 0], maps.filter_bank(wave))


def test_gradients_reach_the_waveform() -> None:
    wave = _noise(16_000)[None].requires_grad_()
    LONG(wave).sum().backward()
    assert wave.grad is not None
    assert bool(wave.grad[:, :16_000].isfinite().all())
    assert float(wave.grad.abs().max()) > 0


@pytest.mark.parametrize(
    "options",
    [
        *[{"sample_rate": 0}, {"sample_rate": -16_000}, {"num_mels": 0}, {"target_length": 0}, {"frame_length": 0.1}],
        *[{"frame_length": -1.0}, {"frame_shift": 0.0}, {"frame_shift": 0.05}, {"std": 0.0}, {"std": -1.0}],
    ],
    ids=str,
)
def test_numbers_out_of_range(options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(InputError, match=rf"{name}={value}.*must be positive, with at least two samples in a frame"):
        LogMel(**options)


@pytest.mark.parametrize(
    "options",
    [
        *[{"num_mels": 1}, {"num_mels": 3}, {"frame_length": math.nan}, {"frame_shift": math.inf}],
        *[{"mean": math.nan}, {"std": math.nan}, {"std": math.inf}],
    ],
    ids=str,
)
def test_numbers_that_no_map_comes_from(options: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        LogMel(**options)(_noise(16_000)[None])


@settings(max_examples=30)
@given(st.integers(1, 3_000), st.sampled_from([8_000, 11_025, 22_050, 44_100, 48_000]))
def test_resampled_length(samples: int, rate: int) -> None:
    wave = torch.ones(2, samples)
    assert resample_wave(wave, rate, 16_000).shape == (2, math.ceil(samples * 16_000 / rate))
    assert resample_wave(wave, rate, rate) is wave


@pytest.mark.parametrize("rate", [44_101, 24_414, 22_255, 11_127, 192_001, 16_001, 44_100])
def test_rates_without_a_common_divisor(rate: int) -> None:
    """The exact kernel for 44,101 and 16,000 Hz would take 5.6 GB."""
    seconds, pitch = 5, 440.0
    wave = (2 * math.pi * pitch / rate * torch.arange(seconds * rate + 3, dtype=torch.float64)).sin().float()
    resampled = resample_wave(wave, rate, 16_000)
    assert resampled.shape == (math.ceil(len(wave) * 16_000 / rate),)
    exact = (2 * math.pi * pitch / 16_000 * torch.arange(len(resampled), dtype=torch.float64)).sin().float()
    slow = 1.0 if rate == 16_001 else 0.1  # 6e-5 beside its pitch, which is 0.9 radians in 5 seconds
    assert_close(resampled[200:-200], exact[200:-200], rtol=0, atol=slow)
    kernel = getattr(_resampler(rate, 16_000), "kernel", torch.zeros(1))
    assert kernel.numel() < 1.1 * 2**23


@pytest.mark.parametrize(("rate", "to"), [(44_100, 16_000), (48_000, 44_100), (8_000, 22_050), (96_000, 11_025)])
def test_usual_rates_are_exact(rate: int, to: int) -> None:
    wave = _noise(rate + 7)
    assert torch.equal(resample_wave(wave, rate, to), Resample(rate, to)(wave))
