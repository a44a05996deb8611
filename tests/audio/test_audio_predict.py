"""Waveforms as input of a task: windows of long recordings, and the same answers in every way of asking."""

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning import Trainer
from small_sounds import PITCHES, RATE, SAMPLES, SMALL, tone, write_tone
from torch import Tensor, nn
from torch.testing import assert_close

from audio import AudioClassifier, AudioFolder, AudioSpec
from audio.feature_map import cut_windows, pad_waves
from audio.files import read_wave
from core.errors import InputError, MissingError
from core.training.hub import from_pretrained

SPEC = AudioSpec(
    classes=tuple(sorted(PITCHES)), sample_rate=RATE, num_mels=32, target_length=32, mean=-5.0, std=3.0, overlap=0.25
)
LENGTHS = {"short": 900, "window": SAMPLES, "longer": SAMPLES + 1, "long": 9_000}
QUIET: dict[str, Any] = {
    **{"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False},
    **{"enable_model_summary": False},
}


def _task(**options: Any) -> AudioClassifier:
    torch.manual_seed(1)
    args = {"layer_scale_init_value": 0.5}
    return AudioClassifier("test_unireplknet", spec=SPEC, backbone_args=args, **options).eval()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings of different lengths, one of them at another rate."""
    folder = tmp_path_factory.mktemp("recordings")
    for i, (name, samples) in enumerate(LENGTHS.items()):
        write_tone(folder / f"{name}.wav", 300.0 * (i + 1), samples, seed=i)
    write_tone(folder / "other.flac", 700.0, 50_000, 22_050)
    return folder


def _waves(folder: Path) -> list[Tensor]:
    return [read_wave(file, RATE) for file in sorted(folder.iterdir())]


def _by_trainer(task: AudioClassifier, path: Path) -> list[dict[str, Any]]:
    data = AudioFolder(**SMALL, overlap=0.25, predict_path=str(path), batch_size=2)
    columns = Trainer(**QUIET).predict(task, data) or []
    return [dict(zip(part, row, strict=True)) for part in columns for row in zip(*part.values(), strict=True)]  # type: ignore[arg-type,call-overload]


def _equal(rows: list[dict[str, Any]], probabilities: Tensor, folder: Path) -> None:
    assert [row["file"] for row in rows] == [str(file) for file in sorted(folder.iterdir())]
    assert [row["class"] for row in rows] == [SPEC.classes[i] for i in probabilities.argmax(dim=1).tolist()]
    assert [row["probability"] for row in rows] == pytest.approx(probabilities.amax(dim=1).tolist(), abs=1e-5)


@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_every_way_to_an_answer_gives_the_same_one(criterion: Any, recordings: Path, tmp_path: Path) -> None:
    task = _task(criterion=criterion)
    waves = _waves(recordings)
    with torch.no_grad():
        expected = torch.cat([task.answered_probabilities(task(wave[None])) for wave in waves])
        assert_close(task.answered_probabilities(task(waves)), expected, rtol=0, atol=1e-5)
        assert_close(task.answered_probabilities(task(*pad_waves(waves))), expected, rtol=0, atol=1e-5)
    assert expected.std(dim=0).min() > 1e-4  # else a comparison would say nothing
    _equal(_by_trainer(task, recordings), expected, recordings)
    _equal(task.predict(recordings), expected, recordings)
    _equal(task.predict([str(file) for file in sorted(recordings.iterdir())], batch_size=2), expected, recordings)

    arrays = task.predict([wave.numpy() for wave in waves])
    assert [row["file"] for row in arrays] == [f"array {i}" for i in range(len(waves))]
    assert [row["probability"] for row in arrays] == pytest.approx(expected.amax(dim=1).tolist(), abs=1e-5)
    (row,) = task.predict(waves[0])
    assert row["probability"] == pytest.approx(float(expected[0].max()), abs=1e-5)

    task.save_pretrained(tmp_path / "shared")
    trainer = Trainer(**QUIET)
    trainer.strategy.connect(task)
    trainer.save_checkpoint(tmp_path / "task.ckpt", weights_only=True)
    shared = from_pretrained(str(tmp_path / "shared"))
    loaded = AudioClassifier.load_from_checkpoint(tmp_path / "task.ckpt", map_location="cpu")
    for other in (shared.eval(), loaded.eval()):
        assert isinstance(other, AudioClassifier)
        assert other.spec == SPEC
        _equal(other.predict(recordings), expected, recordings)
        with torch.no_grad():
            assert_close(other.answered_probabilities(other(waves)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_probability_of_a_long_recording_is_the_mean_over_its_windows(criterion: Any) -> None:
    task = _task(criterion=criterion)
    wave = torch.cat([torch.from_numpy(tone(frequency, 4_000)) for frequency in (300.0, 1_000.0)])
    starts = [0, 2_010, 4_020, 8_000 - SAMPLES]
    windows = torch.stack([wave[start : start + SAMPLES] for start in starts])
    with torch.no_grad():
        expected = task.probabilities(task(windows)).mean(dim=0)
        assert_close(task.probabilities(task(wave[None]))[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_mean_of_certain_windows_stays_finite(criterion: Any) -> None:
    logits = torch.tensor([[90.0, -90.0, 0.0], [88.0, -95.0, 0.0]])
    mean = _task(criterion=criterion).mean_logits(logits)
    assert bool(mean.isfinite().all())
    assert 85 < float(mean[0] - mean[2]) < 95
    assert -100 < float(mean[1] - mean[2]) < -85


def test_training_cuts_a_long_recording_at_its_end() -> None:
    task = _task(norm_eval=True).train()
    wave = torch.from_numpy(tone(300.0, 9_000))[None].repeat(2, 1)
    assert_close(task(wave), task(wave[:, :SAMPLES]), rtol=0, atol=1e-5)


class _Counted(nn.Module):
    """A backbone that records how many windows each pass reads."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(32, 3)
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        return self.linear(x.mean(dim=(1, 3)))


def test_hours_go_through_the_net_in_parts_and_are_never_padded_to_each_other(tmp_path: Path) -> None:
    write_tone(tmp_path / "a.wav", 300.0, 1_000)
    write_tone(tmp_path / "b.wav", 300.0, 200_000)
    task = AudioClassifier(_Counted(), spec=SPEC).eval()
    data = AudioFolder(**SMALL, predict_path=str(tmp_path))
    data.setup("predict")
    waves, names = next(iter(data.predict_dataloader()))
    assert isinstance(waves, list)
    assert [len(wave) for wave in waves] == [1_000, 200_000]
    assert names == [str(tmp_path / "a.wav"), str(tmp_path / "b.wav")]
    task(waves)
    windows = 1 + len(cut_windows(waves[1], SAMPLES, 0.25))
    assert windows > 90
    assert task.backbone.sizes == [64, windows - 64]


def test_prediction_works_with_processes_that_do_not_fork(tmp_path: Path) -> None:
    """As on macOS, where everything that a worker process needs is pickled."""
    data: Any = AudioFolder(**SMALL, mean=0.0, std=1.0, predict_path=str(write_tone(tmp_path / "a.wav", 300.0)))
    data.setup("predict")
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, loops=(number for number in range(3)))
    loader = data.predict_dataloader()
    pickle.dumps((loader.dataset, loader.collate_fn))


def test_sources_that_are_no_recordings(tmp_path: Path) -> None:
    task = _task()
    with pytest.raises(MissingError, match="neither a file nor a folder; give recordings"):
        task.predict(tmp_path / "nowhere.wav")
    with pytest.raises(InputError, match=r"array 0 has the shape \(2, 900\)"):
        task.predict(np.zeros((2, 900), np.float32))
    with pytest.raises(InputError, match=r"a waveform has 100 samples, a frame 200"):
        task(torch.zeros(1, 100))


@settings(max_examples=80)
@given(st.integers(1, 40_000), st.floats(0, 0.95))
def test_windows_cover_a_recording(length: int, overlap: float) -> None:
    wave = torch.arange(length)
    windows = cut_windows(wave, SAMPLES, overlap)
    assert torch.equal(torch.cat(windows).unique(), wave)
    assert int(windows[0][0]) == 0
    assert int(windows[-1][-1]) == length - 1
    if length <= SAMPLES:
        assert len(windows) == 1
        return
    starts = [int(window[0]) for window in windows]
    steps = np.diff(starts)
    assert {len(window) for window in windows} == {SAMPLES}
    assert all(
        torch.equal(window, wave[start : start + SAMPLES]) for window, start in zip(windows, starts, strict=True)
    )
    assert set(steps[:-1]) <= {round(SAMPLES * (1 - overlap))}
    assert 0 < steps[-1] <= round(SAMPLES * (1 - overlap))


@pytest.mark.parametrize(("length", "starts"), [(2_680, [0]), (2_681, [0, 1]), (5_360, [0, 1_340, 2_680])])
def test_windows_of_half_overlap(length: int, starts: list[int]) -> None:
    assert [int(window[0]) for window in cut_windows(torch.arange(length), SAMPLES, 0.5)] == starts


def test_windows_that_share_nearly_everything_are_a_sample_apart() -> None:
    assert [window.tolist() for window in cut_windows(torch.arange(5), 3, 0.95)] == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
