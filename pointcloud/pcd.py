"""Read .pcd files, the format of the Point Cloud Library, as text, binary or compressed binary."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from core.errors import InputError

__all__ = ["read_pcd"]


@dataclass(frozen=True)
class _PCDHeader:
    """The header of a .pcd file.

    Attributes:
        fields: names of the fields of a point.
        counts: how many numbers each field has.
        types: type of the numbers in each field of a binary file: F for float, I for integer, U for unsigned integer.
        sizes: size of a number in each field of a binary file, in bytes.
        points: number of points.
        encoding: how the points are stored: 'ascii', 'binary' or 'binary_compressed'.
        length: size of the header, in bytes.
    """

    fields: list[str]
    counts: list[int]
    types: list[str]
    sizes: list[int]
    points: int
    encoding: str
    length: int

    def dtypes(self) -> list[np.dtype]:
        """Return the dtype of each field of a point in a binary file."""
        layout = zip(self.types, self.sizes, self.counts, strict=True)
        return [np.dtype((f"<{kind.lower()}{size}", (count,))) for kind, size, count in layout]


def read_pcd(path: Path, content: bytes) -> np.ndarray:
    """Read the fields x, y and z. Points with NaN, which mark missing measurements, are left out.

    Args:
        path: path of the file, for messages.
        content: content of the file.

    Returns:
        Finite coordinates (N, 3), float64 for text and in the stored dtype otherwise.

    Raises:
        InputError: if the header is broken, or there are fewer points than it says.
    """
    header = _parse_header(path, content)
    body = content[header.length :]

    if header.encoding == "ascii":
        points = _text_points(body, header)
    elif header.encoding == "binary":
        points = _binary_points(body, header)
    elif header.encoding == "binary_compressed":
        points = _compressed_points(path, body, header)
    else:
        raise InputError(f"{path} is {header.encoding}; convert it to ascii, binary or binary_compressed")

    if len(points) < header.points:
        raise InputError(f"{path} is cut off after {len(points)} of {header.points} points; replace it")
    return points[np.isfinite(points).all(axis=1)]


def _parse_header(path: Path, content: bytes) -> _PCDHeader:
    """Parse the header, whose lines have a name and its values, up to the line DATA."""
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
    if values["DATA"] != ["ascii"]:
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


def _text_points(body: bytes, header: _PCDHeader) -> np.ndarray:
    """Read lines of numbers, one for each point."""
    # A field with several numbers takes several columns.
    first_columns = np.cumsum([0, *header.counts])
    columns = [first_columns[header.fields.index(axis)] for axis in "xyz"]
    return np.loadtxt(io.BytesIO(body), dtype=np.float64, ndmin=2)[:, columns]


def _binary_points(body: bytes, header: _PCDHeader) -> np.ndarray:
    """Read points that are stored one after the other."""
    # Fields are named by their index, since a file may use a name twice, such as '_' for padding.
    dtype = np.dtype([(str(i), field) for i, field in enumerate(header.dtypes())])

    complete = min(header.points, len(body) // dtype.itemsize)
    rows = np.frombuffer(body, dtype, complete)
    return np.stack([rows[str(header.fields.index(axis))][:, 0] for axis in "xyz"], axis=1)


def _compressed_points(path: Path, body: bytes, header: _PCDHeader) -> np.ndarray:
    """Read compressed points: the compressed and the uncompressed size (uint32), and the compressed table.

    The table holds the first field of all points, then the second one, and so on. Padding, in fields named '_', is not
    stored.
    """
    stored = [(name, dtype) for name, dtype in zip(header.fields, header.dtypes(), strict=True) if name != "_"]
    size = header.points * sum(dtype.itemsize for _, dtype in stored)
    if len(body) < 8:
        raise InputError(f"{path} is cut off after its header; replace it")

    packed_size, unpacked_size = np.frombuffer(body, "<u4", 2).tolist()
    if len(body) - 8 < packed_size:
        raise InputError(f"{path} is cut off: {len(body) - 8} of {packed_size} compressed bytes; replace it")
    if unpacked_size != size:
        raise InputError(f"{path} holds {unpacked_size} bytes of points, but its header says {size}; replace it")

    table = _unpack_lzf(body[8 : 8 + packed_size], size)
    columns: dict[str, np.ndarray] = {}
    start = 0
    for name, dtype in stored:
        columns[name] = np.frombuffer(table, dtype, header.points, start)[:, 0]
        start += header.points * dtype.itemsize
    return np.stack([columns[axis] for axis in "xyz"], axis=1)


def _unpack_lzf(packed: bytes, size: int) -> bytes:
    """Decompress the format of LibLZF, which is a sequence of literals and references.

    A control byte below 32 begins a literal: it is the number of bytes that follow and are copied, minus one. Any other
    control byte begins a reference to bytes that are already unpacked. Its upper three bits are the length minus two;
    if all three are set, the next byte is added to it. Its lower five bits and one more byte are the distance minus
    one.

    Raises:
        ValueError: if the result does not have ``size`` bytes.
    """
    unpacked = bytearray()
    place = 0
    try:
        while place < len(packed) and len(unpacked) <= size:
            control = packed[place]
            place += 1
            if control < 32:
                unpacked += packed[place : place + control + 1]
                place += control + 1
                continue

            length = control >> 5
            if length == 7:
                length += packed[place]
                place += 1
            length += 2
            distance = ((control & 31) << 8) + packed[place] + 1
            place += 1
            if distance > len(unpacked):
                raise ValueError("its compressed bytes are damaged")

            # A reference may be longer than its distance: then the bytes repeat.
            start = len(unpacked) - distance
            source = unpacked[start : start + length]
            unpacked += (source * (length // len(source) + 1))[:length]
    except IndexError:
        raise ValueError("its compressed bytes are cut off") from None

    if len(unpacked) != size or place != len(packed):
        raise ValueError(f"its compressed bytes are damaged: they do not hold {size} bytes")
    return bytes(unpacked)
