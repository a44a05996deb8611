"""Read clouds and meshes from files; errors name the broken file."""

import codecs
import io
import re
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from core.data.folders import find_files
from core.errors import InputError, MissingError
from pointcloud.pcd import read_pcd
from pointcloud.ply import read_ply

__all__ = ["SUFFIXES", "check_cloud", "cloud_files", "read_cloud", "read_text"]

SUFFIXES = (".npy", ".obj", ".off", ".pcd", ".ply", ".stl", ".txt")
"""Suffixes of the files that are found in folders."""


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
        path: a mesh (.off, .obj, .ply, .stl), which may have vertices alone, or points (.npy, .txt, .pcd), of which the
            first three columns are read.
        count: number of points to draw from a mesh.
        seed: seed of the points that are drawn from a mesh.

    Returns:
        Finite coordinates (N, 3) in the unit of the file: float64 for meshes and for files with numbers wider than
        float32, otherwise float32.

    Raises:
        MissingError: if there is no such file.
        InputError: if the file is broken or has no points, if a coordinate is NaN, infinite or too large for float32,
            or if all points are the same.
    """
    if not path.is_file():
        raise MissingError(f"there is no cloud {path}; correct the list that names it")

    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is not a cloud or mesh; expected a file ending in {', '.join(SUFFIXES)}")

    point_readers = {".npy": _read_npy, ".txt": _read_columns, ".pcd": _read_pcd}
    read_points = point_readers.get(path.suffix.lower())
    try:
        points = read_points(path) if read_points else _read_mesh(path, count, seed)
    except InputError:
        raise
    except Exception as error:  # the readers raise errors of any type for damaged files
        raise InputError(f"{path} cannot be read as a cloud or mesh: {error}; replace it") from error

    return check_cloud(points, str(path))


def check_cloud(points: np.ndarray, name: str) -> np.ndarray:
    """Check that an array is a cloud, and return its first three columns.

    Args:
        points: array (N, 3 or more) of any dtype.
        name: name of the cloud in messages.

    Returns:
        Points (N, 3) float32, or float64 if the dtype of the array is wider than float32.

    Raises:
        InputError: if the array is not such a cloud.
    """
    if points.ndim != 2 or points.shape[1] < 3 or points.dtype.kind not in "fiu":
        raise InputError(f"{name} holds {points.dtype} of shape {points.shape}; expected numbers, (points, 3 or more)")

    fits_float32 = points.dtype.kind == "f" and points.dtype.itemsize <= 4
    points = points[:, :3].astype(np.float32 if fits_float32 else np.float64)
    if len(points) == 0:
        raise InputError(f"{name} has no points; replace it, or leave it out")

    _check_range(points, name)
    if (points == points[0]).all():
        raise InputError(f"{name} has all its points in one place; replace it")
    return points


def _check_range(points: np.ndarray, name: str) -> None:
    """Check that all coordinates are finite and fit into float32."""
    if not (np.abs(points) <= np.finfo(np.float32).max).all():
        raise InputError(f"{name} holds NaN or infinite coordinates, or some above 3.4e38; replace it")


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 or, if a byte-order mark says so, in UTF-16, and convert its line ends to newlines.

    Bytes that are not UTF-8 become replacement characters. They may occur in comments and names, which do not matter,
    but not in numbers and keywords.

    Raises:
        InputError: if the file is not a text file.
    """
    text = _without_mark(path.read_bytes()).decode("utf-8", errors="replace")
    if "\0" in text:
        raise InputError(f"{path} is neither text nor a binary file of its format; replace it")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _without_mark(content: bytes) -> bytes:
    """Remove the byte-order mark from the content of a file, and convert UTF-16 to UTF-8."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace").encode()
    return content.removeprefix(codecs.BOM_UTF8)


def _read_npy(path: Path) -> np.ndarray:
    """Read an array that numpy.save has written."""
    array = np.load(path, allow_pickle=False)
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path} is an archive of arrays; store each array in its own file, with numpy.save")
    return array


def _read_columns(path: Path) -> np.ndarray:
    """Read lines of numbers that are separated by spaces or by commas; # begins a comment."""
    text = re.sub("#.*", "", read_text(path))
    if not text.strip():
        raise InputError(f"{path} is empty; replace it")

    if "," not in text:
        return np.loadtxt(io.StringIO(text), dtype=np.float64, ndmin=2)

    _check_commas(path, text)
    text = re.sub(",[ \t]*$", "", text, flags=re.MULTILINE)  # some programs write a comma at the end of each line
    return np.loadtxt(io.StringIO(text), dtype=np.float64, ndmin=2, delimiter=",")


def _check_commas(path: Path, text: str) -> None:
    """Raise an error if commas may be decimal commas, as in '0,25 1,5 2' or in '0,25, 1,5, 2'.

    A decimal comma has no space beside it, and the columns are separated in another way. If the columns are separated
    by commas without spaces too, decimal commas are recognized only by decimal parts that begin with 0, such as '0,05'.
    """
    within = re.search(r"\d,\d", text)
    other_separator = re.search(r"[^\s,;][ \t]*[ \t;][ \t]*[^\s,;]|,[ \t]+[^\s,;]", text)
    decimal_part = re.search(r"\d,0\d", text)
    if within and (other_separator or decimal_part):
        raise InputError(
            f"{path} has commas within its numbers, as in {(decimal_part or within)[0]!r}, or separates columns in two "
            "ways; write decimal points, and separate columns by spaces alone or by commas alone"
        )


def _read_pcd(path: Path) -> np.ndarray:
    """Read a .pcd file, which may begin with a byte-order mark."""
    return read_pcd(path, _without_mark(path.read_bytes()))


# Meshes


def _read_mesh(path: Path, count: int, seed: int) -> np.ndarray:
    """Draw points on the faces of a mesh, or read the vertices of a mesh without faces."""
    import trimesh  # takes a second to import, and only meshes need it

    mesh = _load_mesh(path)
    if isinstance(mesh, trimesh.Scene):
        if not mesh.geometry:
            raise InputError(f"{path} is empty or its header is broken; replace it")
        mesh = mesh.to_geometry()

    vertices = np.asarray(mesh.vertices)
    _check_range(vertices, str(path))
    faces = np.asarray(getattr(mesh, "faces", []))  # a cloud has no such attribute
    if len(faces) == 0:
        return vertices

    if faces.min() < 0 or faces.max() >= len(vertices):
        raise InputError(f"{path} has faces that refer to missing vertices; replace it")
    if not mesh.area > 0:
        raise InputError(f"{path} has {len(faces)} faces without area; replace it")

    points, _ = trimesh.sample.sample_surface(mesh, count, seed=seed)
    return np.asarray(points)


def _load_mesh(path: Path) -> Any:
    """Read a mesh, cloud or scene with trimesh. Other files that it refers to, such as textures, are not read."""
    import trimesh

    suffix = path.suffix.lower()
    if suffix == ".ply":
        vertices, faces = read_ply(_without_mark(path.read_bytes()))
        triangles = trimesh.geometry.triangulate_quads(faces) if faces else None
        return trimesh.Trimesh(vertices, triangles, process=False)

    if suffix == ".stl" and _is_binary_stl(path):
        return trimesh.load(path, process=False)

    # trimesh would guess the encoding with a package that may or may not be installed.
    text = read_text(path).replace("\t", " ")
    with warnings.catch_warnings():
        # At a number that they cannot read, older versions of numpy only warn, and leave out everything after it.
        warnings.filterwarnings("error", message="string or file could not be read")
        mesh = trimesh.load(io.BytesIO(text.encode()), file_type=suffix[1:], process=False)

    checks = {".obj": _check_obj, ".off": _check_off, ".stl": _check_stl}
    checks[suffix](path, text)
    return mesh


def _is_binary_stl(path: Path) -> bool:
    """Return whether the size of the file is what the header of a binary .stl says, 50 bytes for each triangle."""
    with path.open("rb") as file:
        header = file.read(84)
    return len(header) == 84 and path.stat().st_size == 84 + 50 * int.from_bytes(header[80:], "little")


def _check_obj(path: Path, text: str) -> None:
    """Raise an error if a vertex or a face has fewer than three numbers; trimesh would leave it out.

    The format does not store the numbers of vertices and faces, so a file that was cut off between two lines cannot be
    recognized.
    """
    for line in text.replace("\\\n", "").split("\n"):
        words = line.split()
        if words and words[0] in ("v", "f") and len(words) < 4:
            raise InputError(f"{path} has the line {line!r}, which needs at least three numbers; replace it")


def _check_stl(path: Path, text: str) -> None:
    """Raise an error if the text of an .stl file ends inside a solid; trimesh would leave this solid out."""
    lines = [line.split() for line in text.lower().split("\n")]
    count = Counter(words[0] for words in lines if words)
    if count["solid"] != count["endsolid"] or count["vertex"] != 3 * count["facet"]:
        raise InputError(
            f"{path} is cut off or damaged: {count['solid']} lines 'solid', {count['endsolid']} 'endsolid', "
            f"{count['facet']} 'facet' and {count['vertex']} 'vertex'; replace it"
        )


def _check_off(path: Path, text: str) -> None:
    """Raise an error if an .off file has fewer or shorter lines than its header says; trimesh would read it anyway.

    The first word is OFF, with letters before it for what follows the coordinates of a vertex: C for a color, N for a
    normal, ST for a texture. The numbers of vertices and faces follow on the next line, on the same line, or, in some
    files of ModelNet, directly after the word.
    """
    lines = [line.partition("#")[0].split() for line in text.split("\n")]
    lines = [words for words in lines if words]

    after_keyword = re.sub("^[A-Z0-9]*OFF", "", lines[0][0])
    counts = [word for word in (after_keyword, *lines[0][1:]) if word]
    body = lines[1:]
    if not counts:
        counts = body.pop(0)

    vertices, faces = map(int, counts[:2])
    if len(body) < vertices + faces:
        raise InputError(f"{path} is cut off: {len(body)} lines for {vertices} vertices and {faces} faces; replace it")

    for words in body[vertices : vertices + faces]:
        if len(words) <= int(words[0]):
            raise InputError(f"{path} has the face {' '.join(words)!r}, which is cut off; replace it")
