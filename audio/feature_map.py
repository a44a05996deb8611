"""From waveforms to a normalized log-mel map, in the order of the published pipeline, for batches on any device.

    waveform ─ (mix) ─ frames ─ Kaldi's filter bank ─ pad or cut ─ normalize ─ (mask, noise, roll) ─► map (B, 1, F, T)

The steps in brackets belong to training and are in :mod:`audio.augment`. Padding comes before the normalization, so
that a padded cell has the value of log-mel 0 and not that of the mean. The published results depend on this order,
which is that of UniRepLKNet's code and of AST's, which it follows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from core.errors import InputError
from core.layers.feature_map import FeatureMap

__all__ = ["LogMel", "cut_windows", "pad_waves"]

_LOWEST_FREQUENCY = 20.0
"""Lower edge of the first mel band in Hz, Kaldi's default."""

_PRE_EMPHASIS = 0.97
"""Share of its predecessor that is subtracted from each sample, Kaldi's default."""

_CACHED_FRAMES = 800
"""Frames whose spectra stay in a processor's cache; computing more of them at once is slower."""


class LogMel(FeatureMap):
    """Waveforms to normalized log-mel maps, with the values of Kaldi's filter bank.

    Hann window, pre-emphasis 0.97, no dither, power spectrum, triangular mel bands from 20 Hz to half the sample rate,
    natural logarithm. A frame is computed only where it lies wholly inside the waveform. The offset of a waveform makes
    no difference, since each frame loses its own mean.

    Args:
        sample_rate: samples per second of the waveforms.
        num_mels: height of the map F, in mel bands.
        frame_length: length of a frame in milliseconds.
        frame_shift: step from one frame to the next in milliseconds.
        target_length: width of the map T, in frames. A longer waveform is cut at its end, a shorter one is padded.
        mean: of the log-mel values of the data.
        std: of the log-mel values of the data. Maps are divided by twice this number, which leaves them an std of 0.5.
    """

    mean: Tensor
    std: Tensor
    hann: Tensor
    bands: Tensor

    def __init__(
        self,
        *,
        sample_rate: int = 16_000,
        num_mels: int = 128,
        frame_length: float = 25.0,
        frame_shift: float = 10.0,
        target_length: int = 128,
        mean: float = 0.0,
        std: float = 0.5,
    ) -> None:
        super().__init__()
        finite = all(map(math.isfinite, (frame_length, frame_shift, mean, std)))
        window = int(sample_rate * frame_length * 0.001) if finite else 0
        shift = int(sample_rate * frame_shift * 0.001) if finite else 0
        if window < 2 or min(shift, target_length) < 1 or num_mels < 4 or std <= 0:
            raise InputError(
                f"sample_rate={sample_rate}, num_mels={num_mels}, frame_length={frame_length}, "
                f"frame_shift={frame_shift}, target_length={target_length}, mean={mean}, std={std}; all but the mean "
                "must be positive, a frame at least two samples, and the mels at least four"
            )

        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.frame_length = frame_length
        self.target_length = target_length
        self.window = window
        self.shift = shift

        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

        # The spectrum is that of the frame padded to a power of two. Its highest frequency belongs to no band.
        self.fft_size = 1 << (window - 1).bit_length()
        bands_FS, _ = get_mel_banks(
            num_mels, self.fft_size, float(sample_rate), _LOWEST_FREQUENCY, 0.0, 100.0, -500.0, 1.0
        )
        self.register_buffer("hann", torch.hann_window(window, periodic=False), persistent=False)
        self.register_buffer("bands", F.pad(bands_FS, (0, 1)).T.contiguous(), persistent=False)

    def frames(self, length: int) -> int:
        """Number of frames that lie wholly inside a waveform of ``length`` samples; 0 if it is shorter than a frame."""
        return 0 if length < self.window else 1 + (length - self.window) // self.shift

    def samples(self, frames: int | None = None) -> int:
        """Number of samples that give so many frames, by default those of one map."""
        frames = self.target_length if frames is None else frames
        return self.window + (frames - 1) * self.shift

    def set_statistics(self, mean: float, std: float) -> None:
        """Normalize by this mean and standard deviation of the log-mel values from now on."""
        self.mean.fill_(mean)
        self.std.fill_(std)

    @property
    def padding(self) -> Tensor:
        """The value of padded cells after normalization, which is that of log-mel 0; a scalar tensor."""
        return self.normalize(torch.zeros_like(self.mean))

    def forward(self, wave_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Normalized maps of a batch, height frequency, width time.

        Args:
            wave_BT: (B, T) float waveforms in [-1, 1] at ``sample_rate``.
            lengths_B: (B,) int64, the samples that each waveform has; by default all T.

        Returns:
            (B, 1, num_mels, target_length) float32.
        """
        with torch.autocast(wave_BT.device.type, enabled=False):  # half precision would lose the quiet bands
            return self.normalize(self.filter_bank(wave_BT, lengths_B))[:, None]

    def normalize(self, mel_BFT: Tensor) -> Tensor:
        """(x - mean) / (2 std)."""
        return (mel_BFT - self.mean).div_(2 * self.std)

    def filter_bank(self, wave_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Log-mel values before normalization, 0 beyond the last frame of each waveform.

        Args:
            wave_BT: (B, T) float waveforms in [-1, 1] at ``sample_rate``.
            lengths_B: (B,) int64, the samples that each waveform has; by default all T.

        Returns:
            (B, num_mels, target_length) float32.

        Raises:
            InputError: if a waveform is shorter than a frame, or holds NaN or infinity.
        """
        exporting = torch.compiler.is_exporting() or torch.jit.is_tracing()
        if not exporting:
            self._check(wave_BT, lengths_B)
        wave_BT = wave_BT[:, : self.samples()].float()
        count = self.frames(wave_BT.shape[1])

        if wave_BT.device.type == "cpu" and not exporting:
            parts = wave_BT.split(max(1, _CACHED_FRAMES // count))
            mel_BFN = torch.cat([self._log_energies(part) for part in parts])
        else:
            mel_BFN = self._log_energies(wave_BT)

        mel_BFT = F.pad(mel_BFN, (0, self.target_length - count))
        if lengths_B is None:
            return mel_BFT

        own_B = 1 + (lengths_B.to(wave_BT.device) - self.window) // self.shift
        outside_BT = torch.arange(self.target_length, device=wave_BT.device) >= own_B[:, None]
        return mel_BFT.masked_fill_(outside_BT[:, None], 0.0)

    def _check(self, wave_BT: Tensor, lengths_B: Tensor | None) -> None:
        if not wave_BT.is_floating_point():
            raise InputError(
                f"the waveforms are of {wave_BT.dtype}; give floats in [-1, 1], as x / 32768 of 16-bit samples"
            )
        shortest = wave_BT.shape[1] if lengths_B is None else int(lengths_B.min())
        if shortest < self.window:
            raise InputError(
                f"a waveform has {shortest} samples, a frame {self.window} ({self.frame_length} ms at "
                f"{self.sample_rate} Hz); give a longer recording or a shorter --data.frame_length"
            )
        if not wave_BT.sum().isfinite() and not wave_BT.isfinite().all():  # the sum takes a tenth of the time
            raise InputError("a waveform holds NaN or infinity; replace the recording")

    def _log_energies(self, wave_BT: Tensor) -> Tensor:
        """Logarithm of the energy of each frame in each mel band: (B, T) to (B, F, N), N the frames inside T.

        torchaudio computes one recording at a time. Here all frames of the batch share each step, and pre-emphasis is
        computed once for frames that overlap: with p the pre-emphasis x(i) - a x(i - 1) of a frame x and m its mean,
        that of x - m is p - (1 - a) m. The first sample of a frame has no predecessor in it, which makes no difference
        because the window is 0 there.
        """
        wave_BT = wave_BT - wave_BT[:, : self.window].mean(dim=1, keepdim=True)  # smaller numbers keep more digits
        emphasized_BT = F.pad(wave_BT[:, 1:] - _PRE_EMPHASIS * wave_BT[:, :-1], (1, 0))
        mean_BN1 = wave_BT.unfold(1, self.window, self.shift).mean(dim=2, keepdim=True)
        frames_BNW = emphasized_BT.unfold(1, self.window, self.shift) * self.hann
        frames_BNW.addcmul_(mean_BN1, self.hann, value=_PRE_EMPHASIS - 1)

        spectrum_BNS = torch.fft.rfft(frames_BNW, n=self.fft_size)
        real, imaginary = torch.view_as_real(spectrum_BNS).unbind(-1)
        power_BNS = real.square().addcmul_(imaginary, imaginary)

        energy_BNF = (power_BNS @ self.bands).clamp_(min=torch.finfo(torch.float32).eps)
        return energy_BNF.log().transpose(1, 2)


def pad_waves(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack waveforms of different lengths.

    Args:
        waves: B float tensors (T_i,).

    Returns:
        The waveforms (B, max T) with zeros at the ends, and their lengths (B,) int64.
    """
    lengths = [len(wave) for wave in waves]
    return nn.utils.rnn.pad_sequence(list(waves), batch_first=True), torch.tensor(lengths)


def cut_windows(wave: Tensor, size: int, overlap: float) -> list[Tensor]:
    """Overlapping windows that cover a waveform; a waveform that fits into one window is returned as it is.

    All windows of a longer waveform have the same length, and the last one ends where the waveform ends.

    Args:
        wave: (T,).
        size: samples of a window.
        overlap: share of a window that the next one repeats, in [0, 1).

    Returns:
        Views of the waveform.
    """
    if len(wave) <= size:
        return [wave]
    step = max(1, round(size * (1 - overlap)))
    starts = [*range(0, len(wave) - size, step), len(wave) - size]
    return [wave[start : start + size] for start in starts]
