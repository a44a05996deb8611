"""Stopping a run whose numbers are no longer finite, with the module where they overflowed."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from core.errors import InputError

__all__ = ["check_gradients", "check_loss", "check_output"]

_REMEDIES = (
    "Try a lower --model.lr, a longer --model.warmup_epochs, --trainer.gradient_clip_val 1, or "
    "--trainer.precision bf16-mixed in the place of 16 bits. Checkpoints saved before are not affected"
)


def check_loss(loss: Tensor, step: int, model: nn.Module, run: Callable[[], Any]) -> None:
    """Stop if the training loss is not finite.

    Args:
        loss: a scalar.
        step: the number of optimizer steps so far, for the message.
        model: the message names its first weight or module that is not finite.
        run: a function that computes the output for the same batch again.

    Raises:
        InputError: naming the step, the module and what to try.
    """
    if not loss.isfinite():
        raise InputError(f"the loss of step {step} is {loss.item()}: {_where(model, run)}. {_REMEDIES}")


def check_gradients(parameters: Iterable[nn.Parameter], step: int) -> None:
    """Stop before the optimizer takes a step along a gradient that is not finite.

    Raises:
        InputError: naming the step and what to try.
    """
    gradients = [p.grad for p in parameters if p.grad is not None]
    if gradients and not nn.utils.get_total_norm(gradients).isfinite():
        raise InputError(f"the gradient of step {step} is not finite, while the loss still was. {_REMEDIES}")


def check_output(output: Any, model: nn.Module, run: Callable[[], Any]) -> None:
    """Stop an evaluation whose output is not a number: its metrics would be those of the first class.

    Raises:
        InputError: naming the module and what to try.
    """
    if isinstance(output, Tensor) and output.is_floating_point() and output.isnan().any():
        raise InputError(f"the output of the model is not a number: {_where(model, run)}. {_REMEDIES}")


def _where(model: nn.Module, run: Callable[[], Any]) -> str:
    """The first weight, or else the first module, that is not finite."""
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return f"the weight {name} is no longer finite"

    found: list[str] = []

    def watch(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def note(module: nn.Module, inputs: Any, output: Any) -> None:
            if not found and isinstance(output, Tensor) and output.is_floating_point() and not output.isfinite().all():
                found.append(name)

        return note

    hooks = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()

    return f"{found[0]} is the first module whose output overflowed" if found else "every module's output is finite"
