"""Lightning's CLI with run folders, checkpoints by name, and refusals instead of silent surprises."""

import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info

from core.errors import InputError, MissingError
from core.training.pictures import LearningCurves
from core.training.predictions import PredictionWriter
from core.training.run_folder import newest_checkpoint, run_folder, run_loggers, run_version
from core.training.task import Task
from core.training.trainer import ExportingTrainer

__all__ = ["LarKitCLI"]


class LarKitCLI(LightningCLI):
    """Subclass mode for task and data, versioned run folders, best and last checkpoints, the verb export."""

    _started: Path | None = None  # the run folder, if this command makes it

    @classmethod
    def run_verb(cls, args: ArgsType) -> "LarKitCLI":
        """Parse ``args``, build everything, run the verb."""
        return cls(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            trainer_class=ExportingTrainer,
            trainer_defaults={"callbacks": [LearningCurves(), PredictionWriter()], "log_every_n_steps": 10},
            seed_everything_default=0,
            save_config_callback=_ConfigInRunFolder,
            save_config_kwargs={"overwrite": True},
            auto_configure_optimizers=False,
            parser_kwargs={"exit_on_error": False, **{verb: {"exit_on_error": False} for verb in cls.subcommands()}},
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Lightning's verbs, export and stats."""
        return {**LightningCLI.subcommands(), **{verb: {"model", "datamodule"} for verb in ("export", "stats")}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the checkpoint callback; what it monitors comes from the task."""
        parser.add_lightning_class_args(ModelCheckpoint, "checkpoint")
        defaults = {"filename": "best", "save_on_train_epoch_end": True, "enable_version_counter": False}
        parser.set_defaults({f"checkpoint.{key}": value for key, value in defaults.items()})

    @property
    def settings(self) -> Namespace:
        """The configuration of the verb."""
        settings: Namespace = self.config[self.config.subcommand]
        return settings

    def _parse_ckpt_path(self) -> None:
        """Find the checkpoint; resume only what it was, and evaluate what it is."""
        settings, verb = self.settings, self.config.subcommand
        path = settings.get("ckpt_path")
        if path in ("best", "last"):
            path = settings.ckpt_path = str(newest_checkpoint(self._runs(), path))
        elif path and not Path(path).is_file():
            raise MissingError(f"there is no checkpoint {path}; give a file, 'best' or 'last'")
        if path:
            differing = self._differing(self._stored(path))
            if differing and verb == "fit":
                raise InputError(
                    f"--ckpt_path continues a run as it was, but {'; '.join(differing)}. Leave that out, or start a "
                    f"new run from its weights: --model.weights {path}"
                )
            if differing:
                rank_zero_info(f"The checkpoint decides about the model: {'; '.join(differing)}")
            super()._parse_ckpt_path()
            args = self.settings.model.init_args  # the checkpoint replaces what these would load first
            args.weights, args.pretrained = None, False
        elif verb not in ("fit", "stats") and not self._has_weights():
            raise InputError(
                f"{verb} would use random weights. Type: {shlex.join(['lightning', *sys.argv[1:]])} --ckpt_path best"
            )

    def _has_weights(self) -> bool:
        args = self.settings.model.get("init_args", Namespace())
        return bool(args.get("weights") or args.get("pretrained"))

    def _stored(self, path: str) -> dict[str, Any]:
        """The model settings that a checkpoint was trained with."""
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            stored: dict[str, Any] = checkpoint["hyper_parameters"]
        except Exception as error:
            raise InputError(
                f"{path} is not a checkpoint of this command ({error}); for weights alone use --model.weights"
            ) from error
        callbacks = self.settings.trainer.get("callbacks") or []
        averaged = any("EMA" in str(callback.get("class_path")) for callback in callbacks)
        if self.config.subcommand == "fit" and "current_model_state" in checkpoint and not averaged:
            raise InputError("the run was trained with an average of its weights; add --trainer.callbacks+ EMA")
        return stored

    def _differing(self, stored: dict[str, Any]) -> list[str]:
        """Model settings that this command gives otherwise than the checkpoint was trained with."""
        given = self.settings.model.as_dict().get("init_args", {})
        return [
            f"{key} is {given[key]!r} here and {stored[key]!r} in the checkpoint"
            for key in given
            if key in stored and given[key] != stored[key] and key not in ("pretrained", "weights")
        ]

    def _runs(self) -> Path:
        """Folder of all runs of this task."""
        root = self.settings.trainer.get("default_root_dir") or Path.cwd()
        return Path(root) / "lightning_logs" / self.settings.model.class_path.rsplit(".", 1)[-1]

    def before_instantiate_classes(self) -> None:
        """Let the task choose what the best checkpoint is, unless the user has."""
        if self.settings.checkpoint.monitor is None:
            task = _import(self.settings.model.class_path)
            chosen = task.chosen_by(self.settings.model.get("init_args", {}))
            self.settings.checkpoint.monitor, self.settings.checkpoint.mode = chosen

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give the run its own folder with a CSV and a TensorBoard log."""
        if self.settings.trainer.get("logger") in (None, True) and self.subcommand not in ("export", "stats"):
            path = self.settings.get("ckpt_path") if self.subcommand == "fit" else None
            version = run_version(self._runs(), Path(path) if path else None)
            kwargs["logger"] = run_loggers(self._runs(), version)
            self._started = self._runs() / version if not (self._runs() / version).exists() else None
        return super().instantiate_trainer(**kwargs)

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; if the input turns out unusable, take away the run folder that has nothing in it yet."""
        try:
            super()._run_subcommand(subcommand)
        except InputError:
            if self._started and self.trainer.is_global_zero and not (self._started / "checkpoints").exists():
                shutil.rmtree(self._started, ignore_errors=True)
            raise

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        if self.subcommand != "fit" or config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        else:  # ModelCheckpoint's own save_last waits for the next best one
            last = ModelCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
            callbacks = [*callbacks, last]
        return super()._instantiate_trainer(config, callbacks)


class _ConfigInRunFolder(SaveConfigCallback):
    """Saves the configuration beside the logs, and nowhere where there are none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if run_folder(trainer) is not None:
            super().setup(trainer, pl_module, stage)


def _import(class_path: str) -> Any:
    module, name = class_path.rsplit(".", 1)
    return getattr(import_module(module), name)
