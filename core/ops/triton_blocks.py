"""How maps are cut into blocks for the tensor-core kernels of :mod:`core.ops.triton_kernels`, in its letters."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import triton
from torch import Tensor

__all__ = ["Blocks", "choices", "fitting", "geometry"]


def choices(*tiles: tuple[int, int, int]) -> list[triton.Config]:
    """Launch settings (BLOCK_M, warps, stages) to try; Triton's interpreter cannot time them and takes the first."""
    configs = [triton.Config({"BLOCK_M": m}, num_warps=warps, num_stages=stages) for m, warps, stages in tiles]
    return configs[:1] if triton.knobs.runtime.interpret else configs


def fitting(configs: list[triton.Config], sizes: dict[str, Any], **others: Any) -> list[triton.Config]:
    """The settings worth timing: no taller than the product, and few enough pixels a thread to stay in registers.

    Pixels that are loaded one or two at once each need an address of their own: 64 of them spill.
    """
    sizes = {**sizes, **others}
    pixels_in, pixels_out = sizes["Q"] * sizes["WJ"], sizes["R"] * sizes["WN"]
    tallest = max(64, triton.next_power_of_2(sizes["M"])) if sizes["UNIT"] > 1 else 64

    def fits(config: triton.Config) -> bool:
        height, threads = config.kwargs["BLOCK_M"], 32 * config.num_warps
        sums = pixels_in if "M_SPLIT" in sizes else height  # rows of the result: of G in the gradient of the weight
        loaded = height * max(pixels_in, pixels_out if "M_SPLIT" in sizes else 0)
        most = 32 if sizes["UNIT"] <= 2 else 64
        return height <= tallest and loaded <= most * threads and sums * pixels_out <= 64 * threads

    return [config for config in configs if fits(config)]


@dataclass(frozen=True)
class Blocks:
    """How a map is cut for a kernel: blocks of output and input pixels, and the steps between them.

    Attributes:
        rows: R, output rows of a block.
        columns: WN, output columns of a block.
        rows_in: Q, input rows of a block.
        columns_in: WJ, input columns of a block.
        down: blocks of a map, from top to bottom.
        across: blocks of a map, from left to right.
        first_row: d of the first step, in pixels.
        first_column: e of the first step, in pixels; a multiple of 8, which keeps vector loads aligned.
        steps_down: steps with different d.
        steps_across: steps with different e.
    """

    rows: int
    columns: int
    rows_in: int
    columns_in: int
    down: int
    across: int
    first_row: int
    first_column: int
    steps_down: int
    steps_across: int

    @classmethod
    def of(cls, height: int, width: int, reach_down: int, reach_across: int, *, square: bool) -> "Blocks":
        """Blocks of 64 pixels, of 128 on maps wider than 16, as wide as the map where that is possible.

        Larger blocks read each pixel less often and multiply more zeros, which weighs more on small maps. Odd widths
        keep to 64: their pixels are loaded one by one, and the addresses take up the registers.

        Args:
            height: of the map, in pixels.
            width: of the map, in pixels.
            reach_down: distance from the kernel's centre to its last row, in pixels.
            reach_across: distance from the kernel's centre to its last column, in pixels.
            square: blocks of input as large as those of output and at least 64 pixels; else at most 64 pixels.
        """
        columns = min(64, max(8, triton.next_power_of_2(width)))
        rows = max(
            16 // columns, min((64 if width <= 16 or width % 2 else 128) // columns, triton.next_power_of_2(height))
        )
        columns_in = columns if width <= columns else 32  # a narrower block overshoots the kernel's edge by less
        rows_in = max(rows, 64 // columns_in) if square else min(rows, 64 // columns_in)
        down, across = triton.cdiv(height, rows), triton.cdiv(width, columns)
        first_row, last_row = _span(reach_down, rows, down, height)
        first_column, last_column = _span(reach_across, columns, across, width)
        first_column = first_column // 8 * 8
        return cls(
            *(rows, columns, rows_in, columns_in, down, across, first_row, first_column),
            steps_down=triton.cdiv(last_row - first_row + 1, rows_in),
            steps_across=triton.cdiv(last_column - first_column + 1, columns_in),
        )


def _span(reach: int, block: int, blocks: int, size: int) -> tuple[int, int]:
    """First and last offset from a block's first pixel to a pixel that the kernel and the map hold."""
    return max(-reach, -(blocks - 1) * block), min(block - 1 + reach, size - 1)


def geometry(x: Tensor, kernel: tuple[int, int], dilation: int, *, square: bool) -> tuple[Blocks, dict[str, Any]]:
    """The blocks of a map for a kernel (KH, KW), and the arguments of the Triton kernels that follow from them."""
    batch, channels, height, width = x.shape
    blocks, arguments = _geometry(batch, channels, height, width, kernel, dilation, square)
    return blocks, dict(arguments)


@lru_cache(maxsize=1024)
def _geometry(
    batch: int, channels: int, height: int, width: int, kernel: tuple[int, int], dilation: int, square: bool
) -> tuple[Blocks, dict[str, Any]]:
    blocks = Blocks.of(height, width, *(dilation * (size // 2) for size in kernel), square=square)
    unit = math.gcd(width, 8)
    arguments = {
        "M": batch * blocks.down * blocks.across,
        "MAGNITUDE": (batch * blocks.down * blocks.across).bit_length(),
        **{"C": channels, "H": height, "W_UNITS": width // unit, "UNIT": unit},
        **{"DOWN": blocks.down, "ACROSS": blocks.across},
        **{"D": blocks.first_row, "E_UNITS": blocks.first_column // 8, "STEPS_ACROSS": blocks.steps_across},
        **{"KH": kernel[0], "KW": kernel[1], "DIL": dilation},
        **{"R": blocks.rows, "WN": blocks.columns, "Q": blocks.rows_in, "WJ": blocks.columns_in},
        "UPCAST": triton.knobs.runtime.interpret,  # whose product of two bfloat16 multiplies their bits as integers
    }
    return blocks, arguments
