"""Windows of equal length that cover a recording or a video."""

__all__ = ["window_starts"]


def window_starts(length: int, size: int, step: int) -> list[int]:
    """Return where windows begin that cover a sequence: one every ``step``, and a last one that ends where it ends.

    Args:
        length: length of the sequence.
        size: length of a window; a sequence that is not longer has one window.
        step: distance of two windows, 1 or more.

    Example:
        >>> window_starts(10, 4, 4), window_starts(3, 4, 2)
        ([0, 4, 6], [0])
    """
    if length <= size:
        return [0]
    return [*range(0, length - size, step), length - size]
