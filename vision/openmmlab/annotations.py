"""Checks of annotations before training starts: MMDetection's COCO format and MMSegmentation's label maps.

MMDetection numbers the classes by the order of the annotation file, leaves out objects that it cannot use, and finds a
missing image or mask in the middle of an epoch. With these checks, label i is ``classes[i]``, by name, in every file,
and the first error stops the run before it begins. :class:`vision.openmmlab.data.OpenMMLabData` uses them; OpenMMLab's
own training scripts do not.
"""

import contextlib
import difflib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_warn
from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmdet.registry import DATASETS as DET_DATASETS
from mmengine.registry import DATASETS
from PIL import Image, UnidentifiedImageError

from core.data.images import upright_size
from core.errors import InputError, MissingError, listed

__all__ = [
    "CheckedCOCO",
    "CheckedCocoDataset",
    "CheckedMaskCOCO",
    "categories_of",
    "category_ids",
    "check_label_maps",
    "check_label_values",
    "check_same_labels",
    "checked_coco",
    "read_coco",
]


# COCO's format


class CheckedCOCO(COCO):
    """COCO's index of an annotation file, which finds categories by name and refuses annotations that cannot be used.

    Args:
        annotation_file: path of a JSON file in UTF-8.
        content: content of the file, if it has been read already.
    """

    needs_masks = False
    """Whether each annotation must have a mask."""

    def __init__(self, annotation_file: str, content: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.file = annotation_file
        self.dataset = read_coco(annotation_file) if content is None else content
        self.createIndex()
        self.img_ann_map = self.imgToAnns
        self.cat_img_map = self.catToImgs

    def createIndex(self) -> None:  # noqa: N802
        """Check the annotations, and index them by image and category. A missing area becomes the area of the box.

        Raises:
            InputError: if an annotation cannot be used; the message names it and the file.
        """
        images = self._images()
        categories = {category["id"] for category in categories_of(self.dataset, self.file)}
        for annotation in self.dataset.get("annotations", []):
            self._check_annotation(annotation, images, categories)

            area = annotation.get("area")
            if not area or area < 0:
                width, height = annotation["bbox"][2:]
                annotation["area"] = width * height
        super().createIndex()

    def get_cat_ids(
        self, cat_names: Sequence[str] = (), sup_names: Sequence[str] = (), cat_ids: Sequence[int] = ()
    ) -> list[int]:
        """Return the ids of categories; those given by name come in the order of the names.

        Raises:
            InputError: if the file has no such category.
        """
        if not cat_names:
            found: list[int] = super().get_cat_ids([], list(sup_names), list(cat_ids))
            return found

        ids = _ids_of(cat_names, categories_of(self.dataset, self.file), self.file)
        self._warn_of_unused(ids)
        return ids

    def _images(self) -> dict[Any, Mapping[str, Any]]:
        """Return the images by id, and refuse those that lack an entry or share an id."""
        images: dict[Any, Mapping[str, Any]] = {}
        for image in self.dataset.get("images", []):
            missing = [key for key in ("id", "file_name", "width", "height") if image.get(key) is None]
            if missing:
                raise InputError(f"{self.file}: the image {_short(image)} has no {listed(missing)}; add it")

            other = images.get(image["id"])
            if other is not None:
                raise InputError(
                    f"{self.file} lists two images with the id {image['id']}: {other['file_name']} and "
                    f"{image['file_name']}; give each an id of its own"
                )
            images[image["id"]] = image
        return images

    def _check_annotation(
        self, annotation: Mapping[str, Any], images: Mapping[Any, Mapping[str, Any]], categories: set[int]
    ) -> None:
        """Refuse an annotation that names no image or category of the file, or whose box or mask cannot be used."""
        name = f"annotation {annotation.get('id')}"
        missing = [key for key in ("image_id", "category_id", "bbox") if annotation.get(key) is None]
        if missing:
            raise InputError(f"{self.file}: {name} has no {listed(missing)}; add it, or remove the annotation")

        image = images.get(annotation["image_id"])
        if image is None:
            raise InputError(
                f"{self.file}: {name} belongs to image {annotation['image_id']}, which the annotation file does not "
                "list under 'images'; correct the file"
            )

        category = annotation["category_id"]
        if not _is_whole(category) or category not in categories:
            raise InputError(
                f"{self.file}: {name} has category_id {category!r}; expected one of the whole numbers that the file "
                f"lists under 'categories': {listed(sorted(categories))}"
            )

        self._check_box(name, annotation["bbox"], image)
        if self.needs_masks and not annotation.get("ignore"):
            self._check_mask(name, annotation.get("segmentation"), image)

    def _check_box(self, name: str, box: Any, image: Mapping[str, Any]) -> None:
        """Refuse a box that is not four numbers or not inside its image; ``name`` is the annotation's in messages."""
        if not isinstance(box, list) or len(box) != 4 or not all(_is_number(value) for value in box):
            raise InputError(f"{self.file}: {name} has bbox {box}; expected [x, y, width, height] in pixels")

        x, y, width, height = box
        # annotation tools round boxes in different ways, so one pixel outside is tolerated
        inside = x >= -1 and y >= -1 and x + width <= image["width"] + 1 and y + height <= image["height"] + 1
        if not inside or min(width, height) <= 0:
            raise InputError(
                f"{self.file}: box {box} (x, y, width, height) of {name} is not inside its image "
                f"{image['file_name']} of {image['width']} x {image['height']} pixels"
            )

    def _check_mask(self, name: str, mask: Any, image: Mapping[str, Any]) -> None:
        """Refuse a mask that is neither polygons nor an RLE of the size of its image."""
        advice = (
            "the model learns masks. Correct or remove the annotation, or use the config of a model without masks, "
            "which has with_mask=False in LoadAnnotations"
        )
        if not mask:
            raise InputError(f"{self.file}: {name} has no segmentation, and {advice}")

        size = [image["height"], image["width"]]
        if isinstance(mask, dict):
            usable = isinstance(mask.get("counts"), str | list) and mask.get("size") == size
            expected = f"RLE with counts and the size {size} (height, width) of its image"
        else:
            usable = isinstance(mask, list) and any(_is_polygon(polygon) for polygon in mask)
            expected = "polygons [[x1, y1, x2, y2, x3, y3, ...], ...], or RLE"
        if not usable:
            raise InputError(
                f"{self.file}: {name} has segmentation {_short(mask)}; expected {expected}, since {advice}"
            )

    def _warn_of_unused(self, ids: Sequence[int]) -> None:
        """Warn of objects that MMDetection leaves out: those of other categories, and those thinner than a pixel."""
        annotations = self.dataset.get("annotations", [])
        others = Counter(note["category_id"] for note in annotations)
        for used in ids:
            others.pop(used, None)
        if others:
            names = [f"{self.cats[category]['name']} ({count})" for category, count in others.most_common()]
            rank_zero_warn(
                f"{self.file}: objects of categories that are not among the classes of the config are left out: "
                f"{listed(names)}"
            )

        thin = [note for note in annotations if min(note["bbox"][2:]) < 1]
        if thin:
            rank_zero_warn(
                f"{self.file}: {len(thin)} boxes thinner than one pixel are left out, for example {thin[0]['bbox']} of "
                f"annotation {thin[0].get('id')}; boxes are in pixels, not relative to the size of the image"
            )


class CheckedMaskCOCO(CheckedCOCO):
    """The index for a pipeline that loads masks."""

    needs_masks = True


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """:class:`mmdet.datasets.CocoDataset` that refuses missing images, and annotations that cannot be used."""

    COCOAPI = CheckedCOCO

    def parse_data_info(self, raw_data_info: Mapping[str, Any]) -> Any:
        """Convert one image and its annotations to MMDetection's form.

        Raises:
            MissingError: if the image is missing.
        """
        image = raw_data_info["raw_img_info"]
        file = Path(self.data_prefix["img"]) / image["file_name"]
        if not file.is_file():
            raise MissingError(
                f"{self.ann_file} names the image {file}, which is not there; set data_prefix, or add the image"
            )
        return super().parse_data_info(raw_data_info)


@contextlib.contextmanager
def checked_coco(parts: Sequence[Any]) -> Iterator[None]:
    """Make the data sets that are built in this context check their annotation files.

    The index is an attribute of the class of a data set, so it is replaced there and restored afterwards.

    Args:
        parts: settings of data sets. Those of other formats, and those that read their files in their own way, are not
            checked.
    """
    previous: dict[type[CocoDataset], Any] = {}  # the attribute of each class, or None if it inherits the attribute
    for part in parts:
        kind = DET_DATASETS.get(part["type"]) if isinstance(part["type"], str) else part["type"]
        is_coco = isinstance(kind, type) and issubclass(kind, CocoDataset)
        if not is_coco or kind.load_data_list is not CocoDataset.load_data_list:
            continue

        previous.setdefault(kind, kind.__dict__.get("COCOAPI"))
        needs_masks = any(step.get("with_mask") for step in part.get("pipeline") or [])
        if needs_masks:
            kind.COCOAPI = CheckedMaskCOCO
        elif kind.COCOAPI is not CheckedMaskCOCO:  # else another data set of this class needs masks
            kind.COCOAPI = CheckedCOCO

    try:
        yield
    finally:
        for kind, index_class in previous.items():
            if index_class is None:
                del kind.COCOAPI
            else:
                kind.COCOAPI = index_class


def category_ids(dataset: Any) -> tuple[int, ...]:
    """Return the ids that the classes have in a COCO annotation file, in the order of their labels.

    Args:
        dataset: a data set of MMDetection. If it has not read its annotations, the list of categories is read here.

    Returns:
        One id for each class; empty for other formats, or if the file does not exist.

    Raises:
        InputError: if the file lacks a class.
    """
    if not isinstance(dataset, CocoDataset):
        return ()
    if hasattr(dataset, "cat_ids"):
        return tuple(dataset.cat_ids)

    file = Path(dataset.ann_file)
    if not file.is_file():
        return ()

    categories = categories_of(read_coco(file), file)
    return tuple(_ids_of(dataset.metainfo["classes"], categories, file))


def read_coco(file: str | Path) -> dict[str, Any]:
    """Return the content of an annotation file, with or without a byte-order mark."""
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise InputError(f"{file} is not JSON in UTF-8: {error}") from error

    if not isinstance(content, dict):
        raise InputError(
            f"{file} holds a {type(content).__name__}; expected COCO's format, an object with 'images', 'annotations' "
            "and 'categories'"
        )
    return content


def categories_of(content: Mapping[str, Any], file: str | Path) -> list[Mapping[str, Any]]:
    """Return the categories of a file, and refuse those without an integer id and a name, or with one used twice."""
    categories: list[Mapping[str, Any]] = content.get("categories") or []
    for category in categories:
        if not _is_whole(category.get("id")) or not isinstance(category.get("name"), str):
            raise InputError(
                f"{file}: the category {_short(category)} has no whole number as 'id', or no text as 'name'; correct "
                "it under 'categories'"
            )

    for key in ("id", "name"):
        counts = Counter(category[key] for category in categories)
        twice = [value for value, count in counts.items() if count > 1]
        if twice:
            raise InputError(
                f"{file} lists several categories with the {key} {listed(map(repr, twice))}; keep one of each under "
                "'categories'"
            )
    return categories


def _ids_of(classes: Sequence[str], categories: Sequence[Mapping[str, Any]], file: str | Path) -> list[int]:
    """Return the id of each class in a file, by name."""
    ids = {category["name"]: category["id"] for category in categories}
    missing = [name for name in classes if name not in ids]
    if not missing:
        return [ids[name] for name in classes]

    guesses = []
    for name in missing:
        for near in difflib.get_close_matches(name, set(ids) - set(classes), n=1):
            guesses.append(f"{near} for {name}")
    hint = f" (perhaps {listed(guesses)})" if guesses else ""
    raise InputError(
        f"{file} has no category {listed(missing)}{hint}; its categories are {listed(ids) or 'none'}, and the classes "
        f"of the config {listed(classes)}. Correct metainfo.classes of the config, or add the category to the file, "
        "even if no object belongs to it"
    )


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_polygon(points: Any) -> bool:
    return isinstance(points, list) and len(points) >= 6 and len(points) % 2 == 0


def _short(value: Any, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}..."


# Label maps


def check_label_maps(dataset: Any) -> None:
    """Check that every image of a data set of MMSegmentation has a label map of its size.

    Sizes and formats are read from the headers of the files.

    Raises:
        MissingError: if a label map is missing.
        InputError: if a label map has another size than its image, or pixels that are not class numbers.
    """
    for info in dataset.load_data_list():
        path = info.get("seg_map_path")
        if path is None:
            continue
        if not Path(path).is_file():
            raise MissingError(f"the image {info['img_path']} has no label map {path}; add it, or set seg_map_suffix")
        _check_size(info["img_path"], path)


def _check_size(image_path: str, label_path: str) -> None:
    """Compare the sizes of an image and its label map; formats that Pillow does not know are not checked."""
    try:
        with Image.open(image_path) as image, Image.open(label_path) as labels:
            size = upright_size(image)  # MMSegmentation rotates the image
            if labels.mode in ("RGB", "RGBA", "LA", "PA", "CMYK", "YCbCr"):
                raise InputError(
                    f"the label map {label_path} is a color picture ({labels.mode}); expected one channel, whose "
                    "values are the numbers of the classes, as in a PNG of mode L or P"
                )
            _check_depth(labels, label_path)
            label_size = labels.size
    except (UnidentifiedImageError, Image.DecompressionBombError):
        return

    if label_size != size:
        raise InputError(
            f"the label map {label_path} has {label_size[0]} x {label_size[1]} pixels and its image {image_path} "
            f"{size[0]} x {size[1]}; make them equal, and resize label maps by nearest neighbor"
        )


def _check_depth(labels: Image.Image, path: str) -> None:
    """Refuse values that MMSegmentation would cut to 8 bits, which makes 256 a 0."""
    if labels.mode in ("1", "L", "P"):  # 8 bits at most; maps with more are rare, so reading them costs little
        return

    values = np.asarray(labels)
    low, high = values.min(), values.max()
    if low < 0 or high > 255:
        raise InputError(
            f"the label map {path} holds values from {low} to {high}; MMSegmentation reads 0 to 255, so renumber the "
            "classes"
        )


def check_label_values(dataset: Any, *, num_classes: int, ignore_index: int, count: int = 8) -> None:
    """Check the values of some label maps, spread over a data set of MMSegmentation, as its pipeline loads them.

    Reading all of them would take as long as an epoch; the others are checked when they are used.

    Args:
        dataset: a data set without wrappers.
        num_classes: number of classes of the model.
        ignore_index: value of the pixels that the model ignores.
        count: number of label maps to read.

    Raises:
        InputError: if a value is no class of the model; the message names it and the label map.
    """
    transforms = getattr(dataset.pipeline, "transforms", [])
    loader: Any = next((step for step in transforms if hasattr(step, "_load_seg_map")), None)
    if loader is None or len(dataset) == 0:
        return

    evenly_spaced = np.linspace(0, len(dataset) - 1, count).round().astype(int)
    for index in np.unique(evenly_spaced).tolist():
        info = dataset.get_data_info(index)
        if info.get("seg_map_path") is None:
            continue

        loaded = loader.transform(info)
        values = np.unique(loaded["gt_seg_map"])
        wrong = values[(values >= num_classes) & (values != ignore_index)]
        if len(wrong):
            path = loaded["seg_map_path"]
            raise InputError(_wrong_label(path, int(wrong[0]), num_classes, ignore_index, dataset))


def _wrong_label(path: str, value: int, num_classes: int, ignore_index: int, dataset: Any) -> str:
    """Return the message about a value that is no class of the model."""
    message = (
        f"the label map {path} gives {value}; the model has classes 0 to {num_classes - 1}, and {ignore_index} is "
        "ignored"
    )
    if value == 255:
        return f"{message}. 255 usually marks pixels to ignore: set ignore_index=255 in the heads of the config"

    if value == num_classes and not dataset.metainfo.get("reduce_zero_label"):
        message += ". If its classes are numbered from 1 and 0 is to be ignored, set reduce_zero_label=True"
    return f"{message}. Otherwise correct the map, or set the class count of the heads with --model.options"


def check_same_labels(datasets: Mapping[str, Sequence[Any]]) -> None:
    """Check that a label means the same in all splits: the same classes in the same order, and one reduce_zero_label.

    Args:
        datasets: the data sets of each split, without wrappers.

    Raises:
        InputError: if two splits differ; the message names them and what differs.
    """
    first: tuple[str, dict[str, Any]] | None = None
    for split, parts in datasets.items():
        for part in parts:
            meaning = {
                "classes": tuple(part.metainfo.get("classes") or ()),
                "reduce_zero_label": bool(part.metainfo.get("reduce_zero_label")),
            }
            if first is None:
                first = (split, meaning)
            for name, value in meaning.items():
                expected = first[1][name]
                if value != expected:
                    raise InputError(
                        f"the {first[0]} and the {split} data differ in {name}: {_difference(expected, value)}; give "
                        "all data sets of the config the same"
                    )


def _difference(first: Any, second: Any) -> str:
    """Describe two values that differ; of two tuples of one length, only the entries that differ."""
    if not isinstance(first, tuple) or len(first) != len(second):
        return f"{_short(first)} and {_short(second)}"

    pairs = enumerate(zip(first, second, strict=True))
    return listed(f"label {i} is {a} and {b}" for i, (a, b) in pairs if a != b)
