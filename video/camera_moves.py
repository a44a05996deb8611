"""Camera moves over photos that come with packages: the built-in video data, which needs no download."""

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from core.errors import InputError
from core.images import read_image
from core.writing import whole_folder
from video.sets import VideoFolder

__all__ = ["MOVES", "PHOTOS", "CameraMoves", "render_moves"]

MOVES = ("pan_down", "pan_left", "pan_right", "pan_up", "still", "turn", "zoom_in", "zoom_out")
"""The classes, named by what the camera does."""

PHOTOS: dict[str, tuple[str, ...]] = {
    "train": (
        *("skimage.data/astronaut.png", "skimage.data/brick.png", "skimage.data/coffee.png", "skimage.data/coins.png"),
        *("skimage.data/hubble_deep_field.jpg", "skimage.data/ihc.png", "skimage.data/retina.jpg"),
        *("skimage.data/rocket.jpg", "sklearn.datasets.images/china.jpg"),
    ),
    "val": ("skimage.data/chelsea.png", "skimage.data/grass.png"),
    "test": ("skimage.data/camera.png", "skimage.data/gravel.png", "sklearn.datasets.images/flower.jpg"),
}
"""Package and file of each split's photos. All are in the public domain, under CC0 or without known restrictions by
scikit-image's notes, but china.jpg (by danielbuechele) and flower.jpg (by vultilion), which are under CC BY 2.0."""

_CLIPS = {"train": 12, "val": 10, "test": 8}
"""Clips of each photo and move."""
_SIDE, _FRAMES, _FPS = 64, 32, 16


class CameraMoves(VideoFolder):
    """Eight moves of a camera over photos of scikit-learn and scikit-image: rendered clips, not recordings.

    At the first use they are rendered (half a minute) and written as class folders of mp4 files of two seconds, 64 x 64
    pixels at 16 frames a second: still, four pans, two zooms and a turn, each with a place, speed and shake of the hand
    of its own, drawn from a fixed seed. Halfway through, clips of all classes look alike: one frame says nothing.
    Nine photos train, two others validate, three others test.

    Args:
        root: folder that they are written to.
        kwargs: arguments of :class:`VideoFolder`; by default frames of 32 pixels, no flip, which would turn left into
            right, no policy, no erasing, and one view.
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
        erasing: float = 0.0,
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
            erasing=erasing,
            repeats=repeats,
            test_views=test_views,
            test_crops=test_crops,
            **kwargs,
        )

    def check_data(self) -> None:
        """Render the clips unless they are there."""
        if (root := self.folders.root) and not root.exists():
            render_moves(root)
        super().check_data()


def render_moves(root: Path, counts: dict[str, int] | None = None, moves: Sequence[str] | None = None) -> None:
    """Write ``root/<split>/<move>/<photo>_<n>.mp4`` of all photos; the folder appears when it is complete.

    Args:
        root: a folder that is not there yet.
        counts: clips of each photo and move, for the splits to be made; by default 12, 10 and 8.
        moves: some of :data:`MOVES`; by default all.

    Raises:
        InputError: if there is no such split or move.
    """
    counts, moves = counts or _CLIPS, moves or MOVES
    unknown = sorted({*counts} - {*PHOTOS}) + sorted({*moves} - {*MOVES})
    if unknown:
        raise InputError(f"no split or move is called {', '.join(unknown)}; known are {', '.join((*PHOTOS, *MOVES))}")
    generator = np.random.default_rng(0)
    with whole_folder(root) as folder:
        for split, count in counts.items():
            for name in PHOTOS[split]:
                photo = _photo(name)
                for move in moves:
                    (folder / split / move).mkdir(parents=True, exist_ok=True)
                    for i in range(count):
                        frames = _move(photo, move, generator)
                        _write(folder / split / move / f"{Path(name).stem}_{i:02d}.mp4", frames)


def _photo(name: str) -> Image.Image:
    """The photo, its shorter side 320 pixels."""
    package, file = name.rsplit("/", 1)
    with as_file(files(package) / file) as path:
        image = read_image(path)
    scale = 320 / min(image.size)
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _move(photo: Image.Image, move: str, generator: np.random.Generator) -> list[Image.Image]:
    """Frames of a clip.

    What the camera sees is a square of the photo, of ``reach`` pixels a side, turned by an angle. Halfway through, its
    place, reach and angle are drawn alike for all moves; before and after they differ by the move's share.
    """
    reach, angle = generator.uniform(64, 96), generator.uniform(-10, 10)
    speed = generator.uniform(0.5, 1.0)
    along = {"pan_left": (-1, 0), "pan_right": (1, 0), "pan_up": (0, -1), "pan_down": (0, 1)}.get(move, (0, 0))
    zoom = {"zoom_in": -1, "zoom_out": 1}.get(move, 0)
    turn = 60 * speed * generator.choice((-1, 1)) if move == "turn" else 0.0
    widest = 96 * (1.8 / 2) ** 0.5  # half of the diagonal of the widest view
    travel = 0.8 * reach * speed
    spare = [max(0.0, side / 2 - widest - travel / 2) for side in photo.size]
    centre = [side / 2 + generator.uniform(-s, s) for side, s in zip(photo.size, spare, strict=True)]
    shake = generator.normal(0, 0.4, (_FRAMES, 2)) * reach / _SIDE
    frames = []
    for i, time in enumerate(np.linspace(-0.5, 0.5, _FRAMES)):
        place = [c + a * travel * time + s for c, a, s in zip(centre, along, shake[i], strict=True)]
        frames.append(_see(photo, place, reach * (1 + 0.8 * speed) ** (zoom * time), angle + turn * time))
    return frames


def _see(photo: Image.Image, place: list[float], reach: float, angle: float) -> Image.Image:
    """A square of the photo around a place in pixels, ``reach`` pixels a side, turned by degrees."""
    cosine, sine = np.cos(np.deg2rad(angle)) * reach / _SIDE, np.sin(np.deg2rad(angle)) * reach / _SIDE
    half = _SIDE / 2
    matrix = (cosine, -sine, place[0] - half * (cosine - sine), sine, cosine, place[1] - half * (sine + cosine))
    return photo.transform((_SIDE, _SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _write(file: Path, frames: list[Image.Image]) -> None:
    with av.open(str(file), "w") as container:
        # looking ahead, x264 does not always decide the same for frames as small as these
        options = {"crf": "20", "threads": "1", "tune": "zerolatency"}
        stream = container.add_stream("libx264", rate=_FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *frames[0].size, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
