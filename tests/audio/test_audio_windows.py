"""Windows of recordings as rows with times, and as events."""

from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from small_sounds import PITCHES, RATE, SAMPLES, sound_runs, tone, write_tone
from training.small_runs import command, table

from audio import AudioClassifier, AudioSpec
from audio.feature_map import cut_windows
from audio.files import read_wave
from core.training.answers import Answer, EventMerger

STEP = SAMPLES // 2
PARTS = ("low", "high", "low")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of a low, a high and a low tone each, a short recording after it, and a broken one between them."""
    folder = tmp_path_factory.mktemp("recording")
    waves = [tone(PITCHES[name], RATE, seed=i) for i, name in enumerate(PARTS)]
    soundfile.write(folder / "a.wav", np.concatenate(waves), RATE)
    (folder / "b.wav").write_bytes(b"no sound")
    write_tone(folder / "c.wav", PITCHES["mid"], 2_000)
    return folder


def _predict(trained: dict[str, Path], out: Path, recording: Path, *words: str) -> list[dict[str, str]]:
    best = str(trained["folder"] / "checkpoints" / "best.ckpt")
    paths = ["--ckpt_path", best, "--data.predict_path", str(recording)]
    command("predict", trained["config"], out, *paths, *words)
    return table(sound_runs(out)[-1] / "predictions.csv")


def _task(trained: dict[str, Path]) -> AudioClassifier:
    file = trained["folder"] / "checkpoints" / "best.ckpt"
    return AudioClassifier.load_from_checkpoint(file, map_location="cpu").eval()


def test_windows_are_rows_with_start_and_end(trained_sounds: dict[str, Path], recording: Path, tmp_path: Path) -> None:
    words = ["--predict.windows", "true", "--predict.top_k", "2", "--predict.embeddings", str(tmp_path / "e.npz")]
    rows = _predict(trained_sounds, tmp_path / "out", recording, *words)
    assert list(rows[0]) == [*("file", "class", "probability", "start", "end", "class_2", "probability_2", "error")]
    starts = [*range(0, 3 * RATE - SAMPLES, STEP), 3 * RATE - SAMPLES]
    assert [row["file"] for row in rows] == [
        *[str(recording / "a.wav")] * len(starts),
        str(recording / "b.wav"),
        str(recording / "c.wav"),
    ]
    for row, start in zip(rows, starts, strict=False):
        assert float(row["start"]) == pytest.approx(start / RATE, abs=1e-3)
        assert float(row["end"]) == pytest.approx((start + SAMPLES) / RATE, abs=1e-3)
        first, last = int(start / RATE), int((start + SAMPLES - 1) / RATE)
        if first == last:
            assert row["class"] == PARTS[first]
    assert float(rows[len(starts) - 1]["end"]) == 3
    assert rows[-2]["error"]
    assert (float(rows[-1]["start"]), float(rows[-1]["end"])) == (0, 0.25)

    task = _task(trained_sounds)
    wave = read_wave(recording / "a.wav", RATE)
    windows = torch.stack(cut_windows(wave, SAMPLES, 0.5))
    with torch.no_grad():
        expected = task.answered_probabilities(task(windows)).amax(dim=1)
    found = [float(row["probability"]) for row in rows[: len(starts)]]
    assert found == pytest.approx(expected.tolist(), abs=1e-4)
    in_python = task.predict(recording, windows=True, top_k=2)
    assert [row["probability"] or 0 for row in in_python] == pytest.approx(
        [float(row["probability"] or 0) for row in rows], abs=1e-4
    )

    with np.load(tmp_path / "e.npz") as content:
        assert content["embedding"].shape == (len(rows), task.backbone.num_features)
        assert np.isnan(content["embedding"]).any(axis=1).tolist() == [bool(row["error"]) for row in rows]
        assert content["start"][1] == pytest.approx(STEP / RATE, abs=1e-3)
        mean = content["embedding"][: len(starts)].mean(axis=0)
    np.testing.assert_allclose(task.embed(recording / "a.wav")[0], mean, atol=1e-4)


def _runs(rows: list[dict[str, Any]], threshold: float) -> list[tuple[Any, ...]]:
    """The events of a recording, found class by class."""
    found = []
    for name in PITCHES:
        for above, group in groupby(rows, lambda row, name=name: row[f"p_{name}"] > threshold):  # type: ignore[misc]
            if above:
                run = list(group)
                found.append((run[0]["start"], run[-1]["end"], name, max(row[f"p_{name}"] for row in run)))
    return sorted(found)


def test_events_are_the_runs_of_windows_above_the_threshold(
    trained_sounds: dict[str, Path], recording: Path, tmp_path: Path
) -> None:
    output = tmp_path / "here.csv"
    words = ["--predict.threshold", "0.35", "--predict.output", str(output), "--data.batch_size", "1"]
    command(
        *("predict", trained_sounds["config"], tmp_path / "out", *words),
        *("--ckpt_path", str(trained_sounds["folder"]), "--data.predict_path", str(recording)),
    )
    assert "start" in table(output)[0]  # the windows themselves
    events = table(tmp_path / "here_events.csv")
    assert list(events[0]) == ["file", "start", "end", "class", "probability", "error"]
    files = [Path(row["file"]).name for row in events]
    assert files == sorted(files)
    assert [row["class"] for row in events if row["file"].endswith(("b.wav", "c.wav"))] == ["", "mid"]
    assert events[-2]["error"]

    task = _task(trained_sounds)
    expected = _runs(task.predict(recording / "a.wav", windows=True, all=True), 0.35)
    assert len(expected) >= 3
    assert {name for _, _, name, _ in expected} >= {"low", "high"}
    for row, (start, end, name, probability) in zip(events, expected, strict=False):
        assert (float(row["start"]), float(row["end"]), row["class"]) == (start, end, name)
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-4)
    in_python = task.predict(recording, threshold=0.35)
    assert [row["class"] for row in in_python] == [row["class"] or None for row in events]
    assert [row["end"] for row in in_python if row["end"]] == [float(row["end"]) for row in events if row["end"]]


@pytest.mark.parametrize("criterion", ["bce", "ce"])
def test_probabilities_of_exclusive_classes_add_up_to_one(criterion: Any) -> None:
    spec = AudioSpec(classes=("a", "b", "c"), sample_rate=RATE, num_mels=32, target_length=32, mean=-5.0, std=3.0)
    task = AudioClassifier("test_unireplknet", spec=spec, criterion=criterion).eval()
    waves = [torch.from_numpy(tone(700.0, length)) for length in (1_000, 9_000)]
    for row in task.predict(waves, all=True) + task.predict(waves, all=True, windows=True):
        assert sum(row[f"p_{name}"] for name in "abc") == pytest.approx(1, abs=1e-6)


def test_probabilities_of_several_labels_are_those_of_each() -> None:
    spec = AudioSpec(
        classes=("a", "b"), sample_rate=RATE, num_mels=32, target_length=32, mean=-5.0, std=3.0, multi_label=True
    )
    task = AudioClassifier("test_unireplknet", spec=spec).eval()
    with torch.no_grad():
        task.backbone.get_classifier().bias += 3.0  # type: ignore[operator,union-attr]
    wave = torch.from_numpy(tone(700.0, 9_000))
    (row,) = task.predict(wave, all=True)
    assert row["labels"] == "a;b"
    assert min(row["p_a"], row["p_b"]) > 0.9
    events = task.predict(wave, threshold=0.9)
    assert [(event["class"], event["start"], event["end"]) for event in events] == [("a", 0, 1.125), ("b", 0, 1.125)]
    assert {event["file"] for event in events} == {"array 0"}


def _window(file: str, start: float, end: float, **above: float) -> Answer:
    return Answer([{"file": file, "start": start, "end": end}], above=[above])


def _events(*windows: Answer) -> list[tuple[Any, ...]]:
    merger = EventMerger()
    rows = [row for window in windows for row in merger.add([window])] + merger.finish()
    return [tuple(row.values()) for row in rows]


def test_events_of_windows() -> None:
    assert _events() == []
    assert _events(_window("f", 0, 2), _window("f", 1, 3)) == []
    overlapping = [_window("f", 0, 2, a=0.6), _window("f", 1, 3, a=0.9, b=0.7), _window("f", 2, 4, b=0.8)]
    assert _events(*overlapping) == [("f", 0, 3, "a", 0.9, None), ("f", 1, 4, "b", 0.8, None)]
    interrupted = [_window("f", 0, 1, a=0.6), _window("f", 1, 2), _window("f", 2, 3, a=0.7)]
    assert _events(*interrupted) == [("f", 0, 1, "a", 0.6, None), ("f", 2, 3, "a", 0.7, None)]
    with_gap = [_window("f", 0, 1, a=0.6), _window("f", 1.5, 2.5, a=0.7)]
    assert len(_events(*with_gap)) == 2
    two_files = [_window("f", 0, 1, a=0.6), _window("g", 0, 1, a=0.7), _window("g", 1, 2, a=0.8)]
    assert _events(*two_files) == [("f", 0, 1, "a", 0.6, None), ("g", 0, 2, "a", 0.8, None)]
    same_file_again = [_window("f", 0, 1, a=0.6), _window("f", 0, 1, a=0.7)]
    assert _events(*same_file_again) == [("f", 0, 1, "a", 0.6, None), ("f", 0, 1, "a", 0.7, None)]
