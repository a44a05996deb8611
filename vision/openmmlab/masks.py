"""Your own label maps: photos, and for each a mask whose values are classes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning_utilities.core.rank_zero import rank_zero_info
from mmengine.registry import DefaultScope
from PIL import Image

from core.errors import InputError, MissingError, listed
from vision.openmmlab.config_files import quiet
from vision.openmmlab.data import SegmentationSpec
from vision.openmmlab.own_data import FileSplit, OwnData, differing_sizes, divided, image_sizes, relative_files

__all__ = ["LabeledMasks"]

_IGNORED = 255
"""Value of the pixels that count for nothing."""
_MOST_READ = 2000
"""Number of masks of a split whose values are read before the run; in larger sets, so many evenly spaced ones."""

Pair = tuple[Path, Path]
"""The paths of an image and its mask."""


@dataclass
class _Found:
    """What the masks of a split hold.

    Attributes:
        counts: number of pixels of each value, in the masks that were read.
        example: a mask that holds the value, by value.
        palette: the colors of the first mask that has a palette, by value.
    """

    counts: Counter[int]
    example: dict[int, Path]
    palette: list[tuple[int, int, int]]


class LabeledMasks(OwnData):
    """Photos, and for each a mask of the same name and size: a PNG with one channel, whose values are classes.

    The names of the classes come from ``classes`` or, without it, from ``classes.txt`` in the folder of the masks or
    the one above it; line i names the value i, counted from 0. Without names, each value that the masks hold is a class
    with its number as name. The value 255 is ignored. If the masks have a palette, its colors are used in pictures.

    Without ``val_masks``, a share of the images is held out, and without ``test_masks`` the validation images are the
    test images. Without any folder, the built-in scenes of digits are drawn and read.

    Args:
        config: an OpenMMLab config; the command passes that of the model.
        masks: folder of the masks of the training images, or of all images.
        val_masks: folder of the masks of the validation images, which are in ``val_images``.
        test_masks: folder of the masks of the test images, which are in ``test_images``.
        classes: names of the values 0, 1 and so on, or a dictionary from values to names.
        ignore: values that count for nothing, beside 255.
        balance: b in the weight n^-b in the loss of a class that has n pixels; 0 weights all pixels equally.
        kwargs: the other arguments of :class:`vision.openmmlab.own_data.OwnData`.

    Raises:
        MissingError: if a file is missing.
        InputError: if the masks cannot be used.
    """

    most_pixels = 320

    def __init__(
        self,
        config: str | None = None,
        *,
        masks: str | None = None,
        val_masks: str | None = None,
        test_masks: str | None = None,
        classes: list[str] | dict[int, str] | None = None,
        ignore: list[int] | None = None,
        balance: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(config, **kwargs)
        if not 0 <= balance <= 1:
            raise InputError(f"balance={balance}; expected a number in [0, 1]")
        self.balance = balance
        self.masks: dict[FileSplit, str | None] = {"train": masks, "val": val_masks, "test": test_masks}
        for split, folder in self.masks.items():
            option = "masks" if split == "train" else f"{split}_masks"
            if folder and not self.folders[split]:
                raise InputError(
                    f"--data.{option} needs the images too; add --data.{option.replace('masks', 'images')}"
                )
            if self.folders[split] and not folder:
                raise InputError(f"the masks of {self.folders[split]} are missing; add --data.{option} FOLDER")

        self.names = classes
        self.ignore = tuple(ignore or ())
        self._pairs: dict[FileSplit, Sequence[Pair]] = {}
        self._names_from = "--data.classes"
        self._summary = ""

    @property
    def has_files(self) -> bool:
        """Whether the user has named masks."""
        return bool(self.masks["train"])

    def use_scenes(self) -> None:
        """Read the built-in scenes."""
        for split in self.masks:
            self.masks[split] = str(self.root / "labels" / split)
            self.folders[split] = str(self.root / "images" / split)
        self.names = ["photo", *(str(digit) for digit in range(10))]
        self._names_from = "the built-in scenes"

    def empty_spec(self) -> SegmentationSpec:
        """Return a specification of unknown files."""
        return SegmentationSpec(own_files=True)

    def read_files(self) -> SegmentationSpec:
        """Pair images and masks, read the values of the masks, and hold out images if no others are given."""
        self._pairs = {split: self._pair(split) for split, folder in self.masks.items() if folder}
        found = {split: _read_values(pairs) for split, pairs in self._pairs.items()}
        ignored = {_IGNORED, *self.ignore}

        names, source = self._class_names()
        if names is None:
            values = sorted({value for part in found.values() for value in part.counts} - ignored)
            names, source = {value: str(value) for value in values}, "the values of the masks"
        if len(names) < 2:
            raise InputError(
                f"the masks have one class, {listed(names.values()) or 'none'}, and every pixel gets a class; expected "
                "two or more, with one for the rest of the image"
            )
        for part in found.values():
            self._check_values(part, names, ignored, source)

        if "val" not in self._pairs:
            pairs = self._pairs["train"]
            kept, held_out = divided([0] * len(pairs), self.val_share, "images")
            self._pairs["train"] = [pairs[i] for i in kept]
            self._pairs["val"] = [pairs[i] for i in held_out]
        self._pairs.setdefault("test", self._pairs["val"])

        counts = found["train"].counts
        total = sum(counts[value] for value in names) or 1
        shares = [f"{name} {100 * counts[value] / total:.1f} %" for value, name in names.items()]
        self._summary = f"classes from {source} ({listed(shares, limit=20)})"

        colors = found["train"].palette
        return SegmentationSpec(
            classes=tuple(names.values()),
            palette=tuple(colors[value] for value in names) if colors and len(colors) > max(names) else (),
            values=tuple(names),
            class_weights=_class_weights([counts[value] for value in names], self.balance),
            own_files=True,
        )

    def training_sizes(self) -> list[tuple[int, int]]:
        """Return (width, height) of the training images, in pixels."""
        return image_sizes([image for image, _ in self._pairs["train"]])

    def split_dataset(self, split: FileSplit, pipeline: Any) -> Any:
        """Return the data set of a split."""
        from vision.openmmlab.file_datasets import MaskDataset  # it imports mmseg
        from vision.openmmlab.overlays import class_colors

        spec: SegmentationSpec = self._own_spec
        steps = [{"type": "LoadMaskAnnotations"} if step["type"] == "LoadAnnotations" else step for step in pipeline]
        colors = class_colors(len(spec.classes), spec.palette)
        with DefaultScope.overwrite_default_scope("mmseg"), quiet():
            return MaskDataset(
                self._pairs[split],
                spec.values,
                metainfo={"classes": spec.classes, "palette": [list(color) for color in colors]},
                pipeline=steps,
                test_mode=split != "train",
            )

    def summary(self) -> str:
        """Return one line about what was chosen."""
        return f"{len(self._pairs['train'])} training images, {self._summary}; {self.size_chosen()}"

    # Reading

    def _pair(self, split: FileSplit) -> list[Pair]:
        """Find the mask of each image of a split, and compare their sizes.

        Raises:
            MissingError: if an image has no mask.
            InputError: if a mask has another size than its image.
        """
        images_folder, masks_folder = Path(str(self.folders[split])), Path(str(self.masks[split]))
        if not masks_folder.is_dir():
            raise MissingError(f"there is no folder {masks_folder}; give the folder that holds the masks")
        images, masks = relative_files(images_folder), relative_files(masks_folder)
        by_stem = {str(Path(name).with_suffix("")): mask for name, mask in masks.items()}

        missing = [name for name in images if str(Path(name).with_suffix("")) not in by_stem]
        if missing:
            raise MissingError(
                f"{len(missing)} of {len(images)} images in {images_folder} have no mask of the same name in "
                f"{masks_folder}: {listed(missing, limit=3)}; it holds {listed(masks, limit=3)}. Add the masks, or "
                "remove the images"
            )

        pairs = [(image, by_stem[str(Path(name).with_suffix(""))]) for name, image in images.items()]
        sizes = zip(image_sizes([p for p, _ in pairs]), image_sizes([m for _, m in pairs]), strict=True)
        differing = {str(mask): size for (_, mask), size in zip(pairs, sizes, strict=True)}
        message = differing_sizes(differing, f"masks in {masks_folder} have another size than their images")
        if message:
            raise InputError(f"{message}. Make them equal, and resize masks by nearest neighbor")
        return pairs

    def _class_names(self) -> tuple[dict[int, str] | None, str]:
        """Return the name of each value and where the names come from; None if there are none.

        Raises:
            InputError: if names or values are not unique.
        """
        names = self.names
        source = self._names_from
        if names is None:
            folder = Path(str(self.masks["train"]))
            file = next((f for f in (folder / "classes.txt", folder.parent / "classes.txt") if f.is_file()), None)
            if file is None:
                return None, ""
            names = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
            source = str(file)

        named = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
        twice = [name for name, count in Counter(named.values()).items() if count > 1]
        wrong = [value for value in named if not 0 <= value < _IGNORED]
        if twice or wrong:
            raise InputError(
                f"the classes of {source} have the names {listed(named.values())} for the values {listed(named)}; "
                "expected a name of its own for each value, 0 to 254"
            )
        return named, source

    def _check_values(self, found: _Found, names: Mapping[int, str], ignored: set[int], source: str) -> None:
        """Refuse masks with values that have no name and are not to be ignored."""
        unknown = sorted(set(found.counts) - set(names) - ignored)
        if not unknown:
            return

        total = sum(found.counts.values())
        shares = [f"{value} ({100 * found.counts[value] / total:.2g} % of the pixels)" for value in unknown]
        listing = [f"{value} {name}" for value, name in names.items()]
        raise InputError(
            f"masks hold the values {listed(shares)}, for example {found.example[unknown[0]]}, which are no classes of "
            f"{source}: {listed(listing, limit=12)}. Name them, or add --data.ignore '{unknown}' if these pixels count "
            "for nothing"
        )


def _read_values(pairs: Sequence[Pair]) -> _Found:
    """Read the values of the masks; of a large set, those of evenly spaced ones."""
    from vision.openmmlab.file_datasets import read_mask  # it imports mmseg

    masks = [mask for _, mask in pairs]
    if len(masks) > _MOST_READ:
        rank_zero_info(
            f"The values of {_MOST_READ} of {len(masks)} masks are checked now, the others when they are used"
        )
        masks = [masks[i] for i in np.linspace(0, len(masks) - 1, _MOST_READ).round().astype(int)]

    counts: Counter[int] = Counter()
    example: dict[int, Path] = {}
    with ThreadPoolExecutor() as pool:
        for mask, values in zip(masks, pool.map(lambda file: np.bincount(read_mask(file).ravel()), masks), strict=True):
            for value in np.flatnonzero(values).tolist():
                counts[value] += int(values[value])
                example.setdefault(value, mask)
    return _Found(counts, example, _palette(masks[0]))


def _class_weights(counts: Sequence[int], balance: float) -> tuple[float, ...]:
    """Return the weight of each class, of mean 1 over all pixels; empty if all are equal."""
    if balance == 0:
        return ()
    pixels = np.maximum(np.asarray(counts, dtype=np.float64), 1)
    weights = pixels**-balance
    weights *= pixels.sum() / (weights * pixels).sum()
    return tuple(round(weight, 4) for weight in weights.tolist())


def _palette(mask: Path) -> list[tuple[int, int, int]]:
    """Return the colors of a mask's palette, by value; empty without one."""
    with Image.open(mask) as image:
        flat = image.getpalette("RGB") if image.mode == "P" else None
    if not flat:
        return []
    return [(flat[i], flat[i + 1], flat[i + 2]) for i in range(0, len(flat) - 2, 3)]
