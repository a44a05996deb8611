"""Stop a run whose numbers are no longer finite, and name the module where they overflowed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError

__all__ = ["check_gradients", "check_loss", "check_output"]

_REMEDIES = (
    "Try a lower --model.lr, a longer --model.warmup_epochs, --trainer.gradient_clip_val 1, or "
    "--trainer.precision bf16-mixed instead of 16 bits. Checkpoints saved before are not affected"
)


def check_loss(loss: Tensor, step: int, model: nn.Module, run: Callable[[], Any]) -> None:
    """Raise an error if the training loss is not finite.

    Args:
        loss: training loss, a scalar.
        step: number of optimizer steps so far.
        model: model whose first weight or module with values that are not finite is named.
        run: function that computes the output for the same batch again.

    Raises:
        InputError: if the loss is not finite; the message names the step and the module, and says what to try.
    """
    if not loss.isfinite():
        raise InputError(f"the loss of step {step} is {loss.item()}: {_where(model, run)}. {_REMEDIES}")


def check_gradients(parameters: Iterable[nn.Parameter], step: int) -> None:
    """Raise an error if the gradient is not finite, before the optimizer takes a step along it.

    Raises:
        InputError: if the gradient is not finite; the message names the step, and says what to try.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and not nn.utils.get_total_norm(gradients).isfinite():
        raise InputError(f"the gradient of step {step} is not finite, while the loss still was. {_REMEDIES}")


def check_output(output: Any, model: nn.Module, run: Callable[[], Any]) -> None:
    """Raise an error if the output of an evaluation holds NaN, which metrics would take for the first class.

    Raises:
        InputError: if the output holds NaN; the message names the module, and says what to try.
    """
    if isinstance(output, Tensor) and output.is_floating_point() and output.isnan().any():
        raise InputError(f"the output of the model is not a number: {_where(model, run)}. {_REMEDIES}")


def _where(model: nn.Module, run: Callable[[], Any]) -> str:
    """Say which weight is the first that is not finite, or else which module has the first such output."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is no longer finite"

    overflowed: list[str] = []

    def hook_of(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                overflowed.append(name)

        return hook

    # A module's hook runs after those of the modules inside it, so the innermost module comes first.
    hooks = [module.register_forward_hook(hook_of(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()

    if not overflowed:
        return "every module's output is finite"
    return f"{overflowed[0]} is the first module whose output overflowed"
