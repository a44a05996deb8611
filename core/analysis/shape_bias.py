"""Shape bias: the share of images with conflicting shape and texture that a model classifies by shape."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from torch import Tensor, nn

from core.data.images import Mode, image_files, read_image
from core.errors import InputError
from core.figures import new_figure, plain

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["CATEGORIES", "ShapeBias", "category_probabilities", "conflict_images", "shape_bias", "shape_bias_figure"]

CATEGORIES: dict[str, tuple[int, ...]] = {
    "airplane": (404,),
    "bear": (294, 295, 296, 297),
    "bicycle": (444, 671),
    "bird": (
        8,
        *range(10, 17),
        *range(18, 21),
        *range(22, 25),
        *range(80, 84),
        *range(87, 97),
        *range(98, 101),
        *range(127, 134),
        *range(135, 146),
    ),
    "boat": (472, 554, 625, 814, 914),
    "bottle": (440, 720, 737, 898, 899, 901, 907),
    "car": (436, 511, 817),
    "cat": tuple(range(281, 287)),
    "chair": (423, 559, 765, 857),
    "clock": (409, 530, 892),
    "dog": tuple(i for i in range(152, 269) if i not in (192, 204, 227, 242, 251, 258, 260, 264)),
    "elephant": (385, 386),
    "keyboard": (508, 878),
    "knife": (499,),
    "oven": (766,),
    "truck": (555, 569, 656, 675, 717, 734, 864, 867),
}
"""The 16 categories of the cue-conflict images (Geirhos et al., ICLR 2019), with their ImageNet-1K class indices."""

_NAME = re.compile(r"([a-z]+)\d+-([a-z]+)\d+")  # cat3-knife1: the shape of a cat and the texture of a knife


@dataclass
class ShapeBias:
    """Decisions of a model on cue-conflict images, counted for each category of the shape.

    Attributes:
        shape: number of images classified by shape.
        texture: number of images classified by texture.
        other: number of images classified as neither.
    """

    shape: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    texture: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))
    other: dict[str, int] = field(default_factory=lambda: dict.fromkeys(CATEGORIES, 0))

    @property
    def overall(self) -> float | None:
        """Shape decisions divided by shape and texture decisions, in [0, 1]; None if there are neither."""
        return _share(sum(self.shape.values()), sum(self.texture.values()))

    @property
    def by_category(self) -> dict[str, float | None]:
        """Shape bias for each category of the shape."""
        return {name: _share(self.shape[name], self.texture[name]) for name in CATEGORIES}


def _share(shape: int, texture: int) -> float | None:
    return shape / (shape + texture) if shape + texture else None


def conflict_images(folder: str | Path) -> list[tuple[Path, str, str]]:
    """List the images of a cue-conflict folder with their shape and texture, as their names give them.

    ``cat3-knife1.png`` has the shape of a cat and the texture of a knife. Images whose shape and texture agree are left
    out.

    Raises:
        MissingError: if there are no images.
        InputError: if a name does not consist of two of the 16 categories, or shape and texture agree in all images.
    """
    conflicts = []
    files = image_files(Path(folder))
    for path in files:
        match = _NAME.fullmatch(path.stem)
        if match is None or not set(match.groups()) <= CATEGORIES.keys():
            raise InputError(
                f"{path} is not named after a shape and a texture; expected names such as cat3-knife1.png with two of "
                f"{', '.join(CATEGORIES)}"
            )
        shape, texture = match.groups()
        if shape != texture:
            conflicts.append((path, shape, texture))
    if not conflicts:
        raise InputError(
            f"in all {len(files)} images of {folder} shape and texture agree; give images in which they differ"
        )
    return conflicts


def category_probabilities(logits: Tensor) -> Tensor:
    """Compute the probability of each of the 16 categories, which is the mean over its classes.

    Args:
        logits: (B, 1000), the output of an ImageNet-1K classifier.

    Returns:
        (B, 16) float64 in [0, 1], in the order of :data:`CATEGORIES`; the sum is not 1, since most classes belong to no
        category.

    Raises:
        InputError: if there are not 1000 classes.
    """
    if logits.ndim != 2 or logits.shape[1] != 1000:
        raise InputError(
            f"the model gives {tuple(logits.shape)}; shape bias needs the 1000 classes of ImageNet-1K, which belong to "
            "the 16 categories"
        )
    probabilities = logits.double().softmax(dim=1)
    return torch.stack([probabilities[:, list(classes)].mean(dim=1) for classes in CATEGORIES.values()], dim=1)


def shape_bias(
    model: nn.Module,
    folder: str | Path,
    transform: Callable[[Image.Image], Tensor],
    *,
    batch_size: int = 32,
    mode: Mode = "RGB",
) -> ShapeBias:
    """Count a classifier's shape and texture decisions (Geirhos et al., 2019; RepLKNet section 5).

    Args:
        model: an ImageNet-1K classifier in eval mode.
        folder: cue-conflict images, at any depth; see :func:`conflict_images`.
        transform: function from an image to a normalized map (C, H, W), the input of the model.
        batch_size: number of images in a batch.
        mode: 'RGB' or 'L', to which the images are converted.

    Raises:
        MissingError: if there are no images.
        InputError: if the model is in training mode or has other classes, or a file is unreadable or wrongly named.
    """
    if model.training:
        raise InputError("decisions are those of eval mode; call model.eval() first")

    images = conflict_images(folder)
    result = ShapeBias()
    names = list(CATEGORIES)
    device = next(model.parameters(), torch.zeros(())).device
    for first in range(0, len(images), batch_size):
        batch = images[first : first + batch_size]
        x_BCHW = torch.stack([transform(read_image(path, mode)) for path, _, _ in batch]).to(device)
        with torch.no_grad():
            decisions = category_probabilities(model(x_BCHW)).argmax(dim=1).tolist()
        for (_, shape, texture), decision in zip(batch, decisions, strict=True):
            by_cue = {shape: result.shape, texture: result.texture}
            counts = by_cue.get(names[decision], result.other)
            counts[shape] += 1
    return result


def shape_bias_figure(results: dict[str, ShapeBias]) -> Figure:
    """Plot the shape bias of each category as bars, in one color per model, with a line at the overall value."""
    figure = new_figure(8, 6.5)
    axes = figure.subplots()
    thickness = 0.8 / len(results)
    for i, (name, result) in enumerate(results.items()):
        shares = result.by_category
        positions = [row + (i + 0.5) * thickness - 0.4 for row in range(len(CATEGORIES))]
        overall = "none" if result.overall is None else f"{result.overall:.3f}"
        bars = axes.barh(
            positions,
            [share or 0.0 for share in shares.values()],
            thickness,
            label=f"{plain(name)}: {overall} overall",
        )
        if result.overall is not None:
            axes.axvline(result.overall, color=bars[0].get_facecolor(), linestyle="--")

        # A missing bar would look like a shape bias of 0.
        for position, (category, share) in zip(positions, shares.items(), strict=True):
            if share is None:
                text = "neither" if result.other[category] else "no images"
                axes.text(0.005, position, text, va="center", fontsize=6)

    axes.set_yticks(range(len(CATEGORIES)), list(CATEGORIES))
    axes.invert_yaxis()
    axes.set(xlim=(0, 1), xlabel="shape decisions / (shape + texture decisions)", title="Shape bias by shape category")
    figure.legend(loc="outside lower center", fontsize=8)
    return figure
