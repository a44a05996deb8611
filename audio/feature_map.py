"""From a waveform to a normalised log-mel map, in the order of the published pipeline, for batches on any device.

    waveform ─ minus its mean ─ (mixup) ─ Kaldi filter bank ─ pad or cut ─ (SpecAugment) ─ normalise ─ (noise, roll)

Steps in brackets are for training. Padding and masking come before the normalisation, so that a padded or masked cell
has the value of log-mel 0, and not of the mean: results depend on this order, which is that of UniRepLKNet's code and
of AST's, which it follows.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn
from torchaudio.functional import mask_along_axis_iid
from torchaudio.transforms import Resample

from audio.filter_bank import log_mel
from core.errors import InputError

__all__ = ["AudioAugment", "LogMel", "mix_waveforms", "noise_and_roll", "pad_waves", "resample_wave", "spec_augment"]


def pad_waves(waves: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack waveforms of different lengths.

    Args:
        waves: float tensors (T_i,).

    Returns:
        (B, max T) with zeros at the ends, and the lengths (B,) int64.
    """
    return nn.utils.rnn.pad_sequence(list(waves), batch_first=True), torch.tensor([len(wave) for wave in waves])


def resample_wave(wave: Tensor, rate: int, to: int) -> Tensor:
    """(..., T) at ``rate`` samples a second to (..., ceil(T * to / rate)) at ``to``, band-limited.

    Rates without a large common divisor (44,101 and 16,000) are taken for others that have one. Of those up to 200 kHz
    99 in 100 are off by less than 4e-6; the others, a few Hz beside a simple ratio to ``to``, by less than 2e-4.
    """
    if rate == to:
        return wave
    resampled, length = _resampler(rate, to)(wave), -(-wave.shape[-1] * to // rate)
    return nn.functional.pad(resampled, (0, length - resampled.shape[-1]))


@functools.lru_cache
def _resampler(rate: int, to: int) -> Resample:
    """Its kernel takes longer to compute than a second of sound to resample, and has about 2**23 weights at most."""
    ratio = Fraction(rate, to).limit_denominator(max(1, math.isqrt(2**23 * to // rate)))
    return Resample(ratio.numerator, ratio.denominator)


class LogMel(nn.Module):
    """Waveforms to log-mel maps with the semantics of Kaldi's filter bank.

    Hann window, pre-emphasis 0.97, no dither, power spectrum, mel bands from 20 Hz to half the sample rate, natural
    logarithm; frames only where they lie wholly inside the waveform.

    Args:
        sample_rate: samples a second of the waveforms.
        num_mels: F, mel bands.
        frame_length: length of a frame in milliseconds.
        frame_shift: step between frames in milliseconds.
        target_length: T, frames of the map: longer waveforms are cut at the end, shorter ones padded with log-mel 0.
        mean: of the log-mel values of the data.
        std: of the log-mel values; maps are divided by twice that, so that theirs is about 0.5.

    Raises:
        InputError: if a number is out of range.
    """

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
        self.sample_rate, self.num_mels, self.target_length = sample_rate, num_mels, target_length
        self.frame_length, self.frame_shift, self.mean, self.std = frame_length, frame_shift, mean, std
        finite = all(map(math.isfinite, (frame_length, frame_shift, mean, std)))
        lengths = (frame_length, frame_shift) if finite else (0.0, 0.0)
        self.window, self.shift = (int(sample_rate * length * 0.001) for length in lengths)
        if self.window < 2 or min(self.shift, target_length) < 1 or num_mels < 4 or std <= 0:
            raise InputError(
                f"sample_rate={sample_rate}, num_mels={num_mels}, frame_length={frame_length}, "
                f"frame_shift={frame_shift}, target_length={target_length}, mean={mean}, std={std}; all but the mean "
                "must be positive, a frame at least two samples, and the mels at least four"
            )

    def frames(self, length: int) -> int:
        """Number of frames that lie wholly inside a waveform of ``length`` samples; 0 if it is shorter than one."""
        return 0 if length < self.window else 1 + (length - self.window) // self.shift

    def samples(self, frames: int) -> int:
        """Number of samples that give so many frames."""
        return self.window + (frames - 1) * self.shift

    def filter_bank(self, wave_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Log-mel values before normalisation, 0 beyond the last frame of each waveform.

        Args:
            wave_BT: (B, T) float in [-1, 1].
            lengths_B: samples of each waveform; by default all T.

        Returns:
            (B, F, target_length) float32.

        Raises:
            InputError: if a waveform is shorter than a frame, or holds NaN or infinity.
        """
        batch, total = wave_BT.shape
        lengths_B = torch.full((batch,), total) if lengths_B is None else lengths_B.cpu()
        shortest = int(lengths_B.min())
        if shortest < self.window:
            raise InputError(
                f"a waveform has {shortest} samples, a frame {self.window} ({self.frame_length} ms at "
                f"{self.sample_rate} Hz); give a longer recording or a shorter --data.frame_length"
            )
        if not wave_BT.sum().isfinite() and not wave_BT.isfinite().all():  # the sum takes a tenth of the time
            raise InputError("a waveform holds NaN or infinity; replace the recording")
        count = min(self.frames(total), self.target_length)
        places = {"window": self.window, "shift": self.shift, "columns": self.target_length}
        mel_BFT = log_mel(wave_BT.float(), self.sample_rate, self.num_mels, **places)
        own_B = torch.tensor([self.frames(int(length)) for length in lengths_B], device=wave_BT.device)
        if int(own_B.min()) < count:
            mel_BFT *= (torch.arange(self.target_length, device=wave_BT.device) < own_B[:, None])[:, None]
        return mel_BFT

    def normalise(self, mel_BFT: Tensor) -> Tensor:
        """(x - mean) / (2 std)."""
        return (mel_BFT - self.mean) / (2 * self.std)

    def forward(self, wave_BT: Tensor, lengths_B: Tensor | None = None) -> Tensor:
        """Waveforms (B, T), see :meth:`filter_bank`, to maps (B, 1, F, target_length): height frequency, width time."""
        return self.filter_bank(wave_BT, lengths_B).sub_(self.mean).div_(2 * self.std)[:, None]


def centred(wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Subtract each waveform's own mean; what lies beyond its length becomes 0."""
    inside = torch.arange(wave_BT.shape[1], device=wave_BT.device) < lengths_B.to(wave_BT.device)[:, None]
    mean = (wave_BT * inside).sum(dim=1, keepdim=True) / inside.sum(dim=1, keepdim=True)
    return (wave_BT - mean) * inside


def mix_waveforms(
    wave_BT: Tensor, lengths_B: Tensor, y_BK: Tensor, *, probability: float, alpha: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Mix waveforms with others of the batch: l * w1 + (1 - l) * w2 with l from Beta(alpha, alpha), targets likewise.

    Each waveform is mixed with the given probability; its partner is cut or padded to its length. The published code
    draws partners from the whole training set; a shuffled batch is a sample of it.

    Args:
        wave_BT: (B, T) with zeros beyond each length.
        lengths_B: samples of each waveform.
        y_BK: (B, K) float targets.
        probability: of each waveform to be mixed.
        alpha: parameter of the Beta distribution.

    Returns:
        Waveforms (B, T) of the same lengths, each with mean 0, and targets (B, K).
    """
    batch, device = len(wave_BT), wave_BT.device
    wave_BT = centred(wave_BT, lengths_B)
    share = torch.distributions.Beta(alpha, alpha).sample((batch, 1)).to(wave_BT)
    share = torch.where(torch.rand(batch, 1, device=device) < probability, share, torch.ones_like(share))
    partner = torch.randperm(batch, device=device)
    mixed = share * wave_BT + (1 - share) * wave_BT[partner]
    return centred(mixed, lengths_B), share * y_BK + (1 - share) * y_BK[partner]


def spec_augment(mel_BFT: Tensor, *, frequency_mask: int, time_mask: int) -> Tensor:
    """Set one band of mels and one stretch of frames of each map to 0, widths uniform below the given ones.

    Args:
        mel_BFT: (B, F, T), before normalisation.
        frequency_mask: the band is narrower than this number of mels; 0 for none.
        time_mask: the stretch is shorter than this number of frames; 0 for none.
    """
    x = mel_BFT[:, None]
    for axis, width in ((2, frequency_mask), (3, time_mask)):
        if width > 0:
            x = mask_along_axis_iid(x, min(width, x.shape[axis]), 0.0, axis)
    return x[:, 0]


def noise_and_roll(x_BFT: Tensor, *, noise: float, roll: int) -> Tensor:
    """Add uniform noise to normalised maps and turn each round in time.

    Args:
        x_BFT: (B, F, T).
        noise: each map gets noise U(0, 1) times a number drawn from U(0, noise); the published value is 0.1.
        roll: each map is turned by a whole number of frames in [-roll, roll - 1]; the published value is 10.
    """
    batch, frames = len(x_BFT), x_BFT.shape[2]
    if noise > 0:
        x_BFT = x_BFT + torch.rand_like(x_BFT) * torch.rand(batch, 1, 1, device=x_BFT.device) * noise
    if roll > 0:
        steps = torch.randint(-roll, roll, (batch, 1), device=x_BFT.device)
        source = (torch.arange(frames, device=x_BFT.device) - steps) % frames
        x_BFT = x_BFT.gather(2, source[:, None].expand_as(x_BFT))
    return x_BFT


@dataclass(frozen=True)
class AudioAugment:
    """What training adds to a batch; the defaults are those published for Speech Commands.

    Attributes:
        mixup: probability of a waveform to be mixed with another.
        frequency_mask: SpecAugment masks a band narrower than this, in mels.
        time_mask: SpecAugment masks a stretch shorter than this, in frames.
        noise: largest strength of the noise on the normalised map.
        roll: largest turn in time, in frames.

    Raises:
        InputError: if a number is out of range.
    """

    mixup: float = 0.6
    frequency_mask: int = 48
    time_mask: int = 48
    noise: float = 0.1
    roll: int = 10

    def __post_init__(self) -> None:
        low = min(self.frequency_mask, self.time_mask, self.roll)
        if not (0 <= self.mixup <= 1 and low >= 0 and 0 <= self.noise < math.inf):
            raise InputError(f"{self}: mixup is a probability, the others are 0 or more")

    def __call__(self, maps: LogMel, wave_BT: Tensor, lengths_B: Tensor, y_BK: Tensor) -> tuple[Tensor, Tensor]:
        """Waveforms (B, T), lengths (B,) and float targets (B, K) to augmented maps (B, 1, F, T) and targets (B, K)."""
        wave_BT, y_BK = mix_waveforms(wave_BT.float(), lengths_B, y_BK, probability=self.mixup)
        mel = spec_augment(
            maps.filter_bank(wave_BT, lengths_B), frequency_mask=self.frequency_mask, time_mask=self.time_mask
        )
        return noise_and_roll(maps.normalise(mel), noise=self.noise, roll=self.roll)[:, None], y_BK
