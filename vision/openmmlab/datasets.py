"""MMDetection's COCO and MMSegmentation's data sets with their files compared before training starts.

MMDetection leaves out what it cannot use, and finds a missing image in the middle of an epoch. Here the first such
thing is named before a run begins. Used by :class:`vision.openmmlab.data.OpenMMLabData`; the mm way keeps mm's own
classes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.datasets.api_wrappers import COCO
from mmengine.registry import DATASETS

from core.errors import InputError, MissingError

__all__ = ["CheckedCocoDataset", "check_label_maps"]


class _CheckedCoco(COCO):
    """COCO's index, which refuses annotations of images that the file does not list."""

    def createIndex(self) -> None:  # noqa: N802
        """Index the annotations by image.

        Raises:
            InputError: naming the annotation.
        """
        images = {image["id"] for image in self.dataset.get("images", [])}
        for note in self.dataset.get("annotations", []):
            if note["image_id"] not in images:
                raise InputError(
                    f"annotation {note.get('id')} belongs to image {note['image_id']}, which the annotation file does "
                    "not list under 'images'; correct the file"
                )
        super().createIndex()


@DATASETS.register_module()
class CheckedCocoDataset(CocoDataset):
    """:class:`mmdet.datasets.CocoDataset` that refuses missing images and boxes outside their image."""

    COCOAPI = _CheckedCoco

    def parse_data_info(self, raw_data_info: Mapping[str, Any]) -> Any:
        """Turn one image and its annotations into MMDetection's form.

        Raises:
            MissingError: if the image is not there.
            InputError: if a box lies outside its image.
        """
        image = raw_data_info["raw_img_info"]
        file = Path(self.data_prefix["img"]) / image["file_name"]
        if not file.is_file():
            raise MissingError(
                f"{self.ann_file} names the image {file}, which is not there; set data_prefix, or add it"
            )
        for note in raw_data_info["raw_ann_info"]:
            x, y, width, height = note["bbox"]
            inside = x >= -1 and y >= -1 and x + width <= image["width"] + 1 and y + height <= image["height"] + 1
            if not inside or min(width, height) <= 0:
                raise InputError(
                    f"{self.ann_file}: box {note['bbox']} (x, y, width, height) of annotation {note.get('id')} is not "
                    f"inside its image {image['file_name']} of {image['width']} x {image['height']} pixels"
                )
        return super().parse_data_info(raw_data_info)


def check_label_maps(dataset: Any) -> None:
    """Find out whether every image of a data set of MMSegmentation has its label map.

    Raises:
        MissingError: naming the first that is not there.
    """
    for info in dataset.load_data_list():
        path = info.get("seg_map_path")
        if path is not None and not Path(path).is_file():
            raise MissingError(f"the image {info['img_path']} has no label map {path}; add it, or set seg_map_suffix")
