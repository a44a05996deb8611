"""Which implementation computes a depthwise convolution: asked for, measured on this machine, or by rule."""

import os

import torch
from torch import Tensor

from core.errors import InputError
from core.ops.implementations import IMPLEMENTATIONS, Implementation
from core.ops.measure import Convolution, measure
from core.ops.modes import memory_format, onednn
from core.ops.table import Kind, Size, Sizes, fastest, key, key_of, write_table

__all__ = ["ENVIRONMENT", "MEASURE", "choose", "chosen_implementations"]

ENVIRONMENT = "LARKIT_DEPTHWISE"
"""Environment variable that names an implementation for every depthwise convolution."""

MEASURE = "measure"
"""In the place of a name: time all at the first call of each size, and keep the fastest for this machine."""

_chosen: dict[str, str] = {}


def choose(asked: str, kind: Kind, x: Tensor, kernel: Size, dilation: int) -> Implementation:
    """The implementation for a map and a kernel of these sizes.

    Args:
        asked: its name; '' leaves it to :data:`ENVIRONMENT`, then to what ``lightning cost --tune`` measured on this
            machine, then to a rule for the device, dtype and sizes. :data:`MEASURE` measures what is not yet known,
            which takes seconds for each size, and minutes for a network whose Triton kernels have to be compiled.
        kind: the convolution (also the gradient of x), or the gradient of the weight.
        x: (B, C, H, W).
        kernel: (Kh, Kw), odd, with no tap further away than the map reaches.
        dilation: distance between two taps.

    Raises:
        InputError: if there is no implementation of this name.
    """
    last = memory_format(x) is torch.channels_last
    sizes = (x.shape[1], x.shape[2], x.shape[3], *kernel, dilation)
    asked = asked or os.environ.get(ENVIRONMENT, "")
    if asked == MEASURE:
        _measure_once(kind, x, kernel, dilation, last)
        asked = ""
    line = key(kind, x.device, x.dtype, last, sizes, torch.get_num_threads())
    name = asked or fastest().get(line) or _rule(kind, last, sizes, onednn(x))
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"{name!r} is no way to compute a depthwise convolution; expected one of {', '.join(IMPLEMENTATIONS)}, or "
            f"{MEASURE!r} to try them all, as implementation= or in the environment variable {ENVIRONMENT}"
        )
    if not x.is_meta:  # nothing is computed
        _chosen[line] = name
    return IMPLEMENTATIONS[name]


def _measure_once(kind: Kind, x: Tensor, kernel: Size, dilation: int, last: bool) -> None:
    """Add the fastest implementation for these sizes to the table of this machine, unless it is there."""
    line = key_of(kind, x, kernel, dilation)
    if line in fastest() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):  # no clocks in a CUDA graph
        return
    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):  # random maps that change no random number of the run
        measured = measure(Convolution(tuple(x.shape), kernel, dilation, last, kind), x.dtype, str(x.device))
    write_table({line: measured.fastest})


def chosen_implementations() -> dict[str, str]:
    """What was last chosen for each device, kind, dtype, format, channels, map, kernel and dilation."""
    return dict(_chosen)


def _rule(kind: Kind, last: bool, sizes: Sizes, fast: bool) -> str:
    """What was measured to be fastest on x86 CPUs with oneDNN; elsewhere PyTorch's kernel for the format of x.

    oneDNN's kernels for contiguous maps end at a width of 13, those for channels_last maps are slow from 11 to 13.
    Its weight gradient of kernels above 3 x 3 is slower by an order of magnitude than a convolution of x with g.
    """
    own = "channels_last" if last else "contiguous"
    *_, rows, columns, dilation = sizes
    if not fast:
        return own
    if kind == "weight_gradient":
        return "widened" if max(rows, columns) > 3 or dilation > 1 else "channels_last"
    if dilation > 1 or (not last and 5 <= columns <= 13):
        return own
    return "widened" if 11 < columns < 15 else "channels_last"
