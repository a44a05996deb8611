"""Pascal VOC's and YOLO's files as the content of a COCO file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from core.errors import InputError, MissingError, listed
from vision.openmmlab.own_data import image_sizes

__all__ = ["read_voc", "read_yolo"]


def read_voc(folder: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """Read a folder of Pascal VOC's XML files. Category ids count the sorted names from 1.

    Args:
        folder: folder of the files.
        files: images by name; the image of an annotation has its name, with another suffix.

    Raises:
        MissingError: if there is no XML file.
        InputError: if a file cannot be read; the message names it.
    """
    annotations = sorted(folder.rglob("*.xml"))
    if not annotations:
        raise MissingError(f"{folder} holds no .xml files; expected Pascal VOC's annotations")

    stems = {Path(name).stem: name for name in files}
    images: list[dict[str, Any]] = []
    objects: list[tuple[int, str, list[float]]] = []
    for i, file in enumerate(annotations):
        name = stems.get(file.stem)
        try:
            root = ElementTree.parse(file).getroot()
            images.append({"id": i, "file_name": name or str(root.findtext("filename"))})
            for found in root.iter("object"):
                corners = ("xmin", "ymin", "xmax", "ymax")
                left, top, right, bottom = (float(str(found.findtext(f"bndbox/{key}"))) for key in corners)
                objects.append((i, str(found.findtext("name")).strip(), [left, top, right - left, bottom - top]))
        except (ElementTree.ParseError, ValueError) as error:
            raise InputError(f"{file} cannot be read as Pascal VOC's XML: {error}; correct or remove it") from error

    names = sorted({name for _, name, _ in objects})
    return _content(images, [(i, names.index(name), box) for i, name, box in objects], names, first_id=1)


def read_yolo(folder: Path, files: Mapping[str, Path]) -> dict[str, Any]:
    """Read a folder of YOLO's text files: lines of class, center x, center y, width, height, relative to the image.

    The names are the lines of ``classes.txt`` in the folder or the one above it; category ids count from 0. An image
    without a text file has no boxes.

    Args:
        folder: folder of the files.
        files: images by name; the annotation of an image has its name, with the suffix .txt.

    Raises:
        MissingError: if there is no ``classes.txt``, or no image has an annotation.
        InputError: if a line cannot be read; the message names it.
    """
    lists = [place / "classes.txt" for place in (folder, folder.parent)]
    class_file = next((file for file in lists if file.is_file()), None)
    if class_file is None:
        raise MissingError(f"there is no {lists[0]}; write the names of the classes into it, one a line")
    names = [line.strip() for line in class_file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]

    texts = {file.stem: file for file in sorted(folder.rglob("*.txt")) if file != class_file}
    if not any(Path(name).stem in texts for name in files):
        raise MissingError(f"{folder} holds no .txt file with the name of an image, such as {listed(files, limit=2)}")

    images: list[dict[str, Any]] = []
    objects: list[tuple[int, int, list[float]]] = []
    sizes = image_sizes(list(files.values()))
    for i, (name, (width, height)) in enumerate(zip(files, sizes, strict=True)):
        images.append({"id": i, "file_name": name, "width": width, "height": height})
        text = texts.get(Path(name).stem)
        for number, line in enumerate(text.read_text(encoding="utf-8-sig").splitlines() if text else [], 1):
            if not line.strip():
                continue
            try:
                label, x, y, w, h = (float(value) for value in line.split())
                box = [(x - w / 2) * width, (y - h / 2) * height, w * width, h * height]
                if not label.is_integer() or not 0 <= label < len(names):
                    raise ValueError(f"{class_file} has classes 0 to {len(names) - 1}")
            except ValueError as error:
                raise InputError(
                    f"{text}, line {number}: {line!r}; expected class, center x, center y, width and height, relative "
                    f"to the image ({error})"
                ) from error
            objects.append((i, int(label), box))
    return _content(images, objects, names, first_id=0)


def _content(
    images: list[dict[str, Any]], objects: list[tuple[int, int, list[float]]], names: list[str], *, first_id: int
) -> dict[str, Any]:
    """Return the content of a COCO file.

    Args:
        images: the images.
        objects: number of the image, label and box [x, y, width, height] of each object.
        names: the classes.
        first_id: category id of the first class.
    """
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": label + first_id,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
        }
        for number, (image, label, box) in enumerate(objects, 1)
    ]
    categories = [{"id": label + first_id, "name": name} for label, name in enumerate(names)]
    return {"images": images, "annotations": annotations, "categories": categories}
