"""The Dilated Reparam Block of UniRepLKNet (section 3.2 and figure 2 of arXiv 2311.15599)."""

from collections.abc import Iterator, Sequence
from typing import Literal, cast, get_args

from torch import Tensor, nn

from core.errors import InputError
from core.layers.depthwise import DepthwiseConv2d
from core.layers.training_form import TrainingForm, as_one_convolution, check_form, goes_as_one
from core.reparam import fold_bn, merged_kernel, require_eval, set_folded

__all__ = ["PUBLISHED_BRANCHES", "BranchType", "Branches", "DilatedReparamBlock", "dilated_branches"]

Branches = Sequence[tuple[int, int]]
BranchType = Literal["dilated", "none", "same_kernel", "same_equivalent_kernel"]

PUBLISHED_BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""K to the (k, r) pairs of the official code: kernel size and dilation of each parallel branch."""


def dilated_branches(kernel_size: int, reparam: BranchType = "dilated") -> tuple[tuple[int, int], ...]:
    """The (k, r) pairs that go with a large kernel of size K.

    Published sizes answer from :data:`PUBLISHED_BRANCHES`. Any other odd K above 5 follows the pattern of the table: a
    dense 5x5, the widest kernel of dilation 2, and 3x3 kernels spread to about 1/2, 2/3 and all of the field.

    Args:
        kernel_size: K.
        reparam: 'dilated', or what the paper compares it with (section 3.1): 'none', the same k without dilation
            ('same_kernel'), or dense kernels as wide as the dilated ones ('same_equivalent_kernel').

    Raises:
        InputError: if ``kernel_size`` is even or below 5, or ``reparam`` is none of these.

    Example:
        >>> dilated_branches(13)
        ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
        >>> dilated_branches(13, "same_equivalent_kernel")
        ((5, 1), (13, 1), (7, 1), (9, 1), (11, 1))
        >>> dilated_branches(31)
        ((5, 1), (15, 2), (3, 7), (3, 10), (3, 15))
    """
    if reparam not in get_args(BranchType):
        raise InputError(f"reparam={reparam!r}; expected one of {', '.join(get_args(BranchType))}")
    if kernel_size < 5 or kernel_size % 2 == 0:
        raise InputError(f"no branches for a kernel of size {kernel_size}; use an odd size of 5 or more")
    reach = (kernel_size - 1) // 2
    pattern = ((5, 1), (reach | 1, 2), (3, reach // 2), (3, 2 * reach // 3), (3, reach))
    branches = PUBLISHED_BRANCHES.get(kernel_size, pattern)
    if reparam == "same_kernel":
        return tuple((k, 1) for k, _ in branches)
    if reparam == "same_equivalent_kernel":
        return tuple(((k - 1) * r + 1, 1) for k, r in branches)
    return branches if reparam == "dilated" else ()


def _check_branches(kernel_size: int, branches: Branches) -> None:
    for k, r in branches:
        if k % 2 == 0 or k < 1 or r < 1 or (k - 1) * r + 1 > kernel_size:
            raise InputError(
                f"branch (k={k}, r={r}) does not fit a {kernel_size}x{kernel_size} kernel: "
                f"k must be odd and (k-1)*r+1 = {(k - 1) * r + 1} at most {kernel_size}"
            )


def _branch_names(branches: Branches) -> list[str]:
    """The official k{k}_{r} of each branch; a pair that appears again gets its number as well."""
    before = [branches[:i].count(branch) for i, branch in enumerate(branches)]
    return [f"k{k}_{r}" + (f"_{n + 1}" if n else "") for (k, r), n in zip(branches, before, strict=True)]


class DilatedReparamBlock(nn.Module):
    """A large depthwise kernel with parallel dilated small ones that merge into it after training.

    ::

        x ──┬── DW KxK ────────── BN ──┐
            ├── DW k1xk1, dil r1 ── BN ─┼── sum ──► y        inference form:  x ── DW KxK + bias ──► y
            └── DW k2xk2, dil r2 ── BN ─┘

    Args:
        channels: C.
        kernel_size: K, odd.
        branches: (k, r) pairs with (k-1)r+1 <= K, or a kind of :func:`dilated_branches`.
        inference_mode: build the merged form, a single convolution with bias.
        training_form: how the branches are computed while there are any: 'branches' one by one, 'merged' as one
            convolution, '' as the environment variable LARKIT_TRAINING_FORM says, else 'branches' in training mode and
            'merged' in eval mode. Nothing but time and memory depends on it, see :mod:`core.layers.training_form`.

    Raises:
        InputError: if K is even, a branch does not fit it, or there is no such ``training_form``.
    """

    training_form: TrainingForm = ""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        *,
        branches: Branches | BranchType = "dilated",
        inference_mode: bool = False,
        training_form: TrainingForm = "",
    ) -> None:
        super().__init__()
        check_form(training_form)
        self.training_form = training_form
        if isinstance(branches, str):
            branches = dilated_branches(kernel_size, branches)
        self.branches = tuple((k, r) for k, r in branches)
        _check_branches(kernel_size, self.branches)
        self.lk_origin = DepthwiseConv2d(channels, kernel_size, bias=inference_mode)
        if not inference_mode:
            self.origin_bn = nn.BatchNorm2d(channels)
            for name, (k, r) in zip(_branch_names(self.branches), self.branches, strict=True):
                self.add_module(f"dil_conv_{name}", DepthwiseConv2d(channels, k, dilation=r))
                self.add_module(f"dil_bn_{name}", nn.BatchNorm2d(channels))

    @property
    def merged(self) -> bool:
        """Whether the block is in its inference form."""
        return not hasattr(self, "origin_bn")

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if self.merged:
            return self.lk_origin(x)
        branches = [(self.lk_origin, self.origin_bn), *self._parallel()]
        if goes_as_one(branches, x, self.training_form):
            return as_one_convolution(branches, x)
        y = self.origin_bn(self.lk_origin(x))
        for conv, norm in branches[1:]:
            y = y + norm(conv(x))
        return y

    def _parallel(self) -> Iterator[tuple[DepthwiseConv2d, nn.BatchNorm2d]]:
        for name in _branch_names(self.branches):
            conv, norm = self.get_submodule(f"dil_conv_{name}"), self.get_submodule(f"dil_bn_{name}")
            yield cast(DepthwiseConv2d, conv), cast(nn.BatchNorm2d, norm)

    def reparameterize(self, following: nn.Module | None = None) -> None:
        """Merge all branches, and a norm that follows, into ``lk_origin``, in place; a merged block stays as it is.

        Raises:
            RuntimeError: if the block is in training mode.
        """
        require_eval(self)
        if self.merged:
            return
        weight, bias = merged_kernel([(self.lk_origin, self.origin_bn), *self._parallel()])
        weight = weight[..., :: self.lk_origin.dilation[0], :: self.lk_origin.dilation[1]]  # the others are zeros
        if following is not None:
            weight, bias = fold_bn(weight, bias, following)
        for name in _branch_names(self.branches):
            delattr(self, f"dil_conv_{name}")
            delattr(self, f"dil_bn_{name}")
        del self.origin_bn
        set_folded(self.lk_origin, weight, bias)
