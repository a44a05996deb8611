"""A warning for runs that do not learn, with the likely reason and what to type."""

import math
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from core.backbones import UniRepLKNet

__all__ = ["LearningWatch"]

_FEW_STEPS = 200
"""A net that starts from random weights learns next to nothing in fewer steps."""

_FALL = 0.03
"""Share by which the training loss of a run that learns has fallen after a third of its epochs, or more."""

_ONE_CLASS = 0.95
"""Share of the predictions from which on a class counts as the only one."""

_FRESH_START = "start from published weights with --model.pretrained true"
_WIDER_WEIGHTS = "try --model.backbone_args.weight_init kaiming"
_OTHER_RATE = "try another learning rate (--model.lr {lower:g} or {higher:g})"


class LearningWatch(Callback):
    """Warns if a run does not learn.

    Before the first step it warns of a run from random weights that is planned with too few steps. From a third of the
    epochs on it warns, once, of a training loss that does not fall, and of a classifier whose validation accuracy is no
    better than that of naming the most frequent class for everything.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.has_warned = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run is too short."""
        steps = trainer.estimated_stepping_batches
        if steps < _FEW_STEPS and not _starts_from_weights(pl_module) and not getattr(trainer, "fast_dev_run", False):
            data = getattr(trainer, "datamodule", None)
            option = "epoch_steps" if hasattr(data, "epoch_steps") else "min_epoch_steps"
            _warn(
                f"the run has {steps} optimizer steps, and a net with random weights needs some hundreds to learn: "
                f"raise --data.{option} or --trainer.max_epochs, or {_FRESH_START}"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look at the training loss and the validation metrics of the epoch."""
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None:
            self.losses.append(float(loss))

        epochs = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else math.inf
        looked_at = trainer.current_epoch + 1 >= max(2, epochs / 3) and len(self.losses) > 1
        if not looked_at or self.has_warned or getattr(trainer, "fast_dev_run", False):
            return

        reason = self._reason(pl_module)
        if reason is not None:
            self.has_warned = True
            _warn(f"after {trainer.current_epoch + 1} epochs {reason}")

    def _reason(self, task: Any) -> str | None:
        """Return what is wrong and what to try, or None if the run learns."""
        tasks = dict(getattr(task, "members", {"": task}).items())  # a joint task has several classifiers
        counts = {name: getattr(getattr(part, "confusion", None), "latest", None) for name, part in tasks.items()}
        known = {name: counts_KK for name, counts_KK in counts.items() if counts_KK is not None}
        at_chance = [name for name, counts_KK in known.items() if _is_at_chance(counts_KK)]
        if known and not at_chance:
            return None

        first, last = self.losses[0], self.losses[-1]
        rates = _OTHER_RATE.format(lower=task.lr / 5, higher=task.lr * 5)
        if last > first - _FALL * abs(first) and not _starts_from_weights(task):
            wider = f"{_WIDER_WEIGHTS}, " if _starts_nearly_linear(task) else ""
            return (
                f"the training loss has hardly fallen ({first:.3g} in the first epoch, now {last:.3g}); {rates}, "
                f"{wider}or {_FRESH_START}"
            )
        if not at_chance:
            return None

        name = at_chance[0]
        reason = _reason_at_chance(known[name], tasks[name].class_names, rates)
        return f"{reason} (member {name!r})" if name else reason

    def state_dict(self) -> dict[str, Any]:
        """Return the losses so far, for a resumed run."""
        return {"losses": self.losses, "has_warned": self.has_warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the losses of the run that is resumed."""
        self.losses = list(state_dict["losses"])
        self.has_warned = state_dict["has_warned"]


def _is_at_chance(counts_KK: Tensor) -> bool:
    """Return whether an accuracy is at most that of naming the most frequent class, within one standard error.

    Args:
        counts_KK: confusion matrix, with the true classes in the rows and the predicted ones in the columns.
    """
    total = int(counts_KK.sum())
    if total == 0:
        return False

    accuracy = counts_KK.diagonal().sum().item() / total
    chance = counts_KK.sum(dim=1).max().item() / total
    return accuracy <= chance + math.sqrt(chance * (1 - chance) / total)


def _reason_at_chance(counts_KK: Tensor, class_names: list[str], rates: str) -> str:
    """Return why a classifier may be no better than chance, and what to try.

    Args:
        counts_KK: confusion matrix, with the true classes in the rows and the predicted ones in the columns.
        class_names: names of the K classes.
        rates: advice on the learning rate.
    """
    total = int(counts_KK.sum())
    predicted_K = counts_KK.sum(dim=0)
    if predicted_K.max().item() > _ONE_CLASS * total:
        name = class_names[int(predicted_K.argmax())]
        return f"nearly all validation samples are taken for {name!r}; {rates}, or {_FRESH_START}"

    accuracy = counts_KK.diagonal().sum().item() / total
    return (
        f"the training loss falls, and the validation accuracy of {accuracy:.2f} is that of chance: the net learns "
        f"the training samples by heart. Give more samples, or {_FRESH_START}; examples.png shows whether the "
        "labels are right"
    )


def _warn(text: str) -> None:
    rank_zero_warn(f"This run may not learn: {text}")


def _starts_nearly_linear(task: Any) -> bool:
    """Return whether a UniRepLKNet has the published initial weights, with which a narrow net is nearly linear."""
    backbone_args = task.hparams.get("backbone_args") or {}
    return isinstance(getattr(task, "backbone", None), UniRepLKNet) and "weight_init" not in backbone_args


def _starts_from_weights(task: Any) -> bool:
    return bool(task.hparams.get("pretrained") or task.hparams.get("weights"))
