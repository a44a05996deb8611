"""Digits on photos, with boxes, masks and label maps: the built-in data for detection and segmentation.

Written in COCO's and ADE20K's layouts and read back from there, so that the same code reads data of one's own.
"""

import json
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from core.images import read_image
from core.writing import whole_folder
from vision.digits import handwritten_digits, split_digits
from vision.openmmlab.data import OpenMMLabData

__all__ = ["DigitScenes", "draw_scenes"]

PHOTOS = {
    "train": ("skimage.data/coffee.png", "skimage.data/rocket.jpg", "sklearn.datasets.images/china.jpg"),
    "val": ("skimage.data/chelsea.png",),
    "test": ("skimage.data/astronaut.png", "sklearn.datasets.images/flower.jpg"),
}
"""Package and file of each split's backgrounds: public domain or CC0, china.jpg (danielbuechele) and flower.jpg
(vultilion) CC BY 2.0."""
_SIDE, _SIZES = 96, (32, 56)  # pixels: of a scene, and of a digit from and to
_COUNTS = {"train": 1500, "val": 60, "test": 120}


class DigitScenes(OpenMMLabData):
    """One to five handwritten digits of 32 to 56 pixels in a colour each on a crop of a photo, 96 x 96 pixels.

    At the first use they are drawn (some seconds) from a fixed seed. Digits and photos of the three splits are
    disjoint: 1,500 scenes train, 60 validate, 120 test.

    Args:
        config: an OpenMMLab config that reads scenes of digits; by name or path.
        root: folder that they are written to and read from.
        options: values of the config to replace, by dotted name.
        kwargs: the other arguments of :class:`OpenMMLabData`.
    """

    def __init__(
        self, config: str, *, root: str = "data/digit_scenes", options: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        places = {f"{split}_dataloader.dataset.data_root": f"{root}/" for split in _COUNTS}
        super().__init__(config, options={**places, **(options or {})}, **kwargs)
        self.root = Path(root)

    def check_data(self) -> None:
        """Draw the scenes unless they are there."""
        if not self.root.exists():
            draw_scenes(self.root)
        super().check_data()


def draw_scenes(root: Path, counts: dict[str, int] | None = None) -> None:
    """Write images, COCO annotations and label maps; the folder appears when it is complete.

    ::

        root/images/train/0000.png       root/annotations/train.json   COCO: boxes, masks as RLE, categories '0' to '9'
        root/labels/train/0000.png       label maps: 0 the photo, 1 + d the digit d

    Args:
        root: folder to be made.
        counts: scenes of each split.
    """
    digits, split = handwritten_digits(), split_digits()
    with whole_folder(root) as folder:
        for number, (name, count) in enumerate((counts or _COUNTS).items()):
            generator = np.random.default_rng(number)
            photos = [_photo(photo) for photo in PHOTOS[name]]
            scenes = [_scene(photos[i % len(photos)], *digits, split[name], generator) for i in range(count)]
            _write(folder, name, scenes)


def _write(root: Path, split: str, scenes: list["_Scene"]) -> None:
    for kind in ("images", "labels"):
        (root / kind / split).mkdir(parents=True)
    for i, scene in enumerate(scenes):
        Image.fromarray(scene.image).save(root / "images" / split / f"{i:04d}.png")
        Image.fromarray(scene.label_map()).save(root / "labels" / split / f"{i:04d}.png")
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"{split}.json").write_text(json.dumps(_coco(scenes)), encoding="utf-8")


@dataclass
class _Scene:
    """An image (H, W, 3) uint8, and the digit and visible ink (H, W) bool of each object."""

    image: np.ndarray
    objects: list[tuple[int, np.ndarray]]

    def label_map(self) -> np.ndarray:
        """(H, W) uint8."""
        labels = np.zeros(self.image.shape[:2], np.uint8)
        for digit, ink in self.objects:
            labels[ink] = digit + 1
        return labels


def _photo(name: str) -> np.ndarray:
    package, file = name.split("/")
    with as_file(files(package) / file) as path:
        return np.asarray(read_image(path))


def _scene(
    photo: np.ndarray, digits: np.ndarray, labels: list[int], own: np.ndarray, generator: np.random.Generator
) -> _Scene:
    top, left = (generator.integers(0, size - _SIDE + 1) for size in photo.shape[:2])
    scene = _Scene((photo[top : top + _SIDE, left : left + _SIDE] * 0.7).astype(np.uint8), [])
    for index in generator.choice(own, generator.integers(2, 6), replace=False):
        side = int(generator.integers(_SIZES[0], _SIZES[1] + 1))
        digit = Image.fromarray(digits[index]).resize((side, side), Image.Resampling.BILINEAR)
        y, x = generator.integers(0, _SIDE - side + 1, size=2)
        strength = np.zeros((_SIDE, _SIDE))
        strength[y : y + side, x : x + side] = np.asarray(digit) / 255
        ink = strength > 0.4
        if any((ink & other).sum() > 0.1 * min(ink.sum(), other.sum()) for _, other in scene.objects):
            continue  # it would hide another
        colour = generator.integers(120, 256, size=3)
        mixed = scene.image * (1 - strength[..., None]) + colour * strength[..., None]
        scene.image = mixed.round().astype(np.uint8)
        scene.objects = [(label, other & ~ink) for label, other in scene.objects] + [(labels[index], ink)]
    return scene


def _coco(scenes: list[_Scene]) -> dict[str, Any]:
    """The annotation file of a split."""
    notes: list[dict[str, Any]] = []
    for image, scene in enumerate(scenes):
        for digit, ink in scene.objects:
            packed = coco_mask.encode(np.asfortranarray(ink))
            packed["counts"] = packed["counts"].decode("ascii")
            box = [float(v) for v in coco_mask.toBbox(packed)]
            note = {"id": len(notes) + 1, "image_id": image, "category_id": digit + 1, "bbox": box, "iscrowd": 0}
            notes.append(note | {"area": int(ink.sum()), "segmentation": packed})
    images = [{"id": i, "file_name": f"{i:04d}.png", "height": _SIDE, "width": _SIDE} for i in range(len(scenes))]
    categories = [{"id": digit + 1, "name": str(digit)} for digit in range(10)]
    return {"images": images, "annotations": notes, "categories": categories}
