"""The built-in video data: camera moves over photos that come with packages and need no download."""

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
"""The classes, named after what the camera does."""

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

According to scikit-image, its photos are in the public domain, under CC0, or without known restrictions. Those of
scikit-learn, china.jpg (by danielbuechele) and flower.jpg (by vultilion), are under CC BY 2.0."""

CLIPS = {"train": 12, "val": 10, "test": 8}
"""Number of clips of each photo and move, by split."""

SIDE = 64  # of a frame, in pixels
FRAMES = 32  # of a clip
FRAMES_PER_SECOND = 16

SMALLEST_VIEW = 64.0
LARGEST_VIEW = 96.0
"""Side of the square that the camera sees halfway through a clip, in pixels of the photo: drawn from this range."""

ZOOM = 0.8
"""Over a clip at full speed, the camera zooms by a factor of 1 plus this."""

PHOTO_SIDE = 320  # the shorter one, in pixels


class CameraMoves(VideoFolder):
    """Eight camera moves over photos of scikit-image and scikit-learn; the clips are rendered, not recorded.

    The clips are rendered at first use, which takes half a minute, and written to class folders of mp4 files. They last
    two seconds, at 16 frames per second of 64 x 64 pixels. The classes are: still, four pans, two zooms, and a turn.
    Each clip has its own position, speed and camera shake, drawn from a fixed seed. Halfway through, the clips of all
    classes look alike, so a single frame does not show the class. Nine photos are for training, two others for
    validation, and three others for testing.

    By default, frames have 32 x 32 pixels, test and prediction use one view, and the only augmentation is a crop: a
    flip would turn left into right.

    Args:
        root: folder to which the clips are written.
        sampling_rate: number of video frames for each frame of a dense clip.
        size: side of a frame, in pixels.
        scale: range of the share of a training frame that its crop covers.
        hflip: probability of a horizontal flip in training.
        auto_augment: timm's RandAugment policy in training, or None.
        repeats: number of augmented clips that training makes of one decoded clip.
        test_views: number of clips over the length of a video, in test and prediction.
        test_crops: number of crops over the longer side of each of these clips.
        kwargs: the other arguments of :class:`VideoFolder`.
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
        """Render the clips if their folder does not exist yet."""
        root = self.folders.root
        if root is not None and not root.exists():
            render_moves(root)
        super().check_data()


def render_moves(root: Path, counts: dict[str, int] | None = None, moves: Sequence[str] | None = None) -> None:
    """Write ``root/<split>/<move>/<photo>_<n>.mp4`` for all photos; the folder appears when it is complete.

    Args:
        root: a folder that does not exist yet.
        counts: number of clips of each photo and move, for each split to render; by default :data:`CLIPS`.
        moves: the moves to render; by default all of :data:`MOVES`.

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
    """Read a photo of :data:`PHOTOS`, and resize its shorter side to 320 pixels."""
    package, file = name.rsplit("/", 1)
    with as_file(files(package) / file) as path:
        image = read_image(path)

    scale = PHOTO_SIDE / min(image.size)
    width = round(image.width * scale)
    height = round(image.height * scale)
    return image.resize((width, height), Image.Resampling.LANCZOS)


def _render(photo: Image.Image, move: str, generator: np.random.Generator) -> list[Image.Image]:
    """Render the frames of a clip.

    The camera sees a square of the photo, with a side of ``view`` pixels and rotated by an angle. Halfway through the
    clip, its center, side and angle are drawn in the same way for all moves. Before and after, the move changes them.
    """
    view = generator.uniform(SMALLEST_VIEW, LARGEST_VIEW)
    angle = generator.uniform(-10, 10)
    speed = generator.uniform(0.5, 1.0)

    direction = {"pan_left": (-1, 0), "pan_right": (1, 0), "pan_up": (0, -1), "pan_down": (0, 1)}.get(move, (0, 0))
    zoom = {"zoom_in": -1, "zoom_out": 1}.get(move, 0)
    turn = 60 * speed * generator.choice((-1, 1)) if move == "turn" else 0.0

    # The center is drawn so that the largest view stays on the photo during the longest pan. Half a clip of zooming out
    # enlarges a view by the square root of the whole factor, and the half diagonal of a square is its side / sqrt(2).
    half_diagonal = LARGEST_VIEW * ((1 + ZOOM) / 2) ** 0.5
    travel = 0.8 * view * speed  # of a pan
    center = []
    for side in photo.size:
        spare = max(0.0, side / 2 - half_diagonal - travel / 2)
        center.append(side / 2 + generator.uniform(-spare, spare))
    shake = generator.normal(0, 0.4, (FRAMES, 2)) * view / SIDE

    frames = []
    for i, time in enumerate(np.linspace(-0.5, 0.5, FRAMES)):
        x = center[0] + direction[0] * travel * time + shake[i, 0]
        y = center[1] + direction[1] * travel * time + shake[i, 1]
        zoomed = view * (1 + ZOOM * speed) ** (zoom * time)
        frames.append(_crop(photo, (x, y), zoomed, angle + turn * time))
    return frames


def _crop(photo: Image.Image, center: tuple[float, float], side: float, angle: float) -> Image.Image:
    """Return a square of the photo as a frame; its center and side are in pixels and its angle in degrees."""
    cosine = np.cos(np.deg2rad(angle)) * side / SIDE
    sine = np.sin(np.deg2rad(angle)) * side / SIDE
    half = SIDE / 2

    # The affine map from pixels of the frame to pixels of the photo, row by row.
    matrix = (
        *(cosine, -sine, center[0] - half * (cosine - sine)),
        *(sine, cosine, center[1] - half * (sine + cosine)),
    )
    return photo.transform((SIDE, SIDE), Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC)


def _write(file: Path, frames: list[Image.Image]) -> None:
    """Write the frames to an mp4 file, with the same bytes in every run."""
    # With lookahead, x264's decisions for such small frames differ from run to run.
    options = {"crf": "20", "threads": "1", "tune": "zerolatency"}
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND, options=options)
        stream.width = frames[0].width
        stream.height = frames[0].height
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
