"""What surrounds an operator: the format of its map, and who else follows the operators while they run."""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

__all__ = [
    "autocast_dtype",
    "eager",
    "in_fast_format",
    "memory_format",
    "observed",
    "onednn",
    "transformed",
    "written_down",
]

_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # asked once: torch.compile would break the graph at the question


def written_down() -> bool:
    """Whether the operators go into a file for another machine or program."""
    return torch.compiler.is_exporting() or torch.jit.is_tracing()


def transformed() -> bool:
    """Whether vmap, jvp or another transform of ``torch.func`` follows the operators."""
    return forward_ad._current_level >= 0 or bool(torch._C._are_functorch_transforms_active())


def eager() -> bool:
    """Whether operators run one by one, differentiated in reverse if at all: no compiler, tracer, vmap or jvp."""
    return not (transformed() or torch.compiler.is_compiling() or is_fx_symbolic_tracing() or written_down())


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast computes convolutions on the device of x; None where it is off."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if on else None


def observed(*tensors: Tensor | None) -> bool:
    """Whether somebody sees each operator that runs: a mode that counts or records them, or tensors of another kind."""
    others = any(type(t) not in (Tensor, nn.Parameter) for t in tensors if t is not None)
    return others or torch._C._len_torch_dispatch_stack() > 0


def onednn(x: Tensor) -> bool:
    """Whether oneDNN computes convolutions of x: on a CPU, in float32 or bfloat16."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return _HAS_ONEDNN and bool(torch.backends.mkldnn.enabled)


def in_fast_format(x: Tensor) -> Tensor:
    """A map in channels_last where oneDNN computes, since all layers are faster so; elsewhere as it is."""
    return x.contiguous(memory_format=torch.channels_last) if onednn(x) and not (written_down() or transformed()) else x


def memory_format(x: Tensor) -> torch.memory_format:
    """The format of the result for x: channels_last also for a slice of a tensor that is."""
    last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format
