"""Your own boxes: photos with a COCO file, or with Pascal VOC's or YOLO's files."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from mmengine.registry import DefaultScope

from core.errors import InputError, MissingError, listed
from vision.openmmlab.box_formats import read_voc, read_yolo
from vision.openmmlab.config_files import quiet
from vision.openmmlab.data import DetectionSpec
from vision.openmmlab.own_data import (
    HELD_OUT,
    MULTIPLE,
    FileSplit,
    OwnData,
    differing_sizes,
    divided,
    image_sizes,
    relative_files,
)

__all__ = ["LabeledBoxes"]

_SMALLEST_SIDE = 16
"""Half of the boxes of each class should have at least this side, in pixels after resizing."""
_RARE = 0.02
"""Classes with a smaller share of the boxes do not ask for a larger size."""
_MOST_PIXELS = 640
"""Longer side, in pixels, of the size that is chosen for large images with small boxes."""


@dataclass
class _BoxFile:
    """Checked annotations.

    Attributes:
        file: path of the file, for messages.
        content: content in COCO's format; the ``file_name`` of each image is the path of its file.
        categories: id of each category that has boxes, by name, in the order of the ids.
    """

    file: str
    content: dict[str, Any]
    categories: dict[str, int]

    @property
    def image_ids(self) -> list[Any]:
        """Ids of the images."""
        return [image["id"] for image in self.content["images"]]


class LabeledBoxes(OwnData):
    """Photos with boxes: a COCO file, or files of Pascal VOC or YOLO, with the folder of the photos.

    Class names and category ids are those of the COCO file; categories without a box are left out. Without
    ``val_coco``, a share of the images is held out, and without ``test_coco`` the validation images are the test
    images. Without any file, the built-in scenes of digits are drawn and read.

    Args:
        config: an OpenMMLab config; the command passes that of the model.
        coco: COCO file of the training images, or of all images.
        val_coco: COCO file of the validation images.
        test_coco: COCO file of the test images.
        voc: instead of ``coco``, the folder of Pascal VOC's XML files.
        yolo: instead of ``coco``, the folder of YOLO's text files, with a ``classes.txt`` in it or above it.
        images: folder of the images; by default that of the annotations.
        kwargs: the other arguments of :class:`vision.openmmlab.own_data.OwnData`.

    Raises:
        MissingError: if a file is missing.
        InputError: if the annotations cannot be used.
    """

    def __init__(
        self,
        config: str | None = None,
        *,
        coco: str | None = None,
        val_coco: str | None = None,
        test_coco: str | None = None,
        voc: str | None = None,
        yolo: str | None = None,
        images: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, images=images, **kwargs)
        given = [f"--data.{name}" for name, value in (("coco", coco), ("voc", voc), ("yolo", yolo)) if value]
        if len(given) > 1:
            raise InputError(f"{listed(given)} are all given; give the boxes of the training images once")
        if not given and (val_coco or test_coco or images):
            raise InputError("the boxes of the training images are missing; add --data.coco FILE.json")

        self.coco: dict[FileSplit, str | None] = {"train": coco, "val": val_coco, "test": test_coco}
        self.voc = voc
        self.yolo = yolo
        self._files: dict[FileSplit, _BoxFile] = {}
        self._image_ids: dict[FileSplit, Sequence[Any]] = {}

    @property
    def has_files(self) -> bool:
        """Whether the user has named annotations."""
        return bool(self.coco["train"] or self.voc or self.yolo)

    def use_scenes(self) -> None:
        """Read the built-in scenes."""
        for split in self.coco:
            self.coco[split] = str(self.root / "annotations" / f"{split}.json")
            self.folders[split] = str(self.root / "images" / split)

    def empty_spec(self) -> DetectionSpec:
        """Return a specification of unknown files."""
        return DetectionSpec(own_files=True)

    def read_files(self) -> DetectionSpec:
        """Read the annotations of all splits, and hold out images for validation if there is no file for them."""
        train = self._read("train")
        if not train.categories:
            raise InputError(f"{train.file} has no boxes; expected some under 'annotations'")

        self._files = {"train": train}
        for split in HELD_OUT:
            if self.coco[split]:
                self._files[split] = self._read(split)
                self._check_names(self._files[split], split)

        ids = train.image_ids
        if "val" in self._files:
            self._image_ids = {"train": ids, "val": self._files["val"].image_ids}
        else:
            kept, held_out = divided(_rarest_labels(train), self.val_share, "images")
            self._image_ids = {"train": [ids[i] for i in kept], "val": [ids[i] for i in held_out]}
            self._files["val"] = train
        if "test" in self._files:
            self._image_ids["test"] = self._files["test"].image_ids
        else:
            self._files["test"], self._image_ids["test"] = self._files["val"], self._image_ids["val"]

        names = tuple(train.categories)
        return DetectionSpec(classes=names, category_ids=tuple(train.categories.values()), own_files=True)

    def training_sizes(self) -> list[tuple[int, int]]:
        """Return (width, height) of the training images, in pixels."""
        chosen = set(self._image_ids["train"])
        images = self._files["train"].content["images"]
        return [(image["width"], image["height"]) for image in images if image["id"] in chosen]

    def chosen_side(self, sizes: Sequence[tuple[int, int]]) -> int:
        """Return the longer side that fits the images, or a larger one, up to 640 pixels, if a class has small boxes.

        The side of a box is that of a square of its area.
        """
        content = self._files["train"].content
        longer = {image["id"]: max(image["width"], image["height"]) for image in content["images"]}
        relative: dict[int, list[float]] = {}
        for note in content["annotations"]:
            _, _, width, height = note["bbox"]
            relative.setdefault(note["category_id"], []).append(math.sqrt(width * height) / longer[note["image_id"]])

        fewest = min(_RARE * len(content["annotations"]), max(len(sides) for sides in relative.values()))
        smallest = min(float(np.median(sides)) for sides in relative.values() if len(sides) >= fewest)
        largest = min(_MOST_PIXELS, float(np.median(list(longer.values()))))
        needed = min(_SMALLEST_SIDE / smallest, largest)
        return max(super().chosen_side(sizes), MULTIPLE * round(needed / MULTIPLE))

    def split_dataset(self, split: FileSplit, pipeline: Any) -> Any:
        """Return the data set of a split; the category ids become those of its file."""
        from vision.openmmlab.file_datasets import BoxDataset  # it imports mmdet

        boxes = self._files[split]
        with DefaultScope.overwrite_default_scope("mmdet"), quiet():
            dataset = BoxDataset(
                boxes.content,
                self._image_ids[split],
                ann_file=boxes.file,
                data_prefix={"img": ""},
                metainfo={"classes": self._own_spec.classes},
                pipeline=pipeline,
                test_mode=split != "train",
            )
        self._own_spec = replace(self._own_spec, category_ids=tuple(dataset.cat_ids))
        return dataset

    def summary(self) -> str:
        """Return one line about what was chosen."""
        content = self._files["train"].content
        chosen = set(self._image_ids["train"])
        notes = [note for note in content["annotations"] if note["image_id"] in chosen]
        names = {number: name for name, number in self._files["train"].categories.items()}
        counts = Counter(names[note["category_id"]] for note in notes)
        return (
            f"{len(chosen)} training images with {len(notes)} boxes "
            f"({listed(f'{name} {count}' for name, count in counts.most_common())}); {self.size_chosen()}"
        )

    # Reading

    def _read(self, split: FileSplit) -> _BoxFile:
        """Read the annotations of a split in any of the formats, and check them."""
        from vision.openmmlab.annotations import CheckedCOCO, categories_of, read_coco  # it imports mmdet

        file, read = self._source(split, read_coco)
        path = Path(file)
        if not path.exists():
            raise MissingError(f"there is no {file}; give the annotations of the {split} images")

        folder = Path(self.folders[split] or self.folders["train"] or (path if path.is_dir() else path.parent))
        files = relative_files(folder)
        content = read(file) if read is read_coco else read(path, files)
        categories = {category["id"]: category["name"] for category in categories_of(content, file)}

        _use_paths(content, file, folder, files)
        _clean(content, file)
        with quiet():
            CheckedCOCO(file, content)  # refuses what cannot be used

        used = {note.get("category_id") for note in content["annotations"]}
        empty = [name for number, name in categories.items() if number not in used]
        if empty and used and split == "train":
            rank_zero_info(f"{file}: categories without a box are left out: {listed(empty)}")
        found = {categories[number]: number for number in sorted(categories) if number in used}
        return _BoxFile(file, content, found)

    def _source(self, split: FileSplit, read_coco_file: Callable[..., Any]) -> tuple[str, Callable[..., Any]]:
        coco = self.coco[split]
        if coco:
            return coco, read_coco_file
        return (self.voc, read_voc) if self.voc else (str(self.yolo), read_yolo)

    def _check_names(self, boxes: _BoxFile, split: str) -> None:
        """Refuse the boxes of a split whose classes are not those of training, and add classes without a box."""
        train = self._files["train"]
        unknown = [name for name in boxes.categories if name not in train.categories]
        if unknown:
            raise InputError(
                f"{boxes.file} has boxes of {listed(unknown)}, and the training file {train.file} has none; its "
                f"classes are {listed(train.categories)}. Give the classes the same names in all files"
            )

        from vision.openmmlab.annotations import categories_of  # it imports mmdet

        present = {category["name"] for category in categories_of(boxes.content, boxes.file)}
        numbers = {category["id"] for category in boxes.content["categories"]}
        for name, number in train.categories.items():
            if name not in present:  # no box of this class, so any id that is free will do
                free = number if number not in numbers else max(numbers) + 1
                boxes.content["categories"].append({"id": free, "name": name})
                numbers.add(free)


def _use_paths(content: dict[str, Any], file: str, folder: Path, files: dict[str, Path]) -> None:
    """Replace the name of each image by its path, and compare its size with the file's.

    Raises:
        MissingError: if images are not in the folder.
        InputError: if the file lists no images, an image without a name, or images of another size.
    """
    images = content.get("images")
    if not isinstance(images, list) or not images:
        raise InputError(f"{file} lists no images; expected COCO's format, with entries under 'images'")

    names = [image.get("file_name") if isinstance(image, dict) else None for image in images]
    if not all(isinstance(name, str) for name in names):
        raise InputError(f"{file} lists an image without file_name: {images[names.index(None)]!r}; add it")

    by_name = {Path(name).name: path for name, path in files.items()}
    places = [PurePosixPath(str(name)) for name in names]
    paths = [files.get(place.as_posix()) or by_name.get(place.name) for place in places]
    missing = [name for name, path in zip(names, paths, strict=True) if path is None]
    if missing:
        share = "none" if len(missing) == len(names) else f"{len(missing)} are not"
        raise MissingError(
            f"of the {len(names)} images that {file} lists, {share} in {folder}: {listed(missing, limit=3)}; it holds "
            f"{listed(files, limit=3)}. Set --data.images to the folder of the images, or correct the file"
        )

    found = image_sizes([path for path in paths if path is not None])
    differing = {}
    for image, path, size in zip(images, paths, found, strict=True):
        listed_size = (image.get("width") or size[0], image.get("height") or size[1])
        differing[image["file_name"]] = (listed_size, size)
        image.update(file_name=str(path), width=size[0], height=size[1])
    message = differing_sizes(differing, f"images have another size than {file} says")
    if message:
        raise InputError(f"{message}. Boxes are in pixels of the image; export them for these files")


def _clean(content: dict[str, Any], file: str) -> None:
    """Cut boxes at the edge of their image, leave out those without an area, and say how many there are.

    Raises:
        InputError: if two annotations have one id, or more than half of the boxes would be left out.
    """
    notes = content.get("annotations") or []
    counts = Counter(note["id"] for note in notes if note.get("id") is not None)
    twice = [number for number, count in counts.items() if count > 1]
    if twice:
        raise InputError(f"{file} has several annotations with the id {listed(twice, limit=3)}; give each its own")

    images = {image.get("id"): image for image in content["images"]}
    kept, empty, cut = [], [], []
    for number, note in enumerate(notes, 1):
        note.setdefault("id", -number)
        box, image = note.get("bbox"), images.get(note.get("image_id"))
        if image is None or not _is_box(box):
            kept.append(note)  # the index of the annotations refuses it, with its name
            continue

        left, top = max(0.0, box[0]), max(0.0, box[1])
        right = min(float(image["width"]), box[0] + box[2])
        bottom = min(float(image["height"]), box[1] + box[3])
        if right - left < 1 or bottom - top < 1:
            empty.append(note)
            continue
        if (right - left) * (bottom - top) < 0.98 * box[2] * box[3]:
            cut.append(note)
        note["bbox"] = [left, top, right - left, bottom - top]
        kept.append(note)

    if len(empty) > len(notes) / 2:
        raise InputError(
            f"{file}: {len(empty)} of {len(notes)} boxes are outside their image or have no area, for example "
            f"{empty[0]['bbox']}; boxes are [x, y, width, height] in pixels, not relative to the size of the image"
        )
    if empty:
        rank_zero_warn(
            f"{file}: {len(empty)} of {len(notes)} boxes are outside their image or smaller than a pixel and are left "
            f"out, for example {empty[0]['bbox']} of annotation {empty[0]['id']}"
        )
    if cut:
        rank_zero_warn(
            f"{file}: {len(cut)} of {len(notes)} boxes reach beyond their image and are cut, for example annotation "
            f"{cut[0]['id']}"
        )
    content["annotations"] = kept


def _is_box(box: Any) -> bool:
    return (
        isinstance(box, list)
        and len(box) == 4
        and all(isinstance(value, int | float) and np.isfinite(value) for value in box)
    )


def _rarest_labels(boxes: _BoxFile) -> list[int]:
    """Return the rarest category of each image, so that of each one a share can be held out; -1 without a box."""
    counts = Counter(note["category_id"] for note in boxes.content["annotations"])
    rarest: dict[Any, int] = {}
    for note in boxes.content["annotations"]:
        known = rarest.get(note["image_id"])
        if known is None or counts[note["category_id"]] < counts[known]:
            rarest[note["image_id"]] = note["category_id"]
    return [rarest.get(number, -1) for number in boxes.image_ids]
