"""Training augmentation: waveforms are mixed before the map, and maps are masked, noised and rolled after it.

    waveform ─ subtract its mean ─ mix ─► LogMel ─► map ─ mask ─ add noise ─ roll

The published code masks with log-mel 0 before it normalizes. Here, the map is already normalized, and a masked cell
gets the value to which log-mel 0 is normalized. The result is the same.
"""

import torch
from torch import Tensor
from torchaudio.functional import mask_along_axis_iid

__all__ = ["centered", "mix_waveforms", "noise_and_roll", "spec_augment"]


def centered(wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
    """Subtract the mean of each waveform; samples beyond its length become 0.

    Args:
        wave_BT: waveforms (B, T) float, 0 beyond their lengths.
        lengths_B: number of samples of each waveform (B,) int64.
    """
    inside_BT = torch.arange(wave_BT.shape[1], device=wave_BT.device) < lengths_B.to(wave_BT.device)[:, None]
    mean_B1 = (wave_BT * inside_BT).sum(dim=1, keepdim=True) / inside_BT.sum(dim=1, keepdim=True)
    return (wave_BT - mean_B1) * inside_BT


def mix_waveforms(
    wave_BT: Tensor, lengths_B: Tensor, y_BK: Tensor, *, probability: float, alpha: float = 10.0
) -> tuple[Tensor, Tensor]:
    """Mix waveforms with others of the batch: w = l w1 + (1 - l) w2, with l drawn from Beta(alpha, alpha).

    Targets are mixed in the same way. A partner is cut or padded to the length of the waveform with which it is mixed.
    The published code draws partners from the whole training set, of which a shuffled batch is a sample.

    Args:
        wave_BT: waveforms (B, T) float, 0 beyond their lengths.
        lengths_B: number of samples of each waveform (B,) int64.
        y_BK: targets (B, K) float in [0, 1].
        probability: probability that a waveform is mixed.
        alpha: parameter of the Beta distribution.

    Returns:
        Waveforms (B, T) of the same lengths, each with mean 0, and their targets (B, K).
    """
    batch = len(wave_BT)
    device = wave_BT.device
    dtype = wave_BT.dtype  # torch's default dtype may be a narrower one
    wave_BT = centered(wave_BT, lengths_B)

    parameter = torch.tensor(alpha, dtype=torch.float32)  # there is no Beta distribution for narrower dtypes
    share_B1 = torch.distributions.Beta(parameter, parameter).sample((batch, 1)).to(wave_BT)
    chosen_B1 = torch.rand(batch, 1, device=device, dtype=dtype) < probability
    share_B1 = torch.where(chosen_B1, share_B1, torch.ones_like(share_B1))
    partner_B = torch.randperm(batch, device=device)

    mixed_BT = share_B1 * wave_BT + (1 - share_B1) * wave_BT[partner_B]
    target_BK = share_B1 * y_BK + (1 - share_B1) * y_BK[partner_B]
    return centered(mixed_BT, lengths_B), target_BK


def spec_augment(x_BCFT: Tensor, *, frequency_mask: int, time_mask: int, value: Tensor | float) -> Tensor:
    """Mask one range of mel bands and one range of frames in each map.

    Args:
        x_BCFT: maps (B, 1, F, T).
        frequency_mask: the number of masked mel bands is drawn uniformly from [0, frequency_mask); 0 for no mask.
        time_mask: the number of masked frames is drawn uniformly from [0, time_mask); 0 for no mask.
        value: value of the masked cells.
    """
    for axis, limit in ((2, frequency_mask), (3, time_mask)):
        if limit > 0:
            x_BCFT = mask_along_axis_iid(x_BCFT, min(limit, x_BCFT.shape[axis]), value, axis)
    return x_BCFT


def noise_and_roll(x_BCFT: Tensor, *, noise: float, roll: int) -> Tensor:
    """Add uniform noise to each normalized map, and roll it in time.

    Args:
        x_BCFT: maps (B, 1, F, T).
        noise: the noise is drawn from U(0, 1) and multiplied by one number from U(0, noise) for each map; the published
            value is 0.1.
        roll: the number of frames is a whole number, drawn from [-roll, roll) for each map; the published value is 10.
    """
    batch = len(x_BCFT)
    frames = x_BCFT.shape[3]
    device = x_BCFT.device

    if noise > 0:
        noise_BCFT = torch.rand_like(x_BCFT)
        strength_B111 = torch.rand(batch, 1, 1, 1, device=device, dtype=x_BCFT.dtype) * noise
        x_BCFT = x_BCFT + noise_BCFT * strength_B111

    if roll > 0:
        steps_B1 = torch.randint(-roll, roll, (batch, 1), device=device)
        source_BT = (torch.arange(frames, device=device) - steps_B1) % frames
        x_BCFT = x_BCFT.gather(3, source_BT[:, None, None].expand_as(x_BCFT))

    return x_BCFT
