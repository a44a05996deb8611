"""One backbone for several modalities: each member is a task of its own, and most of their layers are the same."""

import copy
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import Context
from functools import partial
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import Metric

from core.backbones.base import LargeKernelNet
from core.data.module import attached_data_module
from core.data.spec import DataSpec
from core.errors import InputError, listed
from core.export import Exported
from core.io.checkpoint import is_of_split
from core.io.weights import load_weights, read_state_dict
from core.layers.feature_map import FeatureMap
from core.training.finite import check_loss
from core.training.report import Figures, Section, picture_sections
from core.training.task import EvaluationSplit, Task, explain_batch_norm_error
from multimodal.data import JointDataModule, JointSpec, build_part
from multimodal.sharing import Norms, Share, SharedLayers, shared_stages

__all__ = ["JointTask"]

_SET_HERE = set(inspect.signature(Task.__init__).parameters) - {"self", "backbone_args"}
"""Arguments of all tasks, which are given once for all members."""

_RECIPE = _SET_HERE - {"backbone", "spec", "pretrained", "weights", "freeze"}
"""Those of the optimizer, which a member keeps when it is taken out."""

_REFUSED_BACKBONE_ARGS = {"checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"}
"""Arguments of a member's backbone that would load other weights than the joint run does."""

_SMALLEST_UNIT = 1e-6


class JointTask(Task):
    """Trains one backbone on several modalities at once.

    ::

        images ── map ── stem ──┐            ┌── head ── digits
        sounds ── map ── stem ──┼── stages ──┼── head ── words        the stages are the same layers for all members
        series ── map ── stem ──┘            └── head ── forecast

    Each member is a task of one modality, with its own feature map, stem and head (the norm after the last map and the
    classifier, or whatever the task has in their place). Augmentation, losses, metrics, pictures and predictions are
    those of that task; its metrics get the name of the member, as in ``image/val_acc``.

    Each step takes a batch of every member, see :class:`multimodal.JointDataModule`, and its loss is

        L = 1/M sum_m w_m L_m / U_m,

    where U_m is the loss of member m in the first step of the run, so that losses of any unit begin with equal weight.
    U_m is stored in checkpoints.

    The best checkpoint is the one with the smallest ``val_error``: the mean over the members of what chooses the
    checkpoint of each, with one minus the value for a metric that grows, such as accuracy. Errors of forecasts are in
    standard deviations.

    ``task(name, *raw)`` returns the output of one member, and ``task.member(name)`` a copy of it as a task of its own.

    Args:
        backbone: name of a UniRepLKNet or RepLKNet.
        members: task of each member by name: ``class_path``, such as ``vision.ImageClassifier``, and ``init_args``, its
            arguments except those of the optimizer, which are given here.
        spec: specifications of the members' data; the command passes them.
        share: 'all' stages, 'none', or a list of stages counted from 0. A stage is shared with the strided layers
            before it. The stem, the norm after the last map and the classifier are never shared.
        norms: 'shared', or 'per_member' for batch norms of each member in the shared stages. In both cases each member
            folds into single kernels.
        loss_weights: w_m by name, by default 1.
        backbone_args: arguments for ``timm.create_model``, for all members.
        pretrained: load the published weights of the named model into the backbone of each member; their stems adapt
            to the number of channels.
        weights: a checkpoint of a joint run, or weights of a backbone. From a joint checkpoint, members of the same
            name are loaded completely, and new members get the shared layers.
        freeze: 'backbone' trains the stems and heads alone, with all shared layers in eval mode.
        kwargs: the other arguments of :class:`core.training.Task`.

    Attributes:
        members: the tasks by name.
        backbone: the shared layers.

    Raises:
        InputError: if the members cannot share a backbone, a member has no data, or an argument cannot be used.
    """

    monitor: ClassVar[str] = "val_error"
    monitor_mode: ClassVar[Literal["min", "max"]] = "min"
    can_export: ClassVar[bool] = False
    spec_class: ClassVar[type[DataSpec]] = JointSpec
    holds: ClassVar[tuple[str, ...]] = ("members",)

    backbone: SharedLayers
    spec: JointSpec

    def __init__(
        self,
        backbone: str,
        members: dict[str, dict[str, Any]],
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        share: Share = "all",
        norms: Norms = "per_member",
        loss_weights: dict[str, float] | None = None,
        backbone_args: dict[str, Any] | None = None,
        pretrained: bool = False,
        weights: str | None = None,
        freeze: Literal["backbone"] | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(backbone, str):
            raise InputError("a joint task builds a backbone for each member; give the name of a model")
        if norms not in ("shared", "per_member"):
            raise InputError(f"norms={norms!r}; expected 'shared' or 'per_member'")
        _check_names(members)
        for name, weight in (loss_weights or {}).items():
            if name not in members or weight <= 0:
                raise InputError(f"loss_weights has {name}: {weight}; give weights above 0 for {listed(members)}")

        # The base class builds the members from these.
        self.share: Share = share
        self.norms: Norms = norms
        self.member_settings = members
        self.loss_weights = loss_weights or {}
        super().__init__(
            backbone,
            spec=spec,
            backbone_args=backbone_args,
            pretrained=pretrained,
            weights=weights,
            freeze=freeze,
            **kwargs,
        )

    # The members

    def create_backbone(self, name: str, backbone_args: dict[str, Any], *, pretrained: bool) -> SharedLayers:
        """Build the members, each with a backbone of this name, and return the layers that these share."""
        specs = self.spec.members
        if specs:
            missing = [member for member in self.member_settings if member not in specs]
            surplus = [member for member in specs if member not in self.member_settings]
            if missing:
                raise InputError(f"member {missing[0]!r} has no data; add it to --data.members, or leave it out here")
            if surplus:
                known = listed(self.member_settings)
                raise InputError(f"the data have {surplus[0]!r}, which is no member of the model; it has {known}")

        tasks: dict[str, Task] = {}
        for member, settings in self.member_settings.items():
            own = dict((settings.get("init_args") if isinstance(settings, Mapping) else None) or {})
            own_args = own.pop("backbone_args", None) or {}
            refused = sorted(_REFUSED_BACKBONE_ARGS & set(own_args))
            if refused:
                raise InputError(f"member {member!r} sets backbone_args {listed(refused)}; leave it out")
            args = {option: getattr(self, option) for option in _RECIPE}
            args |= {"backbone": name, "backbone_args": {**backbone_args, **own_args}, "pretrained": pretrained}
            args["spec"] = specs.get(member)

            # In a context of their own, Lightning does not take the hyperparameters of this task for the member's.
            settings = {**settings, "init_args": own} if isinstance(settings, Mapping) else settings
            tasks[member] = Context().run(build_part, member, settings, Task, args, tuple(_SET_HERE))

        backbones = {member: task.backbone for member, task in tasks.items()}
        first = next(iter(backbones.values()))
        stages = len(first.stages) if isinstance(first, LargeKernelNet) else 0
        shared = SharedLayers(backbones, shared_stages(self.share, stages), self.norms)

        # Registered before the members, so that shared parameters are named after the backbone.
        self.backbone = shared
        self.members = nn.ModuleDict(tasks)
        self.units = _Units(list(tasks))
        self._logged: dict[str, dict[str, Any]] = {}
        self.register_state_dict_post_hook(_store_shared_once)
        self.register_load_state_dict_pre_hook(_give_shared_to_members)
        return shared

    def tasks(self) -> dict[str, Task]:
        """Return the members by name."""
        return {name: cast(Task, task) for name, task in self.members.items()}

    def member(self, name: str) -> Task:
        """Return a copy of a member as a task of its own, which shares nothing with this one.

        Raises:
            InputError: if there is no such member.
        """
        if name not in self.members:
            raise InputError(f"there is no member {name!r}; the members are {listed(self.members)}")
        return copy.deepcopy(self.tasks()[name])

    def parts(self) -> dict[str, nn.Module]:
        """Return the shared layers and the members, which the command lists with their parameters."""
        return {"shared": self.backbone, **self.tasks()}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load the tensors of a joint checkpoint; shared layers stay shared, also with ``assign=True``."""
        result = super().load_state_dict(state_dict, strict=strict, assign=assign)
        self.backbone.tie()
        return result

    def load(self, source: str) -> None:
        """Load a joint checkpoint, or weights of a backbone into the backbone of every member."""
        state_dict = read_state_dict(source)
        if not any(name.startswith("members.") for name in state_dict):
            for task in self.tasks().values():
                load_weights(task.backbone, source)
            return

        own = self.state_dict()
        known = [name for name in self.members if any(key.startswith(f"members.{name}.") for key in state_dict)]
        parts = ("backbone.", *(part for name in known for part in (f"members.{name}.", f"units.{name}_loss")))
        wanted = {key for key in own if key.startswith(parts)}
        wanted -= {f"members.{name}.{key}" for name, task in self.tasks().items() for key in _statistics(task)}
        differing = sorted(key for key in wanted if key not in state_dict or state_dict[key].shape != own[key].shape)
        if differing:
            raise InputError(
                f"{source} does not fit the model: {listed(differing, limit=4)}; give it the backbone, backbone_args, "
                "share, norms and classes with which the file was trained"
            )
        self.load_state_dict({key: state_dict[key] for key in wanted}, strict=False)

    # What the members know about their data

    @property
    def class_names(self) -> list[str]:
        """No names: each member has its own."""
        return []

    def setup(self, stage: str) -> None:
        """Let every member read the specification of its data.

        Raises:
            InputError: if the data contradict a member.
        """
        data = attached_data_module(self.trainer)
        if data is None:
            return
        if not isinstance(data, JointDataModule):
            raise InputError(f"a joint task needs --data multimodal.JointDataModule, and this is {type(data).__name__}")

        for name in data.evaluated():
            with self._running(name) as task:
                task.setup(stage)
        self.store_spec(JointSpec(members={name: task.spec.to_dict() for name, task in self.tasks().items()}))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint has the same members, with the same classes and channels.

        Raises:
            InputError: if it does not; the message names them.
        """
        stored = (checkpoint.get("hyper_parameters", {}).get("spec") or {}).get("members") or {}
        if stored and set(stored) != set(self.members):
            raise InputError(
                f"the checkpoint has the members {listed(stored)}, and the model {listed(self.members)}; to start a "
                "new run from its shared layers, give it as --model.weights"
            )
        for name, task in self.tasks().items():
            if name in stored:
                task.on_load_checkpoint({"hyper_parameters": {"spec": stored[name]}})

    # The flow

    def forward(self, name: str, *raw: Any) -> Any:
        """Return the output of a member for a raw batch."""
        return self.tasks()[name](*raw)

    @contextmanager
    def _running(self, name: str) -> Iterator[Task]:
        """Give a member the trainer and the log while one of its steps runs; they are of its own name."""
        task: Any = self.tasks()[name]
        task.trainer = _MemberTrainer(self.trainer, name)
        task.log = partial(self._log_of, name)
        try:
            yield task
        finally:
            task.trainer = None
            del task.log

    def _log_of(self, member: str, /, name: str, value: Any, **options: Any) -> None:
        """Log a value of a member, by the member's name and that of the metric."""
        self._logged.setdefault(member, {})[name] = value
        self.log(f"{member}/{name}", value, **(options | {"add_dataloader_idx": False, "prog_bar": False}))

    # Training

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Return the loss of one step, and log it, the losses of the members and ``lr``."""
        losses = []
        samples = 0
        for name, part in batch.items():
            with self._running(name) as task:
                raw, target = task.unpack(part)
                with explain_batch_norm_error():
                    loss = task.training_loss(raw, target)
                check_loss(loss, self.global_step, task, partial(task.training_output, raw, target))

            length = task.batch_length(raw)
            self.log(f"{name}/train_loss", loss, on_step=False, on_epoch=True, batch_size=length, sync_dist=True)
            unit = self.units.of(name, partial(self.trainer.strategy.reduce, loss.detach(), reduce_op="mean"))
            losses.append(self.loss_weights.get(name, 1.0) * loss / unit)
            samples += length

        total = torch.stack(losses).mean()
        self.log_training(total, samples)
        return total

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the groups of all members, with each shared parameter once, at the place it has in every backbone."""
        groups = []
        seen: set[int] = set()
        for task in self.tasks().values():
            for group in task.parameter_groups(lr):
                new = [p for p in group["params"] if id(p) not in seen]
                seen.update(map(id, new))
                if new:
                    groups.append({**group, "params": new})
        return groups

    # Evaluation and prediction

    def _loaders(self, split: EvaluationSplit) -> dict[str, Any]:
        """Return the loaders of the members that are evaluated, by name."""
        loaders = {
            "val": self.trainer.val_dataloaders,
            "test": self.trainer.test_dataloaders,
            "predict": self.trainer.predict_dataloaders,
        }
        return cast(dict[str, Any], loaders[split])

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch to the validation metrics of a member."""
        with self._running(list(self._loaders("val"))[dataloader_idx]) as task:
            task.validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add one batch to the test metrics of a member."""
        with self._running(list(self._loaders("test"))[dataloader_idx]) as task:
            task.test_step(batch, batch_idx)

    def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, list[Any]]:
        """Return the columns of a member's predictions for one batch."""
        with self._running(list(self._loaders("predict"))[dataloader_idx]) as task:
            task.answer_options = self.answer_options
            return task.predict_step(batch, batch_idx)

    def report(self, split: EvaluationSplit) -> None:
        """Log and draw the results of every member that was evaluated, and log ``val_error``."""
        for name in self._loaders(split):
            with self._running(name) as task:
                task.report(split)
        if split == "val":
            self._log_error()
        self._logged.clear()

    def report_sections(self, split: EvaluationSplit, results: Mapping[str, np.ndarray]) -> list[Section]:
        """Return the figures of all members and their pictures."""
        logged = self.trainer.callback_metrics.items()
        figures = {name: float(value) for name, value in logged if is_of_split(name, split)}
        pictures = {
            f"{name}_{file}": f"{title} ({name})"
            for name in self._loaders(split)
            for file, title in self.tasks()[name].pictures.items()
        }
        table = Section("Results", lambda: [Figures(figures).table()])
        return [table, *picture_sections(self.trainer, pictures)]

    def _log_error(self) -> None:
        """Log the mean over the members of the error that chooses the best checkpoint."""
        errors = []
        for name in self._loaders("val"):
            task = self.tasks()[name]
            monitor, mode = task.chosen()
            value = self._logged.get(name, {}).get(monitor)
            if value is None:
                return
            value = value.compute() if isinstance(value, Metric) else torch.as_tensor(value)
            errors.append(value.float() if mode == "min" else 1 - value.float())
        self.log("val_error", torch.stack(errors).mean(), prog_bar=True)

    def predict(self, source: Any, **options: Any) -> list[dict[str, Any]]:
        """Raise an error that says how a member predicts."""
        raise InputError(f"choose who predicts: task.member('{next(iter(self.members))}').predict(...)")

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Raise an error that says how a member is exported."""
        raise InputError(
            "a joint model has an input for each member; take one out and export that: "
            "python -m multimodal.extract RUN MEMBER FILE"
        )


class _Units(nn.Module):
    """The loss of each member in the first step of the run; 0 before it.

    Args:
        names: names of the members.
    """

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            self.register_buffer(f"{name}_loss", torch.zeros(()))

    def of(self, name: str, measure: Callable[[], Tensor]) -> Tensor:
        """Return the unit of a member; if it is not set yet, it is measured."""
        unit = self.get_buffer(f"{name}_loss")
        if not unit:
            unit.copy_(measure().clamp(min=_SMALLEST_UNIT))
        return unit.clone()  # averages of the weights overwrite the buffer


class _MemberTrainer:
    """The trainer as a member sees it: with its own data module and loaders, and its name before those of pictures.

    Everything else is that of the trainer.
    """

    def __init__(self, trainer: Any, name: str) -> None:
        self._trainer = trainer
        self._name = name
        self.picture_prefix = f"{name}_"

    def __getattr__(self, attribute: str) -> Any:
        return getattr(self._trainer, attribute)

    @property
    def datamodule(self) -> Any:
        """The data module of the member."""
        data = attached_data_module(self._trainer)
        return data.members[self._name] if isinstance(data, JointDataModule) else None

    @property
    def val_dataloaders(self) -> Any:
        """The validation loader of the member."""
        return self._trainer.val_dataloaders[self._name]

    @property
    def test_dataloaders(self) -> Any:
        """The test loader of the member."""
        return self._trainer.test_dataloaders[self._name]

    @property
    def num_val_batches(self) -> list[int | float]:
        """Number of validation batches of the member."""
        return self._of_member(self._trainer.num_val_batches, self._trainer.val_dataloaders)

    @property
    def num_sanity_val_batches(self) -> list[int | float]:
        """Number of validation batches of the member in the sanity check."""
        return self._of_member(self._trainer.num_sanity_val_batches, self._trainer.val_dataloaders)

    @property
    def num_test_batches(self) -> list[int | float]:
        """Number of test batches of the member."""
        return self._of_member(self._trainer.num_test_batches, self._trainer.test_dataloaders)

    @property
    def num_predict_batches(self) -> list[int]:
        """Number of batches of the member to predict on."""
        return self._of_member(self._trainer.num_predict_batches, self._trainer.predict_dataloaders)

    def _of_member(self, counts: list[Any], loaders: Any) -> list[Any]:
        return [count for name, count in zip(loaders or (), counts, strict=False) if name == self._name]


def _check_names(members: Any) -> None:
    """Check the names of the members, which become parts of the names of tensors, metrics and pictures."""
    if not isinstance(members, Mapping) or not members:
        raise InputError("--model.members is empty; give a task for each member, by name")
    for name in members:
        if not re.fullmatch(r"[A-Za-z]\w*", str(name)) or hasattr(nn.ModuleDict(), name):
            raise InputError(f"{name!r} cannot be the name of a member; use letters, digits and _, such as image")


def _statistics(task: Task) -> list[str]:
    """Return the names of the statistics of the data in the feature map of a task."""
    feature_map = task.feature_map
    if not isinstance(feature_map, FeatureMap):
        return []
    return [f"feature_map.{name}" for name, _ in feature_map.named_buffers(recurse=False)]


def _store_shared_once(task: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any) -> None:
    """Remove the shared tensors of the members from a state dict, which has them under the name of the backbone."""
    for name, own in _shared_names(task):
        if f"{prefix}{own}" in state_dict:
            state_dict.pop(f"{prefix}{name}", None)


def _give_shared_to_members(task: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add the shared tensors to a state dict under the names that they have in the members."""
    for name, own in _shared_names(task):
        if f"{prefix}{own}" in state_dict:
            state_dict[f"{prefix}{name}"] = state_dict[f"{prefix}{own}"]


def _shared_names(task: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield pairs of names of the same tensor, in a member and in the shared layers."""
    joint = cast(JointTask, task)
    for tensor in joint.backbone.tensor_names():
        for member in joint.members:
            yield f"members.{member}.backbone.{tensor}", f"backbone.{tensor}"
