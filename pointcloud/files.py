"""Read clouds and meshes from files; errors name the broken file."""

import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from core.data.folders import find_files
from core.errors import InputError, MissingError

__all__ = ["SUFFIXES", "check_cloud", "cloud_files", "read_cloud"]

SUFFIXES = (".npy", ".obj", ".off", ".pcd", ".ply", ".stl", ".txt")


def cloud_files(path: Path) -> list[Path]:
    """Find all clouds and meshes below a folder, sorted; a path to a file gives that file alone.

    Raises:
        MissingError: if there is none.
        InputError: if there is no permission to read a folder.
    """
    return find_files(path, SUFFIXES, "clouds or meshes")


def read_cloud(path: Path, count: int, *, seed: int = 0) -> np.ndarray:
    """Read all points of a cloud, or draw points on a mesh, uniformly by area.

    Args:
        path: a mesh, with faces or with vertices alone (.off, .obj, .ply, .stl), or points (.npy, .txt, .pcd), of which
            the first three columns are read.
        count: number of points to draw from a mesh, and the smallest number of points that a cloud may have.
        seed: seed of the points that are drawn from a mesh.

    Returns:
        (N, 3) finite coordinates in the unit of the file: float64 for meshes and for files with numbers wider than
        float32, else float32.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is broken or has fewer than ``count`` points, if a coordinate is NaN, infinite or too
            large for float32, or if all points are the same.
    """
    if not path.is_file():
        raise MissingError(f"there is no cloud {path}; correct the list that names it")

    point_readers = {".npy": _read_npy, ".txt": _read_text, ".pcd": _read_pcd}
    read_points = point_readers.get(path.suffix.lower())
    try:
        points = read_points(path) if read_points else _read_mesh(path, count, seed)
    except InputError:
        raise
    except ImportError as error:  # trimesh wants a package that guesses encodings if a text file is not UTF-8
        raise InputError(f"{path} is neither text nor a binary file of its format; replace it") from error
    except Exception as error:  # the readers raise errors of every kind for damaged files
        raise InputError(f"{path} cannot be read as a cloud or mesh: {error}; replace it") from error

    return check_cloud(points, str(path), count)


def check_cloud(points: np.ndarray, name: str, count: int) -> np.ndarray:
    """Check that an array is a cloud of at least ``count`` points, and return its first three columns.

    Args:
        points: (N, 3 or more) of any dtype.
        name: name of the cloud in messages.
        count: smallest number of points.

    Returns:
        (N, 3) float32, or float64 if the dtype of the array is wider than float32.

    Raises:
        InputError: if the array is not such a cloud.
    """
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {points.dtype} of shape {points.shape}; expected numbers, (points, 3 or more)")

    fits_float32 = points.dtype.kind == "f" and points.dtype.itemsize <= 4
    points = points[:, :3].astype(np.float32 if fits_float32 else np.float64)
    if len(points) < count:
        raise InputError(
            f"{name} has {len(points)} points, {count} are needed; type --data.load_points {max(len(points), 1)} with "
            "a --data.num_points that is not larger, or leave the file out"
        )

    _check_range(points, name)
    if (points == points[0]).all():
        raise InputError(f"{name} has all its points in one place; replace it")
    return points


def _check_range(points: np.ndarray, name: str) -> None:
    """Check that all coordinates are finite and fit into float32."""
    if not (np.abs(points) <= np.finfo(np.float32).max).all():
        raise InputError(f"{name} holds NaN or infinite coordinates, or some above 3.4e38; replace it")


def _read_npy(path: Path) -> np.ndarray:
    return np.load(path, allow_pickle=False)


def _read_text(path: Path) -> np.ndarray:
    """Read lines of numbers, separated by spaces or commas."""
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise InputError(f"{path} is empty; replace it")

    return np.loadtxt(io.StringIO(text.replace(",", " ")), dtype=np.float64, ndmin=2)


# Meshes


def _read_mesh(path: Path, count: int, seed: int) -> np.ndarray:
    """Draw points on the faces of a mesh, or read the vertices of a mesh without faces."""
    import trimesh  # takes a second to import, and only meshes need it

    mesh: Any = trimesh.load(path, process=False)
    if isinstance(mesh, trimesh.Scene):
        if not mesh.geometry:
            raise InputError(f"{path} is empty or its header is broken; replace it")
        mesh = mesh.to_geometry()
    if path.suffix.lower() == ".off":
        _check_off(path)

    vertices = np.asarray(mesh.vertices)
    _check_range(vertices, str(path))
    if not len(getattr(mesh, "faces", ())):
        if len(vertices) < count:
            raise InputError(
                f"{path} has no faces to draw points from, and {len(vertices)} vertices where {count} points are "
                "needed; give a mesh with faces, or larger clouds"
            )
        return vertices

    if not mesh.area > 0:
        raise InputError(f"{path} has {len(mesh.faces)} faces without area; replace it")

    points, _ = trimesh.sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points)


def _check_off(path: Path) -> None:
    """Raise an error if an .off file has fewer lines than its header announces, which trimesh reads without complaint.

    The first word is OFF, with a prefix for further values of each vertex: C for a color, N for a normal, ST for
    texture coordinates. The numbers of vertices and faces are on the next line, on the same line or, in some files of
    ModelNet, in the same word.
    """
    without_comments = [line.partition("#")[0].split() for line in path.read_text(encoding="utf-8").splitlines()]
    lines = [words for words in without_comments if words]

    first_line = [re.sub("^[A-Z0-9]*OFF", "", lines[0][0]), *lines[0][1:]]
    counts = [word for word in first_line if word]
    body = lines[1:]
    if not counts:  # the header has nothing but OFF on its first line
        counts = body.pop(0)

    vertices, faces = counts[:2]
    if len(body) < int(vertices) + int(faces):
        raise InputError(f"{path} is cut off: {len(body)} lines for {vertices} vertices and {faces} faces; replace it")


# Files of the Point Cloud Library


@dataclass(frozen=True)
class _PCDHeader:
    """The header of a .pcd file.

    Attributes:
        fields: names of the fields of a point.
        counts: how many values each field has.
        types: type of the values in each field, in binary files: F float, I integer, U unsigned integer.
        sizes: bytes per value in each field, in binary files.
        points: number of points.
        encoding: encoding of the points: 'ascii', 'binary' or 'binary_compressed'.
        length: length of the header in bytes.
    """

    fields: list[str]
    counts: list[int]
    types: list[str]
    sizes: list[int]
    points: int
    encoding: str
    length: int


def _read_pcd(path: Path) -> np.ndarray:
    """Read the fields x, y and z of a .pcd file, without points that are marked as not measured by NaN."""
    content = path.read_bytes()
    header = _parse_pcd_header(path, content)
    body = content[header.length :]

    if header.encoding == "ascii":
        points = _pcd_text_points(body, header)
    elif header.encoding == "binary":
        points = _pcd_binary_points(body, header)
    else:
        raise InputError(f"{path} is {header.encoding}; convert it to ascii or binary")

    if len(points) < header.points:
        raise InputError(f"{path} is cut off after {len(points)} of {header.points} points; replace it")
    return points[np.isfinite(points).all(axis=1)]


def _parse_pcd_header(path: Path, content: bytes) -> _PCDHeader:
    """Parse the lines of a header, each with a name and its values, up to the line DATA."""
    values: dict[str, list[str]] = {}
    start = 0
    while "DATA" not in values:
        end = content.find(b"\n", start)
        if end < 0:
            raise InputError(f"{path} has no line DATA in its header; expected a .pcd file. Replace it")

        words = content[start:end].decode("ascii", "replace").split()
        if words:
            values[words[0]] = words[1:]
        start = end + 1

    needed = ["FIELDS", "POINTS"]
    if values["DATA"] == ["binary"]:
        needed += ["TYPE", "SIZE"]
    missing = [name for name in needed if not values.get(name)]
    if missing:
        raise InputError(f"{path} has no line {' and no line '.join(missing)} in its header; replace it")

    fields = values["FIELDS"]
    if not {"x", "y", "z"} <= set(fields):
        raise InputError(f"{path} has the fields {', '.join(fields)}; expected x, y and z among them")

    return _PCDHeader(
        fields=fields,
        counts=[int(count) for count in values.get("COUNT", ["1"] * len(fields))],
        types=values.get("TYPE", []),
        sizes=[int(size) for size in values.get("SIZE", [])],
        points=int(values["POINTS"][0]),
        encoding=" ".join(values["DATA"]),
        length=start,
    )


def _pcd_text_points(body: bytes, header: _PCDHeader) -> np.ndarray:
    # A field of several values takes several columns.
    first_columns = np.cumsum([0, *header.counts])
    columns = [first_columns[header.fields.index(axis)] for axis in "xyz"]
    return np.loadtxt(io.BytesIO(body), dtype=np.float64, ndmin=2)[:, columns]


def _pcd_binary_points(body: bytes, header: _PCDHeader) -> np.ndarray:
    # The dtype names fields by their index, since a file may use a name twice, such as '_' for padding.
    layout = zip(header.types, header.sizes, header.counts, strict=True)
    dtype = np.dtype([(str(i), f"<{kind.lower()}{size}", (count,)) for i, (kind, size, count) in enumerate(layout)])

    complete = min(header.points, len(body) // dtype.itemsize)
    records = np.frombuffer(body, dtype, complete)
    return np.stack([records[str(header.fields.index(axis))][:, 0] for axis in "xyz"], axis=1)
