"""The rendered camera moves: their layout, that they are always the same, and that each moves as its class says."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import video.demo
from core.errors import InputError
from video import CameraMoves
from video.decoding import VideoFile
from video.demo import MOVES, PHOTOS, render_moves

FEW = {"train": ("skimage.data/coins.png",), "val": ("skimage.data/grass.png",), "test": ("skimage.data/gravel.png",)}
COUNTS = {"train": 2, "val": 1, "test": 1}


@pytest.fixture(scope="module")
def few() -> Iterator[None]:
    """Only three photos."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video.demo, "PHOTOS", FEW)
        patch.setattr(video.demo, "CLIPS", COUNTS)
        yield


@pytest.fixture(scope="module")
def moves(few: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few clips of each move."""
    root = tmp_path_factory.mktemp("moves") / "deep" / "clips"
    render_moves(root)
    return root


def _frames(file: Path) -> Any:
    with VideoFile(file) as clip:
        return clip.read(np.arange(len(clip))).astype(float).mean(axis=3)


def test_layout_is_that_of_class_folders(moves: Path) -> None:
    assert {path.name for path in moves.iterdir()} == {"train", "val", "test"}
    for split, count in COUNTS.items():
        assert sorted(path.name for path in (moves / split).iterdir()) == list(MOVES)
        assert all(len(list((moves / split / move).glob("*.mp4"))) == count for move in MOVES)
        photos = {path.stem.rsplit("_", 1)[0] for path in (moves / split).rglob("*.mp4")}
        assert photos == {Path(name).stem for name in FEW[split]}
    assert [path.name for path in moves.parent.iterdir()] == ["clips"]
    contents = [path.read_bytes() for path in moves.rglob("*.mp4")]
    assert len(set(contents)) == len(contents) == 8 * 4


def test_every_rendering_is_the_same(moves: Path, tmp_path: Path) -> None:
    render_moves(tmp_path / "again")
    for file in moves.rglob("*.mp4"):
        assert (tmp_path / "again" / file.relative_to(moves)).read_bytes() == file.read_bytes()


def test_photos_of_the_splits_differ() -> None:
    names = [name for photos in PHOTOS.values() for name in photos]
    assert len(set(names)) == len(names) == 14


def _shift(first: Any, second: Any) -> tuple[int, int]:
    """Return the rows and columns by which the second picture is shifted against the first."""
    a, b = (np.fft.fft2((x - x.mean()) * np.hanning(64)[:, None] * np.hanning(64)) for x in (first, second))
    product = a * b.conj()
    peak = np.fft.ifft2(product / np.maximum(np.abs(product), 1e-9)).real
    row, column = np.unravel_index(int(peak.argmax()), peak.shape)
    return (int(row) + 32) % 64 - 32, (int(column) + 32) % 64 - 32


@pytest.mark.parametrize(
    ("move", "direction"),
    [("pan_right", (0, 1)), ("pan_left", (0, -1)), ("pan_down", (1, 0)), ("pan_up", (-1, 0)), ("still", (0, 0))],
)
def test_demo_as_the_class_says(move: str, direction: tuple[int, int], moves: Path) -> None:
    for file in (moves / "train" / move).iterdir():
        frames = _frames(file)
        assert frames.shape == (32, 64, 64)
        steps = np.array([_shift(frames[i], frames[i + 6]) for i in range(0, 26, 5)])
        found = np.median(steps, axis=0)
        assert np.abs(found - np.array(direction) * np.abs(found).max()).max() <= 3
        assert move == "still" or np.abs(found).max() >= 3


def _scale_and_angle(first: Any, last: Any) -> tuple[float, float]:
    """Return the scale and the rotation in degrees of the second picture against the first, found by a search."""

    def alike(scale: float, angle: float) -> float:
        cosine, sine = np.cos(np.deg2rad(angle)) / scale, np.sin(np.deg2rad(angle)) / scale
        matrix = (cosine, -sine, 32 * (1 - cosine + sine), sine, cosine, 32 * (1 - sine - cosine))
        bilinear = Image.Resampling.BILINEAR
        warped = [
            np.asarray(Image.fromarray(x).transform((64, 64), Image.Transform.AFFINE, matrix, bilinear))
            for x in (first.astype(np.float32), np.ones((64, 64), np.float32))
        ]
        seen = warped[1] > 0.99
        return float(np.corrcoef(warped[0][seen], last[seen])[0, 1])

    tried = [(scale, angle) for scale in np.geomspace(0.5, 2, 17) for angle in range(-70, 71, 5)]
    return max(tried, key=lambda move: alike(*move))


@pytest.mark.parametrize(
    ("move", "scales", "angles"),
    [
        ("zoom_in", (1.3, 1.9), (0, 5)),
        ("zoom_out", (1 / 1.9, 1 / 1.3), (0, 5)),
        ("turn", (0.9, 1.1), (25, 65)),
        ("still", (0.9, 1.1), (0, 5)),
    ],
)
def test_zooms_and_turns(move: str, scales: tuple[float, float], angles: tuple[int, int], moves: Path) -> None:
    for file in (moves / "train" / move).iterdir():
        frames = _frames(file)
        scale, angle = _scale_and_angle(frames[0], frames[-1])
        assert scales[0] < scale < scales[1]
        assert angles[0] <= abs(angle) <= angles[1]


def test_data_are_rendered_when_they_are_needed_and_only_once(few: None, tmp_path: Path) -> None:
    data: Any = CameraMoves(str(tmp_path / "data" / "moves"), num_workers=0, batch_size=4)
    data.prepare_data()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    data.prepare_data()
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    data.setup("fit")
    assert data.classes == list(MOVES)
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [16, 8, 8]
    clip, _ = data.val_set[0]
    assert clip.shape == (16, 3, 32, 32)


def test_folder_appears_only_when_it_is_complete(few: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = video.demo._write, list[Path]()

    def failing(file: Path, frames: Any) -> None:
        written.append(file)
        if len(written) == 3:
            raise OSError("no space left")
        write(file, frames)

    with monkeypatch.context() as patch:
        patch.setattr(video.demo, "_write", failing)
        with pytest.raises(OSError, match="no space left"):
            render_moves(tmp_path / "moves")
    assert not (tmp_path / "moves").exists()
    render_moves(tmp_path / "moves")
    assert [path.name for path in tmp_path.iterdir()] == ["moves"]


def test_some_clips_of_some_moves(few: None, tmp_path: Path) -> None:
    render_moves(tmp_path / "moves", {"train": 1, "test": 3}, ("still", "turn"))
    files = sorted(str(path.relative_to(tmp_path / "moves").parent) for path in (tmp_path / "moves").rglob("*.mp4"))
    assert files == ["test/still"] * 3 + ["test/turn"] * 3 + ["train/still", "train/turn"]
    for unknown in ({"counts": {"tests": 1}}, {"moves": ["pan"]}):
        with pytest.raises(
            InputError, match=r"no split or move is called (tests|pan); known are train, val, test, pan_d"
        ):
            render_moves(tmp_path / "others", **unknown)  # type: ignore[arg-type]
    assert [path.name for path in tmp_path.iterdir()] == ["moves"]
