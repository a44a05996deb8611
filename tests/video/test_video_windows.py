"""Windows of videos as rows with times, and as events."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_clips import COLORS, colored, video_runs, write_video
from torch.testing import assert_close
from training.small_runs import command, table

from core.errors import InputError
from video import VideoClassifier
from video.files import open_video
from video.sampling import Sampling


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 blue, 16 red and 4 blue frames at 4 frames a second, a broken video, and one of 6 frames."""
    folder = tmp_path_factory.mktemp("films")
    frames = [colored(COLORS[name], i, n) for i, (name, n) in enumerate((("blue", 16), ("red", 16), ("blue", 4)))]
    write_video(folder / "a.mp4", [frame for part in frames for frame in part], fps=4)
    (folder / "b.mp4").write_bytes(b"no video")
    write_video(folder / "c.mp4", colored(COLORS["green"], 9, 6), fps=4)
    return folder


def _task(trained: dict[str, Path]) -> VideoClassifier:
    file = trained["folder"] / "checkpoints" / "best.ckpt"
    return VideoClassifier.load_from_checkpoint(file, map_location="cpu").eval()


@pytest.mark.parametrize("workers", ["0", "1"])
def test_windows_cover_a_video(workers: str, trained_videos: dict[str, Path], films: Path, tmp_path: Path) -> None:
    words = ["--predict.windows", "true", "--predict.embeddings", str(tmp_path / "e.npy"), "--data.batch_size", "2"]
    words += ["--data.num_workers", workers, "--data.predict_path", str(films)]
    command("predict", trained_videos["config"], tmp_path, "--ckpt_path", str(trained_videos["folder"]), *words)
    rows = table(video_runs(tmp_path)[0] / "predictions.csv")
    assert [Path(row["file"]).name for row in rows] == ["a.mp4"] * 5 + ["b.mp4", "c.mp4"]
    times = [(float(row["start"]), float(row["end"])) for row in rows if not row["error"]]
    assert times == [(0, 2), (2, 4), (4, 6), (6, 8), (7, 9), (0, 1.5)]
    assert [row["class"] for row in rows][:4] == ["blue", "blue", "red", "red"]
    assert rows[-1]["class"] == "green"
    assert rows[5]["error"].startswith(str(films / "b.mp4"))

    task = _task(trained_videos)
    with open_video(films / "a.mp4") as video:
        frames = np.stack(video.read(np.arange(8, 16)))
    (expected,) = task.predict(frames)
    assert float(rows[1]["probability"]) == pytest.approx(expected["probability"], abs=1e-4)
    vectors = np.load(tmp_path / "e.npy")
    assert vectors.shape == (7, task.backbone.num_features)
    assert_close(torch.from_numpy(vectors[1:2]), task.embed(frames), rtol=1e-3, atol=1e-4)


def test_events_of_a_video(trained_videos: dict[str, Path], films: Path) -> None:
    events = _task(trained_videos).predict(films, threshold=0.5, batch_size=2)
    blue, red, *_ = events
    assert (blue["start"], blue["end"], blue["class"]) == (0, 4, "blue")
    assert (red["start"], red["class"]) == (4, "red")
    assert red["end"] in (8, 9)  # half of the last window is red
    assert events[-1]["end"] == 1.5
    assert [event["error"] is None for event in events[-2:]] == [False, True]


def test_views_of_a_video_give_one_embedding(trained_videos: dict[str, Path], films: Path) -> None:
    task = _task(trained_videos)
    task.store_spec(type(task.spec).from_dict(task.spec.to_dict() | {"test_views": 3}))
    (vector,) = task.embed(films / "a.mp4")
    with open_video(films / "a.mp4") as video:
        frames = video.read(np.arange(36))
    views = [torch.from_numpy(frames[clip]) for clip in Sampling(4, 2).views(36, 3)]
    clips = torch.stack([view.permute(0, 3, 1, 2) for view in views])[None]
    with torch.no_grad():
        each = []
        for view in clips.unbind(dim=1):
            backbone: Any = task.backbone
            each.append(backbone.forward_head(backbone.forward_features(task.to_maps(view)), pre_logits=True))
    assert_close(vector, torch.stack(each).mean(dim=0)[0], rtol=1e-3, atol=1e-4)


def test_videos_without_times_or_windows_are_refused(trained_videos: dict[str, Path]) -> None:
    task = _task(trained_videos)
    frames = np.zeros((10, 32, 32, 3), np.uint8)
    with pytest.raises(InputError, match="array 0 has frames without times"):
        task.predict(frames, windows=True)
    task.store_spec(type(task.spec).from_dict(task.spec.to_dict() | {"sampling": "uniform"}))
    with pytest.raises(InputError, match="spreads a clip over the whole video, so that there are no windows"):
        task.predict(frames, windows=True)
