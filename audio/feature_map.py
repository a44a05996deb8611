"""From waveforms to normalized log-mel maps, in the order of the published pipeline.

    waveform ─ (mix) ─ frames ─ Kaldi's filter bank ─ pad or cut ─ normalize ─ (mask, noise, roll) ─► map (B, 1, F, T)

The steps in parentheses belong to training, see :mod:`audio.augment`. Maps are padded before they are normalized, so a
padded cell has the value of log-mel 0 and not that of the mean. The published results depend on this order, which is
that of UniRepLKNet's code and of the code of AST, which it follows.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchaudio.compliance.kaldi import get_mel_banks

from core.data.memory import check_sample_memory
from core.data.windows import window_starts
from core.errors import InputError
from core.layers.feature_map import FeatureMap

__all__ = ["LogMel", "cut_windows", "pad_waves", "starts_of_windows"]

_LOWEST_FREQUENCY = 20.0
"""Lower edge of the first mel band in Hz; Kaldi's default."""

_PRE_EMPHASIS = 0.97
"""Share of the previous sample that is subtracted from each sample; Kaldi's default."""

_CACHED_FRAMES = 800
"""Number of frames whose spectra fit into a processor's cache; computing more at once is slower."""


class LogMel(FeatureMap):
    """Turns waveforms into normalized log-mel maps, with the values of Kaldi's filter bank.

    The filter bank has a Hann window, pre-emphasis 0.97, no dither, the power spectrum, triangular mel bands from 20 Hz
    to half the sample rate, and the natural logarithm. All frames lie completely inside the waveform. A constant offset
    of the waveform makes no difference, because the mean of each frame is subtracted.

    Args:
        sample_rate: samples per second of the waveforms.
        num_mels: height F of a map, in mel bands.
        frame_length: length of a frame, in milliseconds.
        frame_shift: step from one frame to the next, in milliseconds.
        target_length: width T of a map, in frames; longer waveforms are cut at the end, shorter ones are padded.
        mean: mean of the log-mel values of the data.
        std: standard deviation of the log-mel values of the data. Maps are divided by twice this number, so their
            standard deviation is 0.5.

    Raises:
        InputError: if a number is out of range.
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
        is_finite = all(map(math.isfinite, (frame_length, frame_shift, mean, std)))
        window = int(sample_rate * frame_length * 0.001) if is_finite else 0  # milliseconds to samples
        shift = int(sample_rate * frame_shift * 0.001) if is_finite else 0
        if window < 2 or min(shift, target_length) < 1 or num_mels < 4 or std <= 0:
            raise InputError(
                f"sample_rate={sample_rate}, num_mels={num_mels}, frame_length={frame_length}, "
                f"frame_shift={frame_shift}, target_length={target_length}, mean={mean}, std={std}; all but the mean "
                "must be positive, with at least two samples in a frame and at least four mels"
            )

        fft_size = 1 << (window - 1).bit_length()
        largest = max(target_length * shift + window, num_mels * target_length, num_mels * fft_size)
        check_sample_memory(
            4 * largest,
            f"sample_rate={sample_rate}, num_mels={num_mels}, frame_length={frame_length}, frame_shift={frame_shift}, "
            f"target_length={target_length}",
        )

        self.sample_rate = sample_rate
        self.num_mels = num_mels
        self.frame_length = frame_length
        self.target_length = target_length
        self.window = window
        self.shift = shift

        self.register_buffer("mean", torch.tensor(float(mean)))
        self.register_buffer("std", torch.tensor(float(std)))

        # As in Kaldi, frames are padded to a power of two for the Fourier transform, and no band covers its highest
        # frequency, for which a row of zeros is added.
        self.fft_size = fft_size
        bands_FS, _ = get_mel_banks(
            num_bins=num_mels,
            window_length_padded=self.fft_size,
            sample_freq=float(sample_rate),
            low_freq=_LOWEST_FREQUENCY,
            high_freq=0.0,  # half the sample rate
            vtln_low=100.0,
            vtln_high=-500.0,
            vtln_warp_factor=1.0,  # no warping
        )
        self.register_buffer("hann", torch.hann_window(window, periodic=False), persistent=False)
        self.register_buffer("bands", F.pad(bands_FS, (0, 1)).T.contiguous(), persistent=False)

    def frames(self, length: int) -> int:
        """Return the number of frames that lie completely inside a waveform of ``length`` samples, which may be 0."""
        return 0 if length < self.window else 1 + (length - self.window) // self.shift

    def samples(self, frames: int | None = None) -> int:
        """Return the number of samples that a number of frames needs, by default the frames of one map."""
        frames = self.target_length if frames is None else frames
        return self.window + (frames - 1) * self.shift

    def set_statistics(self, mean: float, std: float) -> None:
        """Set the mean and the standard deviation of the log-mel values of the data."""
        self.mean.fill_(mean)
        self.std.fill_(std)

    @property
    def padding(self) -> Tensor:
        """Value of padded cells in normalized maps, which is that of log-mel 0; a scalar tensor."""
        return self.normalize(torch.zeros_like(self.mean))

    def forward(self, wave_BT: Tensor | list[Tensor], lengths_B: Tensor | None = None) -> Tensor:
        """Turn waveforms into normalized maps, with frequency as height and time as width.

        Args:
            wave_BT: waveforms (B, T) float in [-1, 1] at ``sample_rate``, or a list of B waveforms (T_i,).
            lengths_B: number of samples of each waveform (B,) int64; by default all T.

        Returns:
            Maps (B, 1, num_mels, target_length) float32.

        Raises:
            InputError: if a waveform is shorter than a frame, or holds NaN or infinity.
        """
        if isinstance(wave_BT, list):
            wave_BT, lengths_B = self.first_windows(wave_BT)
        with torch.autocast(wave_BT.device.type, enabled=False):  # quiet bands are lost in half precision
            return self.normalize(self.filter_bank(wave_BT, lengths_B))[:, None]

    def first_windows(self, waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the beginnings of waveforms (T_i,), of the length of one map, as (B, T), and their lengths (B,)."""
        return pad_waves([wave[: self.samples()] for wave in waves])

    def normalize(self, mel_BFT: Tensor) -> Tensor:
        """Return (x - mean) / (2 std) of log-mel values x."""
        return (mel_BFT - self.mean).div_(2 * self.std)

    def filter_bank(self, wave_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Return the log-mel values before normalization, with 0 beyond the last frame of each waveform.

        Args:
            wave_BT: waveforms (B, T) float in [-1, 1] at ``sample_rate``.
            lengths_B: number of samples of each waveform (B,) int64; by default all T.

        Returns:
            Log-mel values (B, num_mels, target_length) float32.

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

        counts_B = 1 + (lengths_B.to(wave_BT.device) - self.window) // self.shift
        outside_BT = torch.arange(self.target_length, device=wave_BT.device) >= counts_B[:, None]
        return mel_BFT.masked_fill_(outside_BT[:, None], 0.0)

    def _check(self, wave_BT: Tensor, lengths_B: Tensor | None) -> None:
        """Raise an error if the waveforms cannot be used."""
        if not wave_BT.is_floating_point():
            raise InputError(
                f"the waveforms have the dtype {wave_BT.dtype}; give floats in [-1, 1], such as x / 32768 for 16-bit "
                "samples"
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
        """Return the logarithm of the energy of each frame in each mel band, for N frames of waveforms (B, T).

        Kaldi subtracts the mean m of each frame x, and then computes the pre-emphasis x(i) - a x(i - 1). Here, the
        pre-emphasis p is computed once for the whole waveform, since frames overlap; the pre-emphasis of x - m is then
        p - (1 - a) m. The first sample of a frame has no predecessor inside the frame, but the window is 0 there.

        Returns:
            Logarithms (B, F, N).
        """
        # Subtracting a constant changes nothing but the rounding: smaller numbers have more digits after the point.
        wave_BT = wave_BT - wave_BT[:, : self.window].mean(dim=1, keepdim=True)

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
    """Stack waveforms of different lengths, and pad them with zeros.

    Args:
        waves: B waveforms (T_i,) float.

    Returns:
        The waveforms (B, max T_i), and their lengths (B,) int64.
    """
    lengths = [len(wave) for wave in waves]
    return nn.utils.rnn.pad_sequence(list(waves), batch_first=True), torch.tensor(lengths)


def cut_windows(wave: Tensor, size: int, overlap: float) -> list[Tensor]:
    """Cut a waveform into overlapping windows; a waveform that fits into one window is returned as it is.

    All windows of a longer waveform have the same length, and the last one ends where the waveform ends.

    Args:
        wave: waveform (T,).
        size: number of samples of a window.
        overlap: share in [0, 1) of a window that the next one repeats.

    Returns:
        The windows, as views of the waveform.
    """
    return [wave[start : start + size] for start in starts_of_windows(len(wave), size, overlap)]


def starts_of_windows(length: int, size: int, overlap: float) -> list[int]:
    """Return where the windows of :func:`cut_windows` begin in a waveform of ``length`` samples."""
    return window_starts(length, size, max(1, round(size * (1 - overlap))))
