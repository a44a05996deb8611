"""The training augmentation: mixing of waveforms, masks, noise and rolling, each by its formula, and their order."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close
from torchaudio.functional import mask_along_axis_iid

from audio import AudioClassifier, AudioSpec
from audio.augment import mix_waveforms, noise_and_roll, spec_augment
from audio.feature_map import pad_waves
from core.errors import InputError

SMALL = AudioSpec(sample_rate=8_000, num_mels=16, target_length=20, mean=-6.0, std=3.0)
MAPS = SMALL.feature_map()
OFF: dict[str, Any] = {"mixup": 0.0, "frequency_mask": 0, "time_mask": 0, "noise": 0.0, "roll": 0}


class _Maps(nn.Module):
    """A backbone that stores the maps that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return x.flatten(1)[:, :3]


def _augmented(wave_BT: Tensor, lengths_B: Tensor, y: Tensor, spec: AudioSpec = SMALL, **options: Any) -> Any:
    """Return the maps and the targets with which a task trains."""
    task = AudioClassifier(_Maps(), max(2, y.shape[-1]), spec=spec, **OFF | options).train()
    _, target = task.training_output((wave_BT, lengths_B), y)
    return task.backbone.seen, target


def _waves(lengths: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return noise with a different offset in each waveform, the lengths, and one class for each."""
    waves = [0.2 * torch.randn(length) + 0.1 * i for i, length in enumerate(lengths)]
    return *pad_waves(waves), torch.eye(len(lengths))


def _plain(wave: Tensor, length: int) -> Tensor:
    """Return one waveform of a batch, minus its mean."""
    own = wave[:length].double()
    return own - own.mean()


@settings(max_examples=60)
@given(st.lists(st.integers(2, 200), min_size=1, max_size=8), st.integers(0, 10**6))
def test_mixing_equals_the_formula(lengths: list[int], seed: int) -> None:
    """Each waveform has its own class, so the targets tell the partner and the share."""
    torch.manual_seed(seed)
    wave_BT, lengths_B, y_BK = _waves(lengths)
    mixed_BT, target_BK = mix_waveforms(wave_BT, lengths_B, y_BK, probability=1.0)
    assert mixed_BT.shape == wave_BT.shape
    assert_close(target_BK.sum(dim=1), torch.ones(len(lengths)))
    for i, length in enumerate(lengths):
        others = [j for j in target_BK[i].nonzero().flatten().tolist() if j != i]
        partner, share = (others[0], float(target_BK[i, i])) if others else (i, 1.0)
        assert len(others) <= 1
        other = _plain(wave_BT[partner], lengths[partner])[:length]
        other = F.pad(other, (0, length - len(other)))
        expected = share * _plain(wave_BT[i], length) + (1 - share) * other
        assert_close(mixed_BT[i, :length].double(), expected - expected.mean(), rtol=0, atol=1e-5)
        assert bool((mixed_BT[i, length:] == 0).all())
        assert abs(float(mixed_BT[i, :length].mean())) < 1e-5


def test_without_mixing_only_the_means_go() -> None:
    wave_BT, lengths_B, y_BK = _waves([50, 300, 120])
    plain_BT, target_BK = mix_waveforms(wave_BT, lengths_B, y_BK, probability=0.0)
    assert_close(target_BK, y_BK, rtol=0, atol=0)
    for i, length in enumerate(lengths_B.tolist()):
        assert_close(plain_BT[i, :length].double(), _plain(wave_BT[i], length), rtol=0, atol=1e-6)
        assert bool((plain_BT[i, length:] == 0).all())


def test_share_of_mixed_waveforms_and_distribution_of_their_shares() -> None:
    wave_BT, lengths_B, y_BK = _waves([4] * 2_000)
    _, target_BK = mix_waveforms(wave_BT, lengths_B, y_BK, probability=0.6)
    own = target_BK.diagonal()
    mixed = own[own < 1]
    assert len(mixed) / 2_000 == pytest.approx(0.6, abs=0.05)
    assert float(mixed.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(mixed.std()) == pytest.approx((1 / 84) ** 0.5, abs=0.015)  # of Beta(10, 10)


def test_two_of_one_class_and_several_labels_add_up() -> None:
    wave_BT, lengths_B, _ = _waves([40] * 6)
    same = torch.tensor([[0.0, 1.0]]).repeat(6, 1)
    assert_close(mix_waveforms(wave_BT, lengths_B, same, probability=1.0)[1], same)
    several = torch.tensor([[1.0, 1.0]]).repeat(6, 1)
    assert_close(mix_waveforms(wave_BT, lengths_B, several, probability=1.0)[1], several)


def _masked(x_FT: Tensor) -> tuple[list[int], list[int]]:
    """Return the rows and columns that are zero in a map which had no zeros."""
    rows = (x_FT == 0).all(dim=1).nonzero().flatten().tolist()
    columns = (x_FT == 0).all(dim=0).nonzero().flatten().tolist()
    return rows, columns


@settings(max_examples=80)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 30), st.integers(0, 30), st.integers(0, 10**6))
def test_one_band_and_one_stretch_are_masked(bands: int, frames: int, high: int, wide: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.rand(3, 1, bands, frames) + 1
    masked = spec_augment(x, frequency_mask=high, time_mask=wide, value=0.0)
    for before, after in zip(x[:, 0], masked[:, 0], strict=True):
        rows, columns = _masked(after)
        assert len(rows) <= max(0, high - 1)
        assert len(columns) <= max(0, wide - 1)
        for found in (rows, columns):
            assert found == list(range(found[0], found[0] + len(found)) if found else [])
        expected = before.clone()
        expected[rows], expected[:, columns] = 0, 0
        assert_close(after, expected, rtol=0, atol=0)


def test_masks_differ_from_map_to_map_and_take_every_width_below_the_limit() -> None:
    masked = spec_augment(torch.ones(2_000, 1, 16, 24), frequency_mask=6, time_mask=9, value=torch.tensor(0.0))
    found = [_masked(x) for x in masked[:, 0]]
    assert len({(tuple(rows), tuple(columns)) for rows, columns in found}) > 200
    for axis, limit in ((0, 6), (1, 9)):
        counts = torch.bincount(torch.tensor([len(part[axis]) for part in found]), minlength=limit)
        assert len(counts) == limit
        assert_close(counts / 2_000, torch.full((limit,), 1 / limit), rtol=0, atol=0.05)
    assert {row for rows, _ in found for row in rows} >= set(range(15))  # torchaudio spares the last one
    assert {column for _, columns in found for column in columns} >= set(range(23))


def test_no_mask_leaves_the_map_as_it_is() -> None:
    x = torch.randn(4, 1, 8, 9)
    assert spec_augment(x, frequency_mask=0, time_mask=0, value=0.0) is x
    masked = spec_augment(x, frequency_mask=7, time_mask=0, value=0.0)
    rows, columns = zip(*map(_masked, masked[:, 0]), strict=True)
    assert any(rows)
    assert not any(columns)


@settings(max_examples=40)
@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 10**6))
def test_rolling_is_that_of_torch(frames: int, limit: int, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(5, 1, 3, frames)
    rolled = noise_and_roll(x, noise=0.0, roll=limit)
    for before, after in zip(x, rolled, strict=True):
        assert any(torch.equal(after, before.roll(step, dims=2)) for step in range(-limit, limit))


def test_every_roll_in_range_and_no_other() -> None:
    x = torch.arange(64.0).expand(3_000, 1, 2, 64)
    rolled = noise_and_roll(x, noise=0.0, roll=10)
    assert torch.equal(rolled[:, :, 0], rolled[:, :, 1])
    steps = (-rolled[:, 0, 0, 0] + 32).remainder(64) - 32
    assert set(steps.int().tolist()) == set(range(-10, 10))


def test_noise_is_uniform_and_its_strength_differs_from_map_to_map() -> None:
    noise = noise_and_roll(torch.zeros(400, 1, 16, 16), noise=0.1, roll=0)
    assert noise.min() >= 0
    assert noise.max() < 0.1
    strength = noise.amax(dim=(1, 2, 3))
    assert float(strength.mean()) == pytest.approx(0.05, abs=0.01)
    assert float(strength.min()) < 0.01 < 0.09 < float(strength.max())
    assert_close(noise.mean(dim=(1, 2, 3)) / strength, torch.full((400,), 0.5), rtol=0, atol=0.1)
    x = torch.randn(2, 1, 3, 4)
    assert noise_and_roll(x, noise=0.0, roll=0) is x


def test_with_everything_off_maps_and_targets_are_those_of_evaluation() -> None:
    wave_BT, lengths_B, y_BK = _waves([900, 2_000, 1_500])
    x, y = _augmented(wave_BT, lengths_B, y_BK)
    assert_close(x, MAPS(wave_BT, lengths_B), rtol=0, atol=1e-4)
    assert_close(y, y_BK, rtol=0, atol=0)


@pytest.mark.parametrize("mean", [-6.845978, 2.5])
def test_steps_in_the_published_order(mean: float) -> None:
    """The steps one by one: mix, filter bank, pad with 0, mask with 0, normalize, add noise, roll."""
    spec = AudioSpec(mean=mean, std=5.5654526)
    maps = spec.feature_map()
    wave_BT, lengths_B, y_BK = _waves([16_000, 12_345, 20_000, 400])

    torch.manual_seed(7)
    mixed_BT, expected_BK = mix_waveforms(wave_BT, lengths_B, y_BK, probability=0.6)
    mel = maps.filter_bank(mixed_BT, lengths_B)[:, None]
    assert bool((mel[1, :, :, maps.frames(12_345) :] == 0).all())
    mel = mask_along_axis_iid(mel, 48, 0.0, 2)
    mel = mask_along_axis_iid(mel, 48, 0.0, 3)
    x = (mel - mean) / (2 * 5.5654526)
    noise = torch.rand_like(x)
    x = x + noise * torch.rand(4, 1, 1, 1) * 0.1
    steps = torch.randint(-10, 10, (4, 1))
    expected = torch.stack([one.roll(int(step), dims=2) for one, step in zip(x, steps, strict=True)])

    torch.manual_seed(7)
    published = {"mixup": 0.6, "frequency_mask": 48, "time_mask": 48, "noise": 0.1, "roll": 10}
    x, y = _augmented(wave_BT, lengths_B, y_BK, spec, **published)
    assert_close(x, expected, rtol=0, atol=1e-6)
    assert_close(y, expected_BK, rtol=0, atol=0)


def test_masked_cells_have_the_value_of_padded_ones() -> None:
    wave_BT, lengths_B, y_BK = _waves([1_200] * 64)
    plain = MAPS(wave_BT, lengths_B)
    x, _ = _augmented(wave_BT, lengths_B, y_BK, frequency_mask=8, time_mask=6)
    assert_close(x[..., 13:], torch.full((64, 1, 16, 7), 1.0))  # (0 + 6) / (2 * 3)
    masked = (x - plain).abs() > 1e-3
    assert int(masked.any(dim=3).any(dim=2).sum()) > 50
    assert_close(x[masked], torch.ones(int(masked.sum())), rtol=0, atol=0)


@pytest.mark.parametrize(("name", "axis"), [("frequency_mask", 2), ("time_mask", 1)])
def test_each_mask_by_itself(name: str, axis: int) -> None:
    wave_BT, lengths_B, y_BK = _waves([1_800] * 32)  # 21 frames: no padding
    x, _ = _augmented(wave_BT, lengths_B, y_BK, **{name: 6})
    masked = (x[:, 0] == 1).all(dim=axis).sum(dim=1)
    assert set(masked.tolist()) == {0, 1, 2, 3, 4, 5}
    assert int((x == 1).sum()) == int(masked.sum()) * x.shape[1 + axis]


def test_noise_is_added_after_the_masks_and_before_rolling_the_padding() -> None:
    wave_BT, lengths_B, y_BK = _waves([400] * 300)  # 3 frames, 17 of padding
    x, _ = _augmented(wave_BT, lengths_B, y_BK, frequency_mask=17, noise=0.1, roll=10)
    padding = (x >= 1) & (x < 1.1)
    assert padding.float().mean() > 0.8
    assert padding[..., 0].float().mean() == pytest.approx(0.9, abs=0.1)  # rolled away from the end
    assert x.unique().numel() > 0.9 * x.numel()  # noise on masked and padded cells too


def test_maps_keep_their_shape_and_are_finite_by_default() -> None:
    wave_BT, lengths_B, y_BK = _waves([16_000, 400, 12_345])
    backbone = nn.Sequential(_Maps(), nn.Linear(3, 3))
    task = AudioClassifier(backbone, 3, spec=AudioSpec()).train()
    logits, y = task.training_output((wave_BT.half(), lengths_B), y_BK)
    x = backbone[0].seen
    assert x.shape == (3, 1, 128, 128)
    assert x.dtype == y.dtype == torch.float32
    assert bool(x.isfinite().all())
    assert logits.shape == (3, 3)
    assert_close(y.sum(dim=1), torch.ones(3))


def test_labels_become_targets_of_every_class_in_training() -> None:
    wave_BT, lengths_B, _ = _waves([900, 900, 900])
    _, y = _augmented(wave_BT, lengths_B, torch.tensor([2, 0, 1]), mixup=1.0)
    assert y.dtype == torch.float32
    assert y.sum(dim=1).tolist() == pytest.approx([1, 1, 1])


def test_masks_of_a_long_map_in_a_narrow_type_lie_where_they_should() -> None:
    """bfloat16 cannot represent 257."""
    spec = AudioSpec(sample_rate=8_000, num_mels=16, target_length=600, mean=-6.0, std=3.0)
    backbone = nn.Sequential(_Maps(), nn.Linear(3, 3)).to(torch.bfloat16)
    task = AudioClassifier(backbone, 3, spec=spec, **OFF | {"time_mask": 500}).train()
    wave_BT, lengths_B, y_BK = _waves([49_000, 49_000, 49_000])
    widths = set()
    for _ in range(20):
        task.training_output((wave_BT, lengths_B), y_BK)
        x = backbone[0].seen
        assert x.dtype == torch.bfloat16
        widths |= {int(width) % 2 for width in (x[:, 0] == 1).all(dim=1).sum(dim=1)}
    assert widths == {0, 1}


@pytest.mark.parametrize(
    ("name", "value"),
    [("mixup", -0.1), ("mixup", 1.1), ("frequency_mask", -1), ("time_mask", -1), ("noise", -0.1), ("roll", -1)],
)
def test_numbers_out_of_range(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"{name}={value}.*expected a probability for mixup, and 0 or more"):
        AudioClassifier(_Maps(), 3, **OFF | {name: value})
