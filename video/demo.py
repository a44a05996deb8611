"""Camera moves over photos that come with packages: the built-in videos, which need no download."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from core.data.images import read_image
from core.errors import InputError
from core.io.atomic import atomic_folder
from video.sets import VideoFolder

__all__ = ["MOVES", "PHOTOS", "CameraMoves", "load_photo", "render_moves"]

MOVES = ("pan_down", "pan_left", "pan_right", "pan_up", "still", "turn", "zoom_in", "zoom_out")
"""The classes, named by what the camera does."""

PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        "skimage.data/astronaut.png",
        "skimage.data/brick.png",
        "skimage.data/coffee.png",
        "skimage.data/coins.png",
        "skimage.data/hubble_deep_field.jpg",
        "skimage.data/ihc.png",
        "skimage.data/retina.jpg",
        "skimage.data/rocket.jpg",
        "sklearn.datasets.images/china.jpg",
    ),
    "val": (
        "skimage.data/chelsea.png",
        "skimage.data/grass.png",
    ),
    "test": (
        "skimage.data/camera.png",
        "skimage.data/gravel.png",
        "sklearn.datasets.images/flower.jpg",
    ),
}
"""Package and file of the photos of each split.

By the notes of scikit-image its photos are in the public domain, under CC0, or without known restrictions. Those of
scikit-learn, china.jpg (by danielbuechele) and flower.jpg (by vultilion), are under CC BY 2.0."""

CLIPS = {"train": 12, "val": 10, "test": 8}
"""Clips of each photo and move, by split."""

SIDE = 64  # of a frame, in pixels
FRAMES = 32
FRAMES_PER_SECOND = 16


class CameraMoves(VideoFolder):
    """Eight moves of a camera over photos of scikit-learn and scikit-image; the clips are rendered, not recorded.

    The clips are rendered when they are first used, which takes half a minute, and are written as class folders of mp4
    files. They last two seconds, at 16 frames a second of 64 x 64 pixels. The classes are: still, four pans, two zooms,
    and a turn. Each clip has a place, a speed and a shake of the hand of its own, drawn from a fixed seed. Halfway
    through, the clips of all classes look alike, so that a single frame does not show the class. Nine photos are for
    training, two others for validation, and three others for test.

    By default the frames have 32 pixels, there is one view in test and prediction, and training clips are cropped
    only: a flip would turn left into right.

    Args:
        root: folder that the clips are written to.
        kwargs: arguments of :class:`VideoFolder`.
    """

    def __init__(
        self,
        root: str = "data/camera_moves",
        *,
        sampling_rate: int = 2,
        size: int = 32,
        scale: tuple[float, float] = (0.5, 1.0),
        hflip: float = 0.0,
        auto_augment: str | None = None,
        repeats: int = 1,
        test_views: int = 1,
        test_crops: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            root,
            sampling_rate=sampling_rate,
            size=size,
            scale=scale,
            hflip=hflip,
            auto_augment=auto_augment,
            repeats=repeats,
            test_views=test_views,
            test_crops=test_crops,
            **kwargs,
        )

    def check_data(self) -> None:
        """Render the clips unless they are there."""
        root = self.folders.root
        if root is not None and not root.exists():
            render_moves(root)
        super().check_data()


def render_moves(root: Path, counts: dict[str, int] | None = None, moves: Sequence[str] | None = None) -> None:
    """Write ``root/<split>/<move>/<photo>_<n>.mp4`` for all photos; the folder appears when it is complete.

    Args:
        root: a folder that does not exist yet.
        counts: clips of each photo and move, for the splits to be made; by default :data:`CLIPS`.
        moves: some of :data:`MOVES`; by default all.

    Raises:
        InputError: if there is no such split or move.
    """
    counts = counts or CLIPS
    moves = moves or MOVES
    unknown = sorted(set(counts) - set(PHOTOS)) + sorted(set(moves) - set(MOVES))
    if unknown:
        raise InputError(f"no split or move is called {', '.join(unknown)}; known are {', '.join((*PHOTOS, *MOVES))}")

    generator = np.random.default_rng(0)
    with atomic_folder(root) as folder:
        for split, count in counts.items():
            for name in PHOTOS[split]:
                photo = load_photo(name)
                for move in moves:
                    class_folder = folder / split / move
                    class_folder.mkdir(parents=True, exist_ok=True)
                    for number in range(count):
                        frames = _render(photo, move, generator)
                        _write(class_folder / f"{Path(name).stem}_{number:02d}.mp4", frames)


def load_photo(name: str) -> Image.Image:
    """Return a photo of :data:`PHOTOS`, resized so that its shorter side has 320 pixels."""
    package, file = name.rsplit("/", 1)
    with as_file(files(package) / file) as path:
        image = read_image(path)

    scale = 320 / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _render(photo: Image.Image, move: str, generator: np.random.Generator) -> list[Image.Image]:
    """Render the frames of a clip.

    The camera sees a square of the photo, of ``reach`` pixels a side, rotated by an angle. Halfway through the clip its
    place, reach and angle are drawn in the same way for all moves. Before and after, they differ by the move.
    """
    reach = generator.uniform(64, 96)
    angle = generator.uniform(-10, 10)
    speed = generator.uniform(0.5, 1.0)

    direction = {"pan_left": (-1, 0), "pan_right": (1, 0), "pan_up": (0, -1), "pan_down": (0, 1)}.get(move, (0, 0))
    zoom = {"zoom_in": -1, "zoom_out": 1}.get(move, 0)
    turn = 60 * speed * generator.choice((-1, 1)) if move == "turn" else 0.0

    # The center is drawn so that the widest view stays on the photo during the longest pan.
    half_diagonal = 96 * (1.8 / 2) ** 0.5
    travel = 0.8 * reach * speed
    center = []
    for side in photo.size:
        spare = max(0.0, side / 2 - half_diagonal - travel / 2)
        center.append(side / 2 + generator.uniform(-spare, spare))
    shake = generator.normal(0, 0.4, (FRAMES, 2)) * reach / SIDE

    frames = []
    for i, time in enumerate(np.linspace(-0.5, 0.5, FRAMES)):
        place = (
            center[0] + direction[0] * travel * time + shake[i, 0],
            center[1] + direction[1] * travel * time + shake[i, 1],
        )
        frames.append(_view(photo, place, reach * (1 + 0.8 * speed) ** (zoom * time), angle + turn * time))
    return frames


def _view(photo: Image.Image, center: tuple[float, float], reach: float, angle: float) -> Image.Image:
    """A square of the photo around a center in pixels, ``reach`` pixels a side, rotated by an angle in degrees."""
    cosine = np.cos(np.deg2rad(angle)) * reach / SIDE
    sine = np.sin(np.deg2rad(angle)) * reach / SIDE
    half = SIDE / 2

    # An affine map from pixels of the view to pixels of the photo, row by row.
    matrix = (
        *(cosine, -sine, center[0] - half * (cosine - sine)),
        *(sine, cosine, center[1] - half * (sine + cosine)),
    )
    return photo.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _write(file: Path, frames: list[Image.Image]) -> None:
    # With lookahead, x264 does not always decide the same for frames as small as these.
    options = {"crf": "20", "threads": "1", "tune": "zerolatency"}
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
