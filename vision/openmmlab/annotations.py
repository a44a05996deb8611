"""Checks of annotations before training starts: MMDetection's COCO format and MMSegmentation's label maps.

MMDetection leaves out what it cannot use, and finds a missing image in the middle of an epoch. Here the first such
error stops the run before it begins. :class:`vision.openmmlab.data.OpenMMLabData` uses these checks; OpenMMLab's own
training scripts keep OpenMMLab's classes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.registry import DATASETS

from core.errors import InputError, MissingError

__all__ = ["CheckedCocoDataset", "category_ids", "check_label_maps"]


class _CheckedCOCO(COCO):
    """COCO's index, which refuses annotations of images that the file does not list."""

    def createIndex(self) -> None:  # noqa: N802
        """Index the annotations by image.

        Raises:
            InputError: naming the annotation.
        """
        images = {image["id"] for image in self.dataset.get("images", [])}
        for annotation in self.dataset.get("annotations", []):
            if annotation["image_id"] not in images:
                raise InputError(
                    f"annotation {annotation.get('id')} belongs to image {annotation['image_id']}, which the "
                    "annotation file does not list under 'images'; correct the file"
                )
        super().createIndex()


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """:class:`mmdet.datasets.CocoDataset` that refuses missing images and boxes outside their image."""

    COCOAPI = _CheckedCOCO

    def parse_data_info(self, raw_data_info: Mapping[str, Any]) -> Any:
        """Convert one image and its annotations to MMDetection's form.

        Raises:
            MissingError: if the image is missing.
            InputError: if a box lies outside its image.
        """
        image = raw_data_info["raw_img_info"]
        file = Path(self.data_prefix["img"]) / image["file_name"]
        if not file.is_file():
            raise MissingError(
                f"{self.ann_file} names the image {file}, which is not there; set data_prefix, or add it"
            )

        for annotation in raw_data_info["raw_ann_info"]:
            x, y, width, height = annotation["bbox"]
            # files round boxes in their own ways: one pixel outside is tolerated
            inside = x >= -1 and y >= -1 and x + width <= image["width"] + 1 and y + height <= image["height"] + 1
            if not inside or min(width, height) <= 0:
                raise InputError(
                    f"{self.ann_file}: box {annotation['bbox']} (x, y, width, height) of annotation "
                    f"{annotation.get('id')} is not inside its image {image['file_name']} of {image['width']} x "
                    f"{image['height']} pixels"
                )
        return super().parse_data_info(raw_data_info)


def check_label_maps(dataset: Any) -> None:
    """Check that every image of a data set of MMSegmentation has its label map.

    Raises:
        MissingError: naming the first label map that is missing.
    """
    for info in dataset.load_data_list():
        path = info.get("seg_map_path")
        if path is not None and not Path(path).is_file():
            raise MissingError(f"the image {info['img_path']} has no label map {path}; add it, or set seg_map_suffix")


def category_ids(dataset: Any) -> tuple[int, ...]:
    """The ids that the classes have in a COCO annotation file, in the order of their labels.

    Args:
        dataset: of MMDetection; if its annotations were not read, the list of categories is read from its file.

    Returns:
        One id for each class; empty for other formats, or if there is no such file.
    """
    if not isinstance(dataset, CocoDataset):
        return ()
    if hasattr(dataset, "cat_ids"):
        return tuple(dataset.cat_ids)

    file = Path(dataset.ann_file)
    if not file.is_file():
        return ()
    categories = json.loads(file.read_text(encoding="utf-8"))["categories"]
    classes = set(dataset.metainfo["classes"])
    return tuple(category["id"] for category in categories if category["name"] in classes)
