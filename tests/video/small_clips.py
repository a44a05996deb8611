"""Small videos whose brightness encodes the frame number, and short runs on them, shared by the video tests."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from numpy.typing import NDArray

COLORS = {"blue": (40, 60, 220), "green": (40, 200, 60), "red": (220, 50, 40)}
"""Color of the videos of each class."""
SMALL: dict[str, Any] = {"num_frames": 4, "sampling_rate": 2, "size": 32, "num_workers": 0, "repeats": 1}
PLAIN: dict[str, Any] = {"scale": [1.0, 1.0], "hflip": 0.0, "auto_augment": None}
"""Data settings that leave a square training clip unchanged."""


def gray(number: int) -> int:
    """Return the brightness of a numbered frame, which differs enough from its neighbors' for any codec."""
    return 20 + 6 * (number % 36)


def number_of(frame: NDArray[np.uint8]) -> int:
    """Return the number of a frame (H, W, 3) whose brightness is from :func:`gray`."""
    return round((float(frame.mean()) - 20) / 6)


def numbered(count: int, size: tuple[int, int] = (64, 48)) -> list[NDArray[np.uint8]]:
    """Return frames (H, W, 3) whose brightness encodes their number."""
    return [np.full((size[1], size[0], 3), gray(i), np.uint8) for i in range(count)]


def write_video(
    file: Path,
    frames: Sequence[NDArray[np.uint8]],
    *,
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    fps: int = 25,
    rotation: int = 0,
    pix_fmt: str = "yuv420p",
    **options: str,
) -> Path:
    """Write a video of RGB frames (H, W, 3); ``times`` are their presentation times in units of 1 / ``fps`` seconds."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream(codec, rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = frames[0].shape[1], frames[0].shape[0], pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame.pts = i if times is None else times[i]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def write_sound(file: Path) -> Path:
    """Write a file with one second of sound and no pictures."""
    with av.open(str(file), "w") as container:
        stream: Any = container.add_stream("aac", rate=16_000, layout="mono")
        for first in range(0, 16_384, 1_024):
            wave = np.sin(np.arange(first, first + 1_024) * 0.1)[None].astype(np.float32)
            frame = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16_000, first
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file


def colored(color: tuple[int, int, int], seed: int, count: int = 10) -> list[NDArray[np.uint8]]:
    """Return frames of one color with noise."""
    noise = np.random.default_rng(seed).integers(-30, 31, (count, 32, 32, 3))
    return list((np.array(color) + noise).clip(0, 255).astype(np.uint8))


def write_colors(root: Path, **splits: int) -> Path:
    """Write ``root/<split>/<color>/<n>.mp4``, with as many videos of each class as ``splits`` says."""
    for part, (split, count) in enumerate(splits.items()):
        for label, (name, color) in enumerate(COLORS.items()):
            for i in range(count):
                write_video(root / split / name / f"{i}.mp4", colored(color, 100 * part + 10 * label + i))
    return root


def write_list(root: Path, name: str, lines: Sequence[str]) -> Path:
    """Write a list of videos below ``root``."""
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root


def write_video_config(path: Path, root: Path | None, *, kind: str = "VideoFolder", **data: Any) -> Path:
    """Write a configuration of a tiny network on clips of four small frames, with further data settings."""
    init = SMALL | PLAIN | {"batch_size": 6, "test_views": 1, "test_crops": 1} | data
    init |= {"root": str(root)} if root else {}
    model = {"backbone": "test_unireplknet", "backbone_args": {"layer_scale_init_value": 0.5}, "lr": 0.02}
    content = {
        "model": {"class_path": "VideoClassifier", "init_args": model},
        "data": {"class_path": kind, "init_args": init},
        "trainer": {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def video_runs(out: Path) -> list[Path]:
    """Return the run folders below ``out``, oldest first."""
    return sorted((out / "lightning_logs" / "VideoClassifier").glob("version_*"))
