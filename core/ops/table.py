"""The table of what was measured to be fastest on this machine, and under which key each size is kept."""

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from core.errors import InputError
from core.ops.implementations import IMPLEMENTATIONS
from core.ops.modes import memory_format
from core.ops.taps import near_kernel
from core.writing import whole_file

__all__ = [
    "Kind",
    "Size",
    "Sizes",
    "device_name",
    "fastest",
    "forget",
    "key",
    "key_of",
    "table_file",
    "write_table",
]

Kind = Literal["forward", "weight_gradient"]
Size = tuple[int, int]
Sizes = tuple[int, int, int, int, int, int]
"""C, H, W, Kh, Kw, r."""


def key_of(kind: Kind, x: Tensor, kernel: Size, dilation: int) -> str:
    """The line under which a measurement is kept: all that it depends on, but for the batch size."""
    last = memory_format(x) is torch.channels_last
    sizes = (x.shape[1], x.shape[2], x.shape[3], *near_kernel(x, kernel, dilation), dilation)
    return key(kind, x.device, x.dtype, last, sizes, torch.get_num_threads())


@lru_cache(maxsize=4096)  # asked for at every convolution
def key(kind: Kind, device: torch.device, dtype: torch.dtype, last: bool, sizes: Sizes, threads: int) -> str:
    """As :func:`key_of`, of sizes that are known."""
    channels, height, width, rows, columns, dilation = sizes
    layout = "channels_last" if last else "contiguous"
    what = f"{kind}, {str(dtype).removeprefix('torch.')}, {layout}"
    return f"{device_name(device, threads)}, {what}, C={channels}, {height}x{width}, K={rows}x{columns}, r={dilation}"


def device_name(device: torch.device, threads: int) -> str:
    """The GPU's name, or the CPU's instruction set and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()} {threads} threads"


def table_file() -> Path:
    """Where measurements of this machine are kept: ``depthwise.json`` in ``$LARKIT_CACHE`` or ``~/.cache/larkit``."""
    return Path(os.environ.get("LARKIT_CACHE", "~/.cache/larkit")).expanduser() / "depthwise.json"


@lru_cache(maxsize=1)
def fastest() -> dict[str, str]:
    """Measurements of this machine with this version of PyTorch; none where there are none.

    Raises:
        InputError: if the table cannot be read.
    """
    try:
        content = json.loads(table_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise InputError(f"{table_file()} cannot be read: {error}; delete it and tune again") from error
    if not isinstance(content, dict) or content.get("torch") != torch.__version__:
        return {}
    return {key: name for key, name in content.get("fastest", {}).items() if name in IMPLEMENTATIONS}


def write_table(measured: dict[str, str]) -> Path:
    """Add measurements to those of this machine, which are used from then on."""
    path = table_file()
    content = {"torch": torch.__version__, "fastest": {**fastest(), **measured}}
    with whole_file(path) as unfinished:
        unfinished.write_text(json.dumps(content, indent=1), encoding="utf-8")
    forget()
    return path


def forget() -> None:
    """Read the table again at the next convolution."""
    fastest.cache_clear()
