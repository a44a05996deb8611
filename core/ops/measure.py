"""Time every implementation of a depthwise convolution on this machine, for one size of map and kernel."""

import math
import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from time import perf_counter

import torch
from torch import Tensor

from core.errors import InputError
from core.ops.implementations import IMPLEMENTATIONS
from core.ops.table import Kind, key_of
from core.ops.taps import near_kernel

__all__ = ["Convolution", "Measurement", "measure"]


@dataclass(frozen=True)
class Convolution:
    """A depthwise convolution that a model calls: map (B, C, H, W), kernel (Kh, Kw), r, and the format of the map."""

    shape: tuple[int, ...]
    kernel: tuple[int, int]
    dilation: int
    last: bool
    kind: Kind


@dataclass(frozen=True)
class Measurement:
    """Median milliseconds of each implementation that agrees with float64, and the key under which it is kept."""

    key: str
    milliseconds: dict[str, float]

    @property
    def fastest(self) -> str:
        """Name of the fastest implementation."""
        return min(self.milliseconds, key=self.milliseconds.__getitem__)


def measure(convolution: Convolution, dtype: torch.dtype, device: str, *, rounds: int = 5) -> Measurement:
    """Time all implementations in turn on random maps.

    Args:
        convolution: what is computed.
        dtype: of the map and the kernel.
        device: where.
        rounds: turns of each; one that takes ten times as long as another is not timed again.
    """
    layout = torch.channels_last if convolution.last else torch.contiguous_format
    x, g = (torch.randn(convolution.shape, device=device).to(dtype, memory_format=layout) for _ in range(2))
    convolution = replace(convolution, kernel=near_kernel(x, convolution.kernel, convolution.dilation))
    weight = torch.randn(convolution.shape[1], 1, *convolution.kernel, device=device).to(dtype)
    exact = _run("fft", convolution, x.double(), g.double(), weight.double())  # PyTorch's are very slow in float64
    times: dict[str, list[float]] = {}
    for turn in range(rounds):
        best = min((min(seconds) for seconds in times.values()), default=math.inf)
        for name in IMPLEMENTATIONS:
            run = partial(_run, name, convolution, x, g, weight)
            known = _agrees(name, run, convolution, exact) if turn == 0 else name in times
            if known and min(times.get(name, [0.0])) < 10 * best:
                try:
                    times.setdefault(name, []).append(_gpu_seconds(run, x) if x.is_cuda else _seconds(run))
                except RuntimeError as error:  # a GPU refuses to record it
                    _leave_out(name, error)
                    del times[name]
    medians = {name: 1000 * statistics.median(seconds) for name, seconds in times.items()}
    return Measurement(key_of(convolution.kind, x, convolution.kernel, convolution.dilation), medians)


def _run(name: str, convolution: Convolution, x: Tensor, g: Tensor, weight: Tensor) -> Tensor:
    chosen = IMPLEMENTATIONS[name]
    if convolution.kind == "forward":
        return chosen.forward(x, weight, None, convolution.dilation)
    return chosen.weight_gradient(x, g, convolution.kernel, convolution.dilation)


def _agrees(name: str, run: Callable[[], Tensor], convolution: Convolution, exact: Tensor) -> bool:
    """Whether an implementation runs here, and gives the values of float64 to a few steps of the dtype."""
    try:
        got = run()
    except InputError:  # not for this device or size
        return False
    except Exception as error:  # a compiler's or driver's, of any type: the others may still be measured
        _leave_out(name, error)
        return False
    batch, _, height, width = convolution.shape
    terms = math.prod(convolution.kernel) if convolution.kind == "forward" else batch * height * width
    limit = torch.finfo(got.dtype).eps * max(4.0, math.sqrt(terms))
    return bool((got.double() - exact).abs().max() <= limit * exact.abs().max())


def _leave_out(name: str, error: Exception) -> None:
    warnings.warn(f"implementation {name!r} failed and is not measured: {error}", stacklevel=2)


def _seconds(run: Callable[[], Tensor]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


_CALLS = 20


def _gpu_seconds(run: Callable[[], Tensor], x: Tensor) -> float:
    """Of one call among several in a CUDA graph: a network keeps its GPU busy, which does not wait for Python."""
    with torch.cuda.device_of(x):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            for _ in range(_CALLS):
                run()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        graph.replay()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1000 / _CALLS
