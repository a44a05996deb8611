"""Digits on photos, with boxes, masks and label maps: the built-in data for detection and segmentation.

The scenes are written in COCO's and ADE20K's layouts and read back from there, so that the same code reads your own
data.
"""

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config
from PIL import Image
from pycocotools import mask as coco_mask

from core.data.images import read_image
from core.io.atomic import atomic_folder
from vision.demo import handwritten_digits, split_digits
from vision.openmmlab.config_files import ConfigOptions, innermost
from vision.openmmlab.data import OpenMMLabData

__all__ = ["DigitScenes", "draw_scenes"]

PHOTOS = {
    "train": ("skimage.data/coffee.png", "skimage.data/rocket.jpg", "sklearn.datasets.images/china.jpg"),
    "val": ("skimage.data/chelsea.png",),
    "test": ("skimage.data/astronaut.png", "sklearn.datasets.images/flower.jpg"),
}
"""The background photos of each split, as package and file. They are in the public domain or CC0, except china.jpg (by
danielbuechele) and flower.jpg (by vultilion), which are CC BY 2.0."""

_DATA_ROOT = "data/digit_scenes/"
"""The folder in the configs of the scenes, which the option ``root`` replaces."""

_SIDE = 96
"""Side of a scene, in pixels."""
_DIGIT_SIDES = (32, 56)
"""Smallest and largest side of a digit, in pixels."""
_COUNTS = {"train": 1500, "val": 60, "test": 120}
"""Number of scenes in each split."""


class DigitScenes(OpenMMLabData):
    """Crops of photos, 96 x 96 pixels, with one to five handwritten digits of 32 to 56 pixels, each in its own color.

    The scenes are drawn at the first use, which takes seconds, from a fixed seed. 1,500 scenes are for training, 60 for
    validation and 120 for testing; the digits and photos of the three splits are disjoint.

    Args:
        config: an OpenMMLab config that reads scenes of digits, by name or path; the command passes that of the model.
            If the config has other data, those are read, so in ``det.yaml`` and ``seg.yaml`` only the config of the
            model needs to change.
        root: folder that the scenes are written to and read from.
        options: values that replace those of the config, by dotted name, as in MMEngine's ``--cfg-options``.
        predict_path: an image or a folder of images for ``predict``; by default the test images.
        batch_size: images for each process and step; that of the config is not used.
        num_workers: processes that load data, for each training process; 0 loads in the training process.
        drop_last: leave out the incomplete last training batch.
        min_epoch_steps: an epoch goes over a small training set several times, until it has this many steps.
    """

    def __init__(
        self,
        config: str | None = None,
        *,
        root: str = "data/digit_scenes",
        options: ConfigOptions | None = None,
        predict_path: str | None = None,
        batch_size: int = 2,
        num_workers: int = 2,
        drop_last: bool = True,
        min_epoch_steps: int = 1,
    ) -> None:
        super().__init__(
            config,
            options=options,
            predict_path=predict_path,
            batch_size=batch_size,
            num_workers=num_workers,
            drop_last=drop_last,
            min_epoch_steps=min_epoch_steps,
        )
        self.root = Path(root)

    def read_config(self) -> Config:
        """Return the config with the options replaced, and with the scenes in :attr:`root`."""
        if self.mm_config is None:
            for part in _parts(super().read_config()):
                if part.get("data_root") == _DATA_ROOT:
                    part.data_root = f"{self.root}/"
        return super().read_config()

    def check_data(self) -> None:
        """Draw the scenes, unless they exist or the config reads other data."""
        super().check_data()
        reads_scenes = any(part.get("data_root") == f"{self.root}/" for part in _parts(self.read_config()))
        if reads_scenes and not self.root.exists():
            draw_scenes(self.root)


def _parts(config: Config) -> list[Any]:
    """Return the settings of all data sets of a config, without wrappers."""
    parts = []
    for split in _COUNTS:
        loader = config.get(f"{split}_dataloader")
        if loader is not None:
            parts += innermost(loader.dataset)
    return parts


def draw_scenes(root: Path, counts: dict[str, int] | None = None) -> None:
    """Write images, COCO annotations and label maps. The folder appears once it is complete.

    ::

        root/images/train/0000.png       root/annotations/train.json   COCO: boxes, masks as RLE, categories '0' to '9'
        root/labels/train/0000.png       label maps: 0 the photo, 1 + d the digit d

    Args:
        root: a folder that does not exist, or is empty.
        counts: number of scenes in each split; by default 1,500, 60 and 120.
    """
    images, labels = handwritten_digits()
    split_indices = split_digits()

    with atomic_folder(root) as folder:
        for seed, (split, count) in enumerate((counts or _COUNTS).items()):
            generator = np.random.default_rng(seed)
            photos = [_photo(photo) for photo in PHOTOS[split]]
            scenes = []
            for i in range(count):
                photo = photos[i % len(photos)]
                scenes.append(_scene(photo, images, labels, split_indices[split], generator))
            _write(folder, split, scenes)


@dataclass
class _Scene:
    """An image and its objects.

    Attributes:
        image: (H, W, 3) uint8.
        objects: the digit, 0 to 9, and the visible ink, (H, W) bool, of each object.
    """

    image: np.ndarray
    objects: list[tuple[int, np.ndarray]]

    def label_map(self) -> np.ndarray:
        """Return the label map (H, W) uint8: 0 for the photo, 1 + d for the digit d."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for digit, ink in self.objects:
            labels[ink] = digit + 1
        return labels


def _photo(name: str) -> np.ndarray:
    package, file = name.split("/")
    with as_file(files(package) / file) as path:
        return np.asarray(read_image(path))


def _scene(
    photo: np.ndarray,
    images: np.ndarray,
    labels: list[int],
    indices: np.ndarray,
    generator: np.random.Generator,
) -> _Scene:
    """Draw digits over a crop of a photo.

    Args:
        photo: (H, W, 3) uint8.
        images: all digits, (N, 28, 28) uint8.
        labels: labels of all digits.
        indices: indices of the digits that may be drawn.
        generator: source of all random choices.
    """
    # a darker crop of the photo, so that the digits stand out
    top, left = (generator.integers(0, size - _SIDE + 1) for size in photo.shape[:2])
    crop = photo[top : top + _SIDE, left : left + _SIDE]
    scene = _Scene((crop * 0.7).astype(np.uint8), [])

    for index in generator.choice(indices, generator.integers(2, 6), replace=False):
        # a digit of random size at a random place
        side = int(generator.integers(_DIGIT_SIDES[0], _DIGIT_SIDES[1] + 1))
        digit = Image.fromarray(images[index]).resize((side, side), Image.Resampling.BILINEAR)
        y, x = generator.integers(0, _SIDE - side + 1, size=2)
        opacity = np.zeros((_SIDE, _SIDE))
        opacity[y : y + side, x : x + side] = np.asarray(digit) / 255
        ink = opacity > 0.4

        if _overlaps(ink, scene):
            continue

        # blend it in with a random light color; earlier digits lose the ink that it hides
        color = generator.integers(120, 256, size=3)
        mixed = scene.image * (1 - opacity[..., None]) + color * opacity[..., None]
        scene.image = mixed.round().astype(np.uint8)
        scene.objects = [(label, other & ~ink) for label, other in scene.objects]
        scene.objects.append((labels[index], ink))
    return scene


def _overlaps(ink: np.ndarray, scene: _Scene) -> bool:
    """Return whether ink (H, W) bool and an object of the scene share over 10 percent of the smaller of the two."""
    return any((ink & other).sum() > 0.1 * min(ink.sum(), other.sum()) for _, other in scene.objects)


def _write(root: Path, split: str, scenes: list[_Scene]) -> None:
    """Write the images, label maps and annotations of a split."""
    images = root / "images" / split
    labels = root / "labels" / split
    annotations = root / "annotations"
    images.mkdir(parents=True)
    labels.mkdir(parents=True)
    annotations.mkdir(exist_ok=True)

    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(images / f"{i:04d}.png")
        Image.fromarray(scene.label_map()).save(labels / f"{i:04d}.png")
    (annotations / f"{split}.json").write_text(json.dumps(_coco(scenes)), encoding="utf-8")


def _coco(scenes: list[_Scene]) -> dict[str, Any]:
    """Return the content of the annotation file of a split, in COCO's format."""
    images = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes):
        images.append({"id": image_id, "file_name": f"{image_id:04d}.png", "height": _SIDE, "width": _SIDE})
        for digit, ink in scene.objects:
            encoded = coco_mask.encode(np.asfortranarray(ink))
            encoded["counts"] = encoded["counts"].decode("ascii")
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": digit + 1,
                    "bbox": [float(value) for value in coco_mask.toBbox(encoded)],
                    "iscrowd": 0,
                    "area": int(ink.sum()),
                    "segmentation": encoded,
                }
            )
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    return {"images": images, "annotations": annotations, "categories": categories}
