"""Kernel sizes of the blocks of both families, from what a user gives for the stages."""

from collections.abc import Sequence

from core.errors import InputError

__all__ = ["KernelSizes", "check_each_stage", "default_kernel_sizes", "per_block"]

KernelSizes = Sequence[int | Sequence[int]]


def default_kernel_sizes(depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The papers' kernel size of every block, for the depth of each stage.

    3 in the first stage, 13 in the others; in the third stage, up to 8 blocks are all 13, up to 18 alternate 13 and 3,
    and deeper ones repeat 13, 3, 3 (UniRepLKNet table 4). That gives every published variant, and a net of one's own
    the layout of the nearest.

    Example:
        >>> default_kernel_sizes((1, 1, 4, 1))
        ((3,), (13,), (13, 13, 13, 13), (13,))
    """
    pattern = (13,) if len(depths) < 3 or depths[2] <= 8 else (13, 3) if depths[2] <= 18 else (13, 3, 3)
    sizes = [(13,) * depth for depth in depths]
    sizes[0] = (3,) * depths[0]
    if len(depths) > 2:
        sizes[2] = tuple(pattern[i % len(pattern)] for i in range(depths[2]))
    return tuple(sizes)


def per_block(kernel_sizes: KernelSizes | None, depths: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """UniRepLKNet's kernel size of every block, from one entry a stage: an int for all its blocks, or one for each.

    Args:
        kernel_sizes: None for :func:`default_kernel_sizes`.
        depths: blocks of each stage.

    Raises:
        InputError: if stages or blocks are not as many.
    """
    if kernel_sizes is None:
        return default_kernel_sizes(depths)
    if not isinstance(kernel_sizes, Sequence) or not all(isinstance(k, int | Sequence) for k in kernel_sizes):
        raise InputError(f"kernel_sizes={kernel_sizes!r}; give one entry a stage, an int or a list of ints")
    if len(kernel_sizes) != len(depths):
        raise InputError(
            f"kernel_sizes describes {len(kernel_sizes)} stages but depths={tuple(depths)} has {len(depths)}; "
            "give one entry for each stage"
        )
    sizes = tuple((k,) * d if isinstance(k, int) else tuple(k) for k, d in zip(kernel_sizes, depths, strict=True))
    for stage, (given, depth) in enumerate(zip(sizes, depths, strict=True)):
        if len(given) != depth:
            raise InputError(
                f"kernel_sizes[{stage}]={given} has {len(given)} entries but depths[{stage}] is {depth}; "
                "give one kernel size for each block, or one int for the whole stage"
            )
    return sizes


def check_each_stage(kernel_sizes: Sequence[int], small_kernel: int | None, depths: Sequence[int]) -> None:
    """Compare RepLKNet's kernel sizes, one a stage, with its depths and its small kernel.

    Raises:
        InputError: if they are not as many as the stages, or smaller than the small kernel.
    """
    given = list(kernel_sizes) if isinstance(kernel_sizes, Sequence) else []
    if len(given) != len(depths) or not all(isinstance(size, int) for size in given):
        raise InputError(
            f"kernel_sizes={kernel_sizes!r} for {len(depths)} stages; give one odd size for each, as (31, 29, 27, 13)"
        )
    if min(kernel_sizes) < (small_kernel or 1):
        raise InputError(
            f"kernel_sizes={tuple(kernel_sizes)} has a kernel smaller than small_kernel={small_kernel}; choose larger "
            "ones, or small_kernel=0 for no small branch"
        )
