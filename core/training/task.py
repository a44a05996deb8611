"""The base task: a backbone by name, the papers' optimizer and schedule, and a run that can be resumed exactly."""

import math
import os
import random
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from lightning import LightningModule
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from lightning_utilities.core.rank_zero import rank_zero_warn
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.lr_scheduler import LambdaLR

from core.backbones.build import build_backbone, input_channels
from core.checkpoints import load_weights
from core.errors import InputError
from core.training.data import DataModule
from core.training.drawing import finish_figures
from core.training.optim import check_recipe, parameter_groups, run_factor

__all__ = ["Exported", "Task"]


class Exported(NamedTuple):
    """What the verb ``export`` writes: a module of one input, some input (B, ...), and the file's name.

    ``fixed_size`` keeps height and width as they are in ``images``.
    """

    name: str
    module: nn.Module
    images: Tensor
    fixed_size: bool = False


class Task(LightningModule):
    """Backbone, optimizer and schedule; subclasses add the head, the loss, the metrics and the pictures.

    Optimization follows the papers (UniRepLKNet appendix A): AdamW, no decay on norms and biases, layer-wise decay of
    the learning rate when fine-tuning, linear warm-up and a cosine, both by step.

    Args:
        backbone: name of a LarKit or timm model, or a module.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        pretrained: load the published weights of the named model.
        weights: file or Hub name for :func:`core.load_weights`, instead of the published ones; weights alone, a
            checkpoint's class names come with ``--ckpt_path``.
        opt: name of a timm optimizer.
        lr: learning rate after the warm-up; for ``lr_batch`` samples a step if that is given.
        lr_batch: scale ``lr`` by the real global batch (samples x processes x accumulation) over this number.
        min_lr: learning rate at the end of the cosine, scaled like ``lr``.
        weight_decay: decay of parameters with two dimensions and more.
        layer_decay: factor on the learning rate for each layer group further from the output.
        warmup_epochs: length of the linear warm-up.
        opt_args: further arguments of the optimizer, such as ``betas``.
        decay_rate: instead of the cosine, multiply the learning rate by this after each epoch from ``decay_start`` on.
        decay_start: last epoch, counted from 1, at the full rate when ``decay_rate`` is given.
        norm_eval: keep batch norms in eval mode while training, for small batches; their weights still train.

    Raises:
        InputError: if a name is unknown or a number out of range.
    """

    monitor: ClassVar[str] = "val_loss"
    """The metric that chooses the best checkpoint."""
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    runs_files: ClassVar[tuple[str, ...]] = ()
    """Arguments that name files with code, which are run; a checkpoint of somebody else must not choose them."""
    pipeline_tag: ClassVar[str | None] = None
    """What the Hugging Face Hub calls this kind of task, if it has a name for it."""

    def __init__(
        self,
        backbone: str | nn.Module,
        *,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        opt: str = "adamw",
        lr: float = 1e-3,
        lr_batch: int | None = None,
        min_lr: float = 1e-6,
        weight_decay: float = 0.05,
        layer_decay: float = 1.0,
        warmup_epochs: float = 0.0,
        opt_args: dict[str, Any] | None = None,
        decay_rate: float | None = None,
        decay_start: int = 1,
        norm_eval: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["backbone"] if isinstance(backbone, nn.Module) else None)
        check_recipe(opt, lr, min_lr, weight_decay, layer_decay, warmup_epochs)
        if decay_rate is not None and (not 0 < decay_rate <= 1 or decay_start < 1):
            raise InputError(
                f"decay_rate={decay_rate}, decay_start={decay_start}; a factor in (0, 1], an epoch from 1 on"
            )
        if isinstance(backbone, str):
            backbone = build_backbone(backbone, pretrained=pretrained and weights is None, **(backbone_args or {}))
        elif backbone_args or pretrained:
            raise InputError("backbone_args and pretrained go with the name of a model; a module is already built")
        self.attach(backbone)
        self.opt, self.lr, self.lr_batch, self.min_lr = opt, lr, lr_batch, min_lr
        self.weight_decay, self.layer_decay, self.warmup_epochs = weight_decay, layer_decay, warmup_epochs
        self.opt_args, self.decay_rate, self.decay_start = opt_args or {}, decay_rate, decay_start
        self.norm_eval = norm_eval
        self._planned: tuple[float, ...] | None = None
        if weights is not None:
            load_weights(self, weights)
        self.train()  # Lightning keeps the modes that it finds

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Self:
        """As Lightning's, without loading first what the checkpoint replaces: published or other weights."""
        return super().load_from_checkpoint(checkpoint_path, *args, **{"pretrained": False, "weights": None} | kwargs)

    def attach(self, backbone: nn.Module) -> None:
        """Keep the backbone; a task that holds it inside another model keeps that one."""
        self.backbone = backbone

    def to_export(self, batch: Any) -> Exported:
        """What the verb ``export`` writes, with up to four samples of a validation batch to compare on.

        Raises:
            InputError: if this task has nothing to export.
        """
        if not isinstance(batch[0], Tensor):
            raise InputError(f"{type(self).__name__} takes several inputs; only models of one input are exported")
        return Exported(str(self.hparams.get("backbone", type(self.backbone).__name__)), self.backbone, batch[0][:4])

    def example_shape(self) -> tuple[int, ...] | None:
        """Shape of some input that the model takes, for a program that shows how; None if that is no single tensor."""
        return (2, input_channels(self.backbone), 64, 64)

    @classmethod
    def chosen_by(cls, args: Mapping[str, Any]) -> tuple[str, str]:
        """Metric and mode ('min' or 'max') that choose the best checkpoint of a task with these arguments."""
        return cls.monitor, cls.monitor_mode

    def train(self, mode: bool = True) -> "Task":
        """Set train or eval mode; with ``norm_eval`` batch norms stay in eval mode."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self

    def on_train_epoch_start(self) -> None:
        """Seed drop path, mixup and augmentation by (seed, epoch, process), so that resuming repeats them."""
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            epoch_seed = hash((int(seed), self.current_epoch, self.global_rank)) % 2**32
            random.seed(epoch_seed)
            np.random.seed(epoch_seed)
            torch.manual_seed(epoch_seed)

    def on_fit_start(self) -> None:
        """Plan anew if a callback such as ``LearningRateFinder`` has changed the rate or the number of steps."""
        if self._planned is not None and self._planned != self._plan():
            self.trainer.strategy.setup_optimizers(self.trainer)

    def on_fit_end(self) -> None:
        """Draw the pictures that wait."""
        finish_figures(self.trainer)

    def log_training(self, loss: Tensor, samples: int) -> None:
        """Log ``train_loss``, a mean over the epoch, and ``lr`` of the step."""
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True, batch_size=samples, sync_dist=True)
        self.log("lr", self.trainer.optimizers[0].param_groups[-1]["lr"], on_step=True, on_epoch=False)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer with its groups, and warm-up plus cosine stepped with it.

        Raises:
            InputError: if the optimizer does not take ``opt_args``, or a callback would add parameters to it later.
        """
        self._refuse_unfreezing()
        scale, self._planned = self._batch_scale(), self._plan()
        groups = parameter_groups(
            self, lr=self.lr * scale, weight_decay=self.weight_decay, layer_decay=self.layer_decay
        )
        try:
            optimizer = create_optimizer_v2(groups, opt=self.opt, lr=self.lr * scale, weight_decay=0.0, **self.opt_args)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.opt} does not take opt_args={self.opt_args}: {error}; lr and weight_decay are set elsewhere"
            ) from error
        schedule = LambdaLR(optimizer, self._factor())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _refuse_unfreezing(self) -> None:
        for callback in getattr(self.trainer, "callbacks", ()):
            if isinstance(callback, BaseFinetuning):
                raise InputError(
                    f"{type(callback).__name__} adds parameters to the optimizer while it trains, and the schedule has "
                    "no rates for them. Freeze by requires_grad_(False) before fit, and train everything in a second "
                    "run from those weights (--model.weights FILE), or give --model.layer_decay"
                )

    def _factor(self) -> Callable[[int], float]:
        """The schedule over this run: no function made here, so that what holds it can be pickled."""
        steps, epoch = self._steps()
        if math.isinf(epoch) and (self.warmup_epochs or self.decay_rate is not None):
            raise InputError(
                "warmup_epochs and decay_rate count epochs, and the training data do not say how long one is; set "
                "--trainer.limit_train_batches, or leave them out and set --trainer.max_steps"
            )
        if math.isinf(steps) and self.decay_rate is None:
            known = "max_epochs" if math.isfinite(epoch) else "limit_train_batches (the data do not say their length)"
            raise InputError(f"the cosine needs an end; set --trainer.max_steps or --trainer.{known}")
        warmup, total = (round(self.warmup_epochs * epoch) if self.warmup_epochs else 0), int(min(steps, sys.maxsize))
        if warmup > steps >= 0 and not getattr(self.trainer, "fast_dev_run", False):
            rank_zero_warn(
                f"The warm-up of {self.warmup_epochs} epochs takes {warmup} steps and the run {total}: it ends before "
                "the learning rate has reached lr. Train longer, or give fewer warmup_epochs"
            )
        per_epoch = int(max(1, min(epoch, sys.maxsize)))
        decay = partial(run_factor, epoch=per_epoch, decay_rate=self.decay_rate, decay_start=self.decay_start)
        return partial(decay, warmup=warmup, total=total, floor=min(1.0, self.min_lr / self.lr))

    def _plan(self) -> tuple[float, ...]:
        """What optimizer and schedule are made of and a callback may change before training starts."""
        return self.lr, self._batch_scale(), *self._steps()

    def _steps(self) -> tuple[float, float]:
        """Optimizer steps of the run and of an epoch; infinite where nothing says how many."""
        trainer = self.trainer
        # where only steps are limited, Lightning answers without having counted the batches of an epoch
        trainer.fit_loop.setup_data()
        batches = trainer.num_training_batches if trainer.limit_train_batches else 0
        if math.isinf(batches):  # Lightning gives -1 for a run of such data without max_steps
            return (trainer.max_steps if trainer.max_steps != -1 else math.inf), math.inf
        return trainer.estimated_stepping_batches, math.ceil(batches / trainer.accumulate_grad_batches)

    def _batch_scale(self) -> float:
        if self.lr_batch is None:
            return 1.0
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, DataModule):
            raise InputError("lr_batch needs a core.training.DataModule to know the batch size; scale lr yourself")
        return data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches / self.lr_batch
