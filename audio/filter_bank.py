"""Kaldi's log-mel filter bank for many frames at once: the values of torchaudio's, several times as fast in batches.

    frame ─ minus its mean ─ pre-emphasis ─ Hann window ─ zeros to a power of two ─ |FFT|² ─ mel triangles ─ logarithm

torchaudio computes one recording at a time and its power spectrum by way of complex magnitudes; here the frames of
several recordings share each step, in buffers that stay in a processor's cache.
"""

import functools

import torch
from torch import Tensor
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

__all__ = ["log_mel"]

_CACHED = 800
"""Frames whose spectra stay in a processor's cache; more at once are slower."""

_LOWEST, _EMPHASIS, _SMALLEST = 20.0, 0.97, torch.finfo(torch.float32).eps
"""Kaldi's lower edge of the first band in Hz, how much of its predecessor each sample loses, and the least energy."""


def log_mel(wave_BT: Tensor, sample_rate: int, num_mels: int, *, window: int, shift: int, columns: int) -> Tensor:
    """Logarithm of the energy in bands that are triangles on the mel scale, of each frame by itself.

    Kaldi's defaults but for the Hann window and no dither: the mean of a frame is taken off, so that one of the whole
    waveform makes no difference; energies are at least the epsilon of float32.

    Args:
        wave_BT: (B, T) float32 samples in [-1, 1].
        sample_rate: samples a second.
        num_mels: F, bands from 20 Hz to half the sample rate.
        window: samples of a frame.
        shift: samples from the start of a frame to that of the next.
        columns: frames of the result; it is 0 beyond the last that lies wholly inside the waveform.

    Returns:
        (B, F, columns) float32.
    """
    batch, total = wave_BT.shape
    count = min(columns, 1 + (total - window) // shift)
    mel_BFC = wave_BT.new_zeros(batch, num_mels, columns)
    together = min(batch, max(1, _CACHED // count)) if wave_BT.device.type == "cpu" else batch
    padded_BNS = wave_BT.new_zeros(together, count, _fft_size(window))
    for part_BT, into_BFC in zip(wave_BT.split(together), mel_BFC.split(together), strict=True):
        power_NS = _power(part_BT, padded_BNS[: len(part_BT)], window, shift).flatten(0, 1)
        energy_NF = (power_NS @ _triangles(sample_rate, window, num_mels, wave_BT.device)).clamp_(min=_SMALLEST)
        into_BFC[:, :, :count] = energy_NF.log_().view(len(part_BT), count, num_mels).transpose(1, 2)
    return mel_BFC


def _power(wave_BT: Tensor, padded_BNS: Tensor, window: int, shift: int) -> Tensor:
    """Power spectra (B, N, size / 2 + 1) of the first N frames of each waveform.

    With the mean m of a frame x and p its pre-emphasis, x(i) - a x(i - 1), that of x - m is p - (1 - a) m; so p is
    computed once for all frames that overlap. The first sample of a frame, which has no predecessor in it, makes no
    difference: the window is 0 there.

    Args:
        wave_BT: (B, T).
        padded_BNS: room for the frames; 0 beyond their length.
        window: samples of a frame.
        shift: samples from frame to frame.
    """
    count = padded_BNS.shape[1]
    wave_BT = wave_BT - wave_BT[:, :window].mean(dim=1, keepdim=True)  # any number near the mean keeps digits
    hann_W = _hann(window, wave_BT.device)
    emphasised_BT = F.pad(wave_BT[:, 1:] - _EMPHASIS * wave_BT[:, :-1], (1, 0))
    mean_BN1 = wave_BT.unfold(1, window, shift)[:, :count].mean(dim=2, keepdim=True)
    frames_BNW = padded_BNS[:, :, :window]
    torch.mul(emphasised_BT.unfold(1, window, shift)[:, :count], hann_W, out=frames_BNW)
    frames_BNW.addcmul_(mean_BN1, hann_W, value=_EMPHASIS - 1)
    real, imaginary = torch.view_as_real(torch.fft.rfft(padded_BNS)).unbind(-1)
    return torch.addcmul(real.square(), imaginary, imaginary)


def _fft_size(width: int) -> int:
    return 1 << (width - 1).bit_length()


@functools.lru_cache
def _hann(window: int, device: torch.device) -> Tensor:
    """(W,), 0 at both ends."""
    with torch.inference_mode(False):  # it outlives the first call
        return torch.hann_window(window, periodic=False, device=device)


@functools.lru_cache
def _triangles(sample_rate: int, window: int, num_mels: int, device: torch.device) -> Tensor:
    """(size / 2 + 1, F); the highest frequency belongs to no band."""
    with torch.inference_mode(False):
        bank_FS, _ = get_mel_banks(num_mels, _fft_size(window), float(sample_rate), _LOWEST, 0.0, 100.0, -500.0, 1.0)
        return F.pad(bank_FS, (0, 1)).T.contiguous().to(device)
