"""Which implementation computes a depthwise convolution: asked for, measured on this machine, or by rule."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from core.ops.implementations import IMPLEMENTATIONS, Implementation
from core.ops.modes import memory_format, onednn
from core.writing import whole_file

__all__ = [
    "ENVIRONMENT",
    "MEASURE",
    "Kind",
    "Size",
    "choose",
    "chosen_implementations",
    "device_name",
    "forget",
    "key_of",
    "table_file",
    "write_table",
]

Kind = Literal["forward", "weight_gradient"]
Size = tuple[int, int]

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
    key, name = _resolved(asked, kind, x.device, x.dtype, last, sizes, torch.get_num_threads(), onednn(x))
    _chosen[key] = name
    return IMPLEMENTATIONS[name]


def _measure_once(kind: Kind, x: Tensor, kernel: Size, dilation: int, last: bool) -> None:
    """Add the fastest implementation for these sizes to the table of this machine, unless it is there."""
    key = key_of(kind, x, kernel, dilation)
    if key in _table() or (x.is_cuda and torch.cuda.is_current_stream_capturing()):  # no clocks in a CUDA graph
        return
    from core.ops.tune import Convolution, measure  # which measures what is chosen here

    devices = [x.device] if x.is_cuda else []
    with torch.random.fork_rng(devices):  # random maps that change no random number of the run
        measured = measure(Convolution(tuple(x.shape), kernel, dilation, last, kind), x.dtype, str(x.device))
    write_table({key: measured.fastest})


Sizes = tuple[int, int, int, int, int, int]
"""C, H, W, Kh, Kw, r."""


@lru_cache(maxsize=4096)
def _resolved(
    asked: str,
    kind: Kind,
    device: torch.device,
    dtype: torch.dtype,
    last: bool,
    sizes: Sizes,
    threads: int,
    fast: bool,
) -> tuple[str, str]:
    """The key of these sizes, and the name of what computes them."""
    key = _key(kind, device, dtype, last, sizes, threads)
    name = asked or _table().get(key) or _rule(kind, last, sizes, fast)
    if name not in IMPLEMENTATIONS:
        raise InputError(
            f"{name!r} is no way to compute a depthwise convolution; expected one of {', '.join(IMPLEMENTATIONS)}, or "
            f"{MEASURE!r} to try them all, as implementation= or in the environment variable {ENVIRONMENT}"
        )
    return key, name


def key_of(kind: Kind, x: Tensor, kernel: Size, dilation: int) -> str:
    """The line under which a measurement is kept: all that it depends on, but for the batch size."""
    reach = [2 * min(side // 2, (size - 1) // dilation) + 1 for side, size in zip(kernel, x.shape[2:], strict=True)]
    last = memory_format(x) is torch.channels_last
    sizes = (x.shape[1], x.shape[2], x.shape[3], reach[0], reach[1], dilation)
    return _key(kind, x.device, x.dtype, last, sizes, torch.get_num_threads())


def chosen_implementations() -> dict[str, str]:
    """What was last chosen for each device, kind, dtype, format, channels, map, kernel and dilation."""
    return dict(_chosen)


def _key(kind: Kind, device: torch.device, dtype: torch.dtype, last: bool, sizes: Sizes, threads: int) -> str:
    channels, height, width, rows, columns, dilation = sizes
    layout = "channels_last" if last else "contiguous"
    what = f"{kind}, {str(dtype).removeprefix('torch.')}, {layout}"
    return f"{device_name(device, threads)}, {what}, C={channels}, {height}x{width}, K={rows}x{columns}, r={dilation}"


def device_name(device: torch.device, threads: int) -> str:
    """The GPU's name, or the CPU's instruction set and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {threads} threads"


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


def table_file() -> Path:
    """Where measurements of this machine are kept: ``depthwise.json`` in ``$LARKIT_CACHE`` or ``~/.cache/larkit``."""
    return Path(os.environ.get("LARKIT_CACHE", "~/.cache/larkit")).expanduser() / "depthwise.json"


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    """Measurements of this machine with this version of PyTorch; none where there are none."""
    try:
        content = json.loads(table_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{table_file()} cannot be read: {error}; delete it and tune again") from error
    if not isinstance(content, dict) or content.get("torch") != torch.__version__:
        return {}
    return {key: name for key, name in content.get("fastest", {}).items() if name in IMPLEMENTATIONS}


def write_table(fastest: dict[str, str]) -> Path:
    """Add measurements to those of this machine, which are used from then on."""
    path = table_file()
    content = {"torch": torch.__version__, "fastest": {**_table(), **fastest}}
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    forget()
    return path


def forget() -> None:
    """Read the table again and choose anew at the next convolution."""
    _table.cache_clear()
    _resolved.cache_clear()
