"""Read .ply files of clouds or meshes, which hold text or binary numbers.

Other meshes are read by trimesh. Of this format, trimesh would read a cut-off text as a smaller cloud, round the
numbers of a text to float32, and refuse binary files with both triangles and quads, which Blender writes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["read_ply"]

_TYPES = {
    "char": "i1",
    "uchar": "u1",
    "short": "i2",
    "ushort": "u2",
    "int": "i4",
    "uint": "u4",
    "float": "f4",
    "double": "f8",
    "int8": "i1",
    "uint8": "u1",
    "int16": "i2",
    "uint16": "u2",
    "int32": "i4",
    "uint32": "u4",
    "int64": "i8",
    "uint64": "u8",
    "float32": "f4",
    "float64": "f8",
}
"""Names of number types in a header, and NumPy's names for them without the byte order."""

_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
"""Names of formats in a header, and NumPy's character for their byte order."""


@dataclass(frozen=True)
class _Property:
    """A number or a list of numbers in each row of an element.

    Attributes:
        name: name of the property, such as x or vertex_indices.
        dtype: dtype of the number, or of the numbers in the list.
        length_dtype: dtype of the length of a list, which is stored before the list; None for a single number.
    """

    name: str
    dtype: np.dtype
    length_dtype: np.dtype | None = None


@dataclass(frozen=True)
class _Element:
    """A table in the file, such as the table of vertices.

    Attributes:
        name: name of the element, such as vertex or face.
        count: number of rows.
        properties: properties of each row.
    """

    name: str
    count: int
    properties: list[_Property]

    @property
    def has_lists(self) -> bool:
        """Whether rows may differ in length."""
        return any(prop.length_dtype is not None for prop in self.properties)


_Columns = dict[str, Sequence[Sequence[float]] | np.ndarray]
"""Values of each property by row: (rows, 1) for numbers, and (rows, length) or rows of any length for lists."""


def read_ply(content: bytes) -> tuple[np.ndarray, list[list[int]]]:
    """Read vertices and faces.

    Args:
        content: content of a .ply file.

    Returns:
        Vertices (N, 3), float64 for text and in the stored dtype otherwise, and the indices of the vertices of each
        face, which may be a triangle, a quad or a larger polygon. A cloud has no faces.

    Raises:
        ValueError: if this is not a .ply file, it is cut off, or it holds more or less than its header says.
    """
    encoding, elements, start = _parse_header(content)
    body = content[start:]
    if encoding == "ascii":
        tables = _read_text(body.decode("ascii", errors="replace"), elements)
    else:
        tables = _read_binary(body, elements)

    vertex = tables.get("vertex", {})
    if not {"x", "y", "z"} <= vertex.keys():
        raise ValueError("its header has no element vertex with the properties x, y and z")

    vertices = np.concatenate([np.asarray(vertex[axis]) for axis in "xyz"], axis=1)
    return vertices, _faces(elements, tables)


def _faces(elements: list[_Element], tables: dict[str, _Columns]) -> list[list[int]]:
    """Return the vertex indices of each face, from the property with a usual name or else from the first list."""
    face = next((element for element in elements if element.name == "face"), None)
    if face is None or face.count == 0:
        return []

    lists = [prop.name for prop in face.properties if prop.length_dtype is not None]
    known = [name for name in lists if name in ("vertex_indices", "vertex_index")]
    if not lists:
        raise ValueError("its header has faces without a list of vertices")
    return [[int(index) for index in row] for row in tables["face"][(known or lists)[0]]]


def _parse_header(content: bytes) -> tuple[str, list[_Element], int]:
    """Parse the lines up to end_header.

    Returns:
        The format, the elements in the order of their tables, and the position of the first table.
    """
    first = re.match(rb"ply[ \t]*(\r\n|\r|\n)", content)
    if first is None:
        raise ValueError("its first line is not 'ply'")

    newline = rb"\r" if first[1] == b"\r" else rb"\r?\n"
    last = re.search(rb"[\r\n]end_header[ \t]*" + newline, content)
    if last is None:
        raise ValueError("its header has no line end_header")

    encoding = ""
    elements: list[_Element] = []
    for line in content[: last.start()].decode("ascii", errors="replace").splitlines():
        match line.split():
            case ["format", word, *_]:
                encoding = word
            case ["element", name, count]:
                elements.append(_Element(name, int(count), []))
            case ["property", "list", length_type, type_, name] if elements:
                prop = _Property(name, _dtype(type_, encoding), _dtype(length_type, encoding))
                elements[-1].properties.append(prop)
            case ["property", type_, name] if elements:
                elements[-1].properties.append(_Property(name, _dtype(type_, encoding)))
            case ["element" | "property", *_]:
                raise ValueError(f"its header has the line {line!r}, which is not valid there")

    if encoding not in _FORMATS:
        raise ValueError(f"its format is {encoding!r}; expected {', '.join(_FORMATS)}")
    if any(element.count < 0 for element in elements):
        raise ValueError("its header has a negative number of rows")
    return encoding, elements, last.end()


def _dtype(word: str, encoding: str) -> np.dtype:
    """Return the dtype of a number type in a header."""
    if word not in _TYPES:
        raise ValueError(f"its header has numbers of type {word}; expected {', '.join(_TYPES)}")
    return np.dtype(_FORMATS.get(encoding, "") + _TYPES[word])


# Text: a row is a line


def _read_text(text: str, elements: list[_Element]) -> dict[str, _Columns]:
    """Read the tables of all elements."""
    lines = [line for line in text.splitlines() if line.strip()]
    expected = sum(element.count for element in elements)
    if len(lines) != expected:
        state = "is cut off" if len(lines) < expected else "is damaged"
        parts = ", ".join(f"{element.count} of {element.name}" for element in elements)
        raise ValueError(f"it {state}: it has {len(lines)} lines, but its header says {expected} ({parts})")

    tables: dict[str, _Columns] = {}
    start = 0
    for element in elements:
        rows = lines[start : start + element.count]
        tables[element.name] = _text_lists(rows, element) if element.has_lists else _text_numbers(rows, element)
        start += element.count
    return tables


def _text_numbers(lines: list[str], element: _Element) -> _Columns:
    """Read the table of an element without lists."""
    if not lines:
        return {prop.name: np.zeros((0, 1)) for prop in element.properties}

    rows = np.loadtxt(lines, dtype=np.float64, ndmin=2, comments=None)
    if rows.shape[1] != len(element.properties):
        raise ValueError(f"a line of {element.name} has {rows.shape[1]} numbers; expected {len(element.properties)}")
    return {prop.name: rows[:, i : i + 1] for i, prop in enumerate(element.properties)}


def _text_lists(lines: list[str], element: _Element) -> _Columns:
    """Read the table of an element with lists."""
    values: dict[str, list[list[float]]] = {prop.name: [] for prop in element.properties}
    for line in lines:
        words = line.split()
        position = 0
        for prop in element.properties:
            length = 1
            if prop.length_dtype is not None and position < len(words):
                length = int(words[position])
                position += 1
            values[prop.name].append([float(word) for word in words[position : position + length]])
            position += length

        if position != len(words):
            raise ValueError(f"the line {line!r} of {element.name} has {len(words)} numbers; expected {position}")
    return dict(values)


# Binary: rows follow each other without a gap


def _read_binary(body: bytes, elements: list[_Element]) -> dict[str, _Columns]:
    """Read the tables of all elements."""
    tables: dict[str, _Columns] = {}
    start = 0
    for element in elements:
        tables[element.name], start = _binary_rows(body, start, element)

    if start != len(body):
        raise ValueError(f"it holds {len(body) - start} bytes more than its header says")
    return tables


def _binary_rows(body: bytes, start: int, element: _Element) -> tuple[_Columns, int]:
    """Read the table of an element, which begins at the position ``start``.

    Returns:
        The values, and the position after the table.
    """
    if element.count == 0 or not element.properties:
        return {prop.name: np.zeros((0, 1)) for prop in element.properties}, start

    # Usually, all lists are as long as those of the first row, and the table is one array.
    first, _ = _binary_row(body, start, element)
    lengths = [len(values) for values in first]
    fields: list[tuple[str, np.dtype, tuple[int, ...]]] = []
    for i, (prop, length) in enumerate(zip(element.properties, lengths, strict=True)):
        if prop.length_dtype is not None:
            fields.append((f"length {i}", prop.length_dtype, ()))
        fields.append((f"{i}", prop.dtype, (length,)))
    row_dtype = np.dtype(fields)

    end = start + element.count * row_dtype.itemsize
    if end <= len(body):
        rows = np.frombuffer(body, row_dtype, element.count, start)
        has_length = [i for i, prop in enumerate(element.properties) if prop.length_dtype is not None]
        if all((rows[f"length {i}"] == lengths[i]).all() for i in has_length):
            return {prop.name: rows[f"{i}"] for i, prop in enumerate(element.properties)}, end
    elif not element.has_lists:
        raise _cut_off((len(body) - start) // row_dtype.itemsize, element)

    # Otherwise, it is read row by row.
    values: dict[str, list[Any]] = {prop.name: [] for prop in element.properties}
    for index in range(element.count):
        row, start = _binary_row(body, start, element, index)
        for prop, numbers in zip(element.properties, row, strict=True):
            values[prop.name].append(numbers)
    return dict(values), start


def _binary_row(body: bytes, start: int, element: _Element, index: int = 0) -> tuple[list[np.ndarray], int]:
    """Read the row with an index, which begins at the position ``start``, and return the position after it too."""
    row = []
    for prop in element.properties:
        length = 1
        if prop.length_dtype is not None:
            length = int(_numbers(body, start, prop.length_dtype, 1, element, index)[0])
            start += prop.length_dtype.itemsize
        row.append(_numbers(body, start, prop.dtype, length, element, index))
        start += length * prop.dtype.itemsize
    return row, start


def _numbers(body: bytes, start: int, dtype: np.dtype, count: int, element: _Element, index: int) -> np.ndarray:
    """Read numbers of a row, and raise an error if the file ends before them."""
    if count < 0:
        raise ValueError(f"row {index} of {element.name} has a list of {count} numbers")
    if start + count * dtype.itemsize > len(body):
        raise _cut_off(index, element)
    return np.frombuffer(body, dtype, count, start)


def _cut_off(found: int, element: _Element) -> ValueError:
    """Return the error for a file that ends inside the table of an element."""
    return ValueError(f"it is cut off after {found} of {element.count} rows of {element.name}")
