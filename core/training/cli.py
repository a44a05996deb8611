"""Lightning's CLI with run folders, checkpoints by name, and refusals instead of silent surprises."""

import shlex
import shutil
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning import LightningDataModule, LightningModule, Trainer
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_only

from core.errors import InputError, MissingError
from core.torch_files import read_torch_file
from core.training.checkpoint_io import RunCheckpoint, WholeCheckpointIO
from core.training.loggers import run_loggers
from core.training.pictures import LearningCurves
from core.training.predictions import PredictionWriter
from core.training.run_folder import how_to_go_on, newest_checkpoint, only_writer, run_folder, run_version
from core.training.signals import EndedAtOnce
from core.training.task import Task
from core.training.trainer import ExportingTrainer

__all__ = ["LarKitCLI"]


class LarKitCLI(LightningCLI):
    """Subclass mode for task and data, versioned run folders, best and last checkpoints, the verb export."""

    _started: Path | None = None  # the run folder, if this command makes it
    _last: RunCheckpoint | None = None  # what keeps the last checkpoint

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
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
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
            stored = self._stored(path)
            self._check_class(path, stored)
            differing = self._differing(stored)
            if differing and verb == "fit":
                raise InputError(
                    f"--ckpt_path continues a run as it was, but {'; '.join(differing)}. Leave that out, or start a "
                    f"new run from its weights: --model.weights {path}"
                )
            if differing:
                rank_zero_info(f"The checkpoint decides about the model: {'; '.join(differing)}")
            self._take_over(stored)
            args = self.settings.model.init_args  # the checkpoint replaces what these would load first
            args.weights, args.pretrained = None, False
        elif verb not in ("fit", "stats") and not self._has_weights():
            raise InputError(
                f"{verb} would use random weights. Type: {shlex.join(['lightning', *sys.argv[1:]])} --ckpt_path best"
            )

    def _check_class(self, path: str, stored: dict[str, Any]) -> None:
        """Build what the configuration names and nothing else: a file must not choose what code runs."""
        given, known = self.settings.model.class_path, str(stored.get("_class_path", self.settings.model.class_path))
        if known.partition(".")[0] != given.partition(".")[0] or known.rpartition(".")[2] != given.rpartition(".")[2]:
            raise InputError(
                f"{path} holds a {known}, the configuration a {given}; give the configuration that it was trained with"
            )
        args = self.settings.model.get("init_args", {})
        for key in _import(given).runs_files:
            if key in stored and stored[key] != args.get(key):
                raise InputError(
                    f"{path} names the Python file {stored[key]!r}, which would be run, and the configuration "
                    f"{args.get(key)!r}; look into it, and if you trust it add --model.{key} {stored[key]}"
                )

    def _take_over(self, stored: dict[str, Any]) -> None:
        """Let the model settings of a checkpoint replace those of the command."""
        args = {key: value for key, value in stored.items() if not key.startswith("_")}
        model = {"class_path": self.settings.model.class_path, "dict_kwargs": args}
        self.config = self.parser.parse_object({self.config.subcommand: {"model": model}}, self.config)

    def _has_weights(self) -> bool:
        args = self.settings.model.get("init_args", Namespace())
        return bool(args.get("weights") or args.get("pretrained"))

    def _stored(self, path: str) -> dict[str, Any]:
        """The model settings that a checkpoint was trained with."""
        try:
            checkpoint = read_torch_file(Path(path))
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
        unlogged = self.settings.trainer.get("logger") not in (None, True) or self.settings.trainer.get("barebones")
        if unlogged or self.subcommand in ("export", "stats"):
            return super().instantiate_trainer(**kwargs)
        path = self.settings.get("ckpt_path") if self.subcommand == "fit" else None
        folder = self._runs() / run_version(self._runs(), Path(path) if path else None)
        kwargs["logger"] = run_loggers(self._runs(), folder.name)
        self._started = folder if not folder.exists() or not any(folder.iterdir()) else None
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except BaseException:
            self._take_away()
            raise
        if run_folder(trainer) is None:  # a trial run writes nothing
            self._take_away()
        return trainer

    def _run_subcommand(self, subcommand: str) -> None:
        """Run the verb; if the input turns out unusable, take away the run folder that has nothing in it yet."""
        folder, began = run_folder(self.trainer) if subcommand == "fit" else None, time.time()
        lock = only_writer(folder) if folder is not None and _is_first() else nullcontext()
        try:
            with lock:
                super()._run_subcommand(subcommand)
        except BaseException as error:
            last, written = self._last_file(folder), folder is not None and (folder / "checkpoints").exists()
            saved = written or (last is not None and last.is_file() and last.stat().st_mtime >= began)
            refused = isinstance(error, InputError)
            if refused and not saved:
                self._take_away()
            if subcommand == "fit" and _is_first() and (saved or not refused):
                error.add_note(how_to_go_on(last, sys.argv[1:], began))
            raise

    def _last_file(self, folder: Path | None) -> Path | None:
        """Where the last checkpoint is or would be; without the logger of this command not in the run folder."""
        place = self._last.dirpath if self._last is not None else None
        if place is None:
            return None if folder is None else folder / "checkpoints" / "last.ckpt"
        return Path(place) / "last.ckpt"

    def _take_away(self) -> None:
        """Delete the run folder, if this command has made it."""
        if self._started and _is_first():
            shutil.rmtree(self._started, ignore_errors=True)

    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        bare = config.get("barebones")  # Lightning's word for a run that writes and logs nothing, to measure its speed
        if bare:
            config = config | {"log_every_n_steps": 0}  # a default of this command, which Lightning would refuse
            callbacks = [c for c in callbacks if not isinstance(c, LearningCurves)]
        if self.subcommand != "fit" or bare or config.get("enable_checkpointing") is False:
            callbacks = [c for c in callbacks if not isinstance(c, ModelCheckpoint)]
        else:  # ModelCheckpoint's own save_last waits for the next best one
            self._last = RunCheckpoint(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)
            callbacks = [*callbacks, self._last]
        try:
            trainer = super()._instantiate_trainer(config, [*callbacks, EndedAtOnce()])
        except ValueError as error:
            if bare:  # and another option that contradicts it, which Lightning names
                raise InputError(str(error)) from error
            raise
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:  # else a plugin or the strategy has its own
            trainer.strategy.checkpoint_io = WholeCheckpointIO()
        return trainer


class _ConfigInRunFolder(SaveConfigCallback):
    """Saves the configuration beside the logs, and nowhere where there are none."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if run_folder(trainer) is not None:
            super().setup(trainer, pl_module, stage)


def _is_first() -> bool:
    """Whether this is the first of several processes of a run, also before they know of each other."""
    return getattr(rank_zero_only, "rank", 0) == 0


def _import(class_path: str) -> Any:
    module, name = class_path.rsplit(".", 1)
    return getattr(import_module(module), name)
