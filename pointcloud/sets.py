"""Point-cloud data sets: class folders, and ModelNet40 and ScanObjectNN in their usual layouts."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from core.data.folders import class_files
from core.data.labeled import FolderDataModule
from core.data.memory import machine_memory
from core.data.samples import Sample, Samples, Splits, Validation, source_name
from core.errors import InputError, MissingError
from core.io.untrusted import read_arrays
from pointcloud.data import PointDataModule
from pointcloud.files import cloud_files, read_text

__all__ = ["ModelNet40", "PointFolder", "ScanObjectNN", "read_h5"]

MODELNET40 = (
    *("airplane", "bathtub", "bed", "bench", "bookshelf", "bottle", "bowl", "car", "chair", "cone", "cup", "curtain"),
    *("desk", "door", "dresser", "flower_pot", "glass_box", "guitar", "keyboard", "lamp", "laptop", "mantel"),
    *("monitor", "night_stand", "person", "piano", "plant", "radio", "range_hood", "sink", "sofa", "stairs", "stool"),
    *("table", "tent", "toilet", "tv_stand", "vase", "wardrobe", "xbox"),
)
"""The classes of ModelNet40 in the order of their labels."""

SCANOBJECTNN = (
    *("bag", "bed", "bin", "box", "cabinet", "chair", "desk", "display", "door", "pillow", "shelf", "sink", "sofa"),
    *("table", "toilet"),
)
"""The classes of ScanObjectNN in the order of their labels."""


class PointFolder(FolderDataModule, PointDataModule):
    """Class folders of clouds and meshes: ``root/train/<class>/*.off`` or ``root/<class>/*.off``.

    See :class:`core.data.labeled.FolderDataModule` for the layouts and their options.

    Supported formats: .off, .obj, .ply, .stl, .npy, .txt and .pcd, in any mixture.
    """

    pattern = "*.off"


class _PublishedSet(PointDataModule):
    """A data set that is published with a training and a test split.

    Args:
        root: folder of the files.
        val_split: 'held_out' to hold out a share of each class of the training split; 'test' to validate on the test
            split, by which most published results choose their checkpoint.
        val_share: share of each class to hold out.
        kwargs: arguments of :class:`PointDataModule`.

    Raises:
        InputError: if ``val_share`` is out of range.
    """

    names: ClassVar[Sequence[str]]
    """Class names in the order of the labels."""

    def __init__(
        self,
        root: str,
        *,
        val_split: Literal["held_out", "test"] = "held_out",
        val_share: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.root = Path(root)
        self.validation = Validation(val_split, val_share)

    def splits(self) -> Splits:
        """Read the training and the test split, and choose the validation clouds.

        Raises:
            MissingError: if a file is missing.
            InputError: if a file is broken, or has a label out of range.
        """
        train = self._read("train")
        test = self._read("test")
        for cloud, label in (*train, *test):
            if not 0 <= label < len(self.names):
                raise InputError(
                    f"{source_name(cloud)} has label {label}; expected 0 to {len(self.names) - 1}. Correct the file"
                )

        return self.validation.splits(self.names, train, test)

    def _read(self, split: str) -> Samples:
        """List the clouds and labels of the split 'train' or 'test'."""
        raise NotImplementedError


class ModelNet40(_PublishedSet):
    """ModelNet40, 40 classes of CAD models, in one of the three layouts in use.

    - ``modelnet40_{train,test}_8192pts_fps.dat``: Point-BERT's pickles with 8,192 points of each model, which the
      published recipe uses. Untrusted pickles never execute code.
    - ``train_files.txt``, ``test_files.txt`` and the files ``ply_data_*.h5`` that they list: 2,048 points of each
      model.
    - ``<class>/{train,test}/*.off``: the meshes, from which points are drawn uniformly by area.

    Args:
        root: folder of the files.
        kwargs: arguments of :class:`PointDataModule`, and ``val_split`` ('held_out', or 'test' to validate on the test
            split as published) and ``val_share`` (share of each class to hold out).
    """

    names = MODELNET40

    def __init__(self, root: str = "data/ModelNet40", **kwargs: Any) -> None:
        super().__init__(root, **kwargs)

    def check_data(self) -> None:
        """Check that the folder has one of the layouts.

        Raises:
            MissingError: if it has none of them.
        """
        self._layout()

    def _layout(self) -> Literal["pickle", "h5", "off"]:
        """Return the first layout whose training split is in the folder."""
        if _pickle_file(self.root, "train").is_file():
            return "pickle"
        if (self.root / "train_files.txt").is_file():
            return "h5"
        if any(self.root.glob("*/train")):
            return "off"

        raise MissingError(
            f"{self.root} has neither {_pickle_file(self.root, 'train').name}, nor train_files.txt, nor "
            "<class>/train/*.off; download ModelNet40 in one of these layouts (pointcloud/README.md), or give its "
            "folder: --data.root FOLDER"
        )

    def _read(self, split: str) -> Samples:
        layout = self._layout()
        if layout == "pickle":
            return _read_pickle(_pickle_file(self.root, split))
        if layout == "h5":
            return self._read_h5_files(split)
        return self._find_meshes(split)

    def _read_h5_files(self, split: str) -> list[Sample]:
        """Read the clouds of the HDF5 files in the list of a split."""
        file_list = self.root / f"{split}_files.txt"
        if not file_list.is_file():
            raise MissingError(f"there is no {file_list}; unpack the whole archive")

        # The list has the paths of the machine on which it was written.
        names = [Path(line).name for line in read_text(file_list).split()]
        return [cloud for name in names for cloud in read_h5(self.root / name)]

    def _find_meshes(self, split: str) -> Samples:
        """Find the meshes of a split in the class folders."""

        def find(folder: Path) -> list[Path]:
            return cloud_files(folder / split)

        _, meshes = class_files(self.root, find, pattern=f"{split}/*.off", classes=self.names)
        return meshes


def _pickle_file(root: Path, split: str) -> Path:
    """Return the path of a pickle in Point-BERT's layout."""
    return root / f"modelnet40_{split}_8192pts_fps.dat"


def _read_pickle(path: Path) -> list[Sample]:
    """Read a pickle of a list of arrays (points, 3 or more) and a list of labels."""
    content = read_arrays(path)
    samples: list[Sample] = []
    try:
        arrays, labels = content
        for i, (array, label) in enumerate(zip(arrays, labels, strict=True)):
            cloud = (f"{path.name}/{i}", np.asarray(array))
            samples.append((cloud, int(np.asarray(label).reshape(-1)[0])))
    except (TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is not a pair of a list of arrays and a list of labels: {error}") from error

    return samples


def read_h5(path: Path) -> list[Sample]:
    """Read the clouds and labels of an HDF5 file with datasets ``data`` (N, points, 3) and ``label`` (N,) or (N, 1).

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is broken, or does not have these datasets.
    """
    import h5py  # only the published sets need it

    if not path.is_file():
        raise MissingError(f"there is no {path}; unpack the whole archive, or correct the folder")

    try:
        with h5py.File(path, "r") as file:
            data = _read_dataset(path, file, "data")
            labels = _read_dataset(path, file, "label").reshape(-1)
    except (OSError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {error}; download it again") from error

    if len(data) != len(labels):
        raise InputError(f"{path} has {len(data)} clouds and {len(labels)} labels; download it again")

    return [((f"{path.name}/{i}", data[i]), int(labels[i])) for i in range(len(data))]


def _read_dataset(path: Path, file: Any, name: str) -> np.ndarray:
    """Read a dataset of an HDF5 file, whose numbers must all be stored in the file itself.

    HDF5 can refer to any other file on the machine for the numbers of a dataset, and can declare a size for which no
    numbers were written.
    """
    import h5py

    link = file.get(name, getlink=True)
    if link is None:
        raise InputError(f"{path} cannot be read: it has no dataset {name}; download it again")
    if not isinstance(link, h5py.HardLink):
        raise InputError(f"{path} has {name} as a link, maybe to another file, and is not read; download it again")

    dataset = file[name]
    if not isinstance(dataset, h5py.Dataset) or dataset.dtype.kind not in "fiu":
        found = getattr(dataset, "dtype", "a group")
        raise InputError(f"{path} holds {name} as {found}; expected numbers. Download it again")
    if dataset.external or dataset.is_virtual:
        raise InputError(f"{path} keeps {name} in other files, and is not read; store the numbers in the file itself")

    if dataset.chunks:
        chunks_by_axis = [math.ceil(size / chunk) for size, chunk in zip(dataset.shape, dataset.chunks, strict=True)]
        is_complete = dataset.id.get_num_chunks() == math.prod(chunks_by_axis)
    else:
        is_complete = dataset.id.get_storage_size() >= dataset.nbytes
    if not is_complete:
        raise InputError(f"{path} declares {name} of shape {dataset.shape}, but holds only a part; download it again")

    memory = machine_memory()
    if memory is not None and dataset.nbytes > memory:
        raise InputError(
            f"{path} has {name} of {dataset.nbytes / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f} GiB of "
            "memory; divide the file"
        )
    return np.asarray(dataset)


class ScanObjectNN(_PublishedSet):
    """ScanObjectNN, 15 classes of scanned objects: ``root/{training,test}_objectdataset<variant>.h5``.

    Clouds keep their size and position, as in the published recipe.

    Args:
        root: the folder ``main_split``, or ``main_split_nobg`` for objects without background.
        variant: end of the file names. The default is the hardest variant, PB_T50_RS; '' stands for the objects as they
            were scanned.
        load_points: number of points read from each cloud; the files have 2,048.
        num_points: number of points that the model selects from these by farthest point sampling.
        normalize: center each cloud and scale it into the unit sphere.
        kwargs: arguments of :class:`PointDataModule`, and ``val_split`` and ``val_share`` as in :class:`ModelNet40`.
    """

    names = SCANOBJECTNN

    def __init__(
        self,
        root: str = "data/ScanObjectNN/main_split",
        *,
        variant: str = "_augmentedrot_scale75",
        load_points: int = 2048,
        num_points: int = 2048,
        normalize: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(root, load_points=load_points, num_points=num_points, normalize=normalize, **kwargs)
        self.variant = variant

    def check_data(self) -> None:
        """Check that the files of both splits exist.

        Raises:
            MissingError: if one is missing.
        """
        for split in ("train", "test"):
            if not self._file(split).is_file():
                raise MissingError(f"there is no {self._file(split)}; give the folder: --data.root FOLDER")

    def _read(self, split: str) -> Samples:
        return read_h5(self._file(split))

    def _file(self, split: str) -> Path:
        """Return the path of the file of a split."""
        name = "training" if split == "train" else split
        return self.root / f"{name}_objectdataset{self.variant}.h5"
