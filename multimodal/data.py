"""The data modules of several members as one, with a stated share of each member in every step."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import CombinedLoader
from lightning_utilities.core.rank_zero import rank_zero_info

from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError, listed
from core.training.hub import modality_class

__all__ = ["JointDataModule", "JointSpec", "batch_sizes", "build_part"]

Sampling = Literal["proportional", "equal", "temperature"]

_LEAST = 2
"""Samples of a member in a step; batch norm would take its statistics from a single one."""


@dataclass(frozen=True)
class JointSpec(DataSpec):
    """What a joint model must know about the data of its members.

    Attributes:
        members: the specification of each member's data as plain values, by the name of the member.
    """

    members: dict[str, dict[str, Any]] = field(default_factory=dict)


class JointDataModule(DataModule):
    """Trains on the data of all members in every step.

    A training batch is a dictionary with a batch of each member. ``batch_size`` samples are divided among the members:

    - ``sampling: equal``: all members have the same number.
    - ``sampling: proportional``: member m has a share that is proportional to n_m, the number of its training samples.
    - ``sampling: temperature``: a share that is proportional to n_m^(1/T). T = 1 is 'proportional', and a large T is
      nearly 'equal'.

    An epoch has as many samples as all training sets together, so that with 'proportional' it goes over each of them
    about once. With the others, it goes over small sets several times, in a new order each time, and over a part of
    large ones. In validation, test and prediction, one member follows the other.

    Args:
        members: data module of each member, by the names of the task's members: ``class_path``, such as
            ``vision.Digits``, and ``init_args``, its arguments except ``batch_size``.
        sampling: how the samples of a step are divided among the members.
        temperature: T, at least 1, for ``sampling: temperature``.
        batch_size: samples of all members together, for each process and step.
        num_workers: processes that load the data of a member, unless its ``init_args`` say otherwise.
        epoch_steps: number of steps in an epoch; by default all training samples divided by ``batch_size``.
        member: evaluate this member alone; ``predict`` needs it.
        predict_path: file or folder of files for ``predict``, which ``member`` reads.

    Attributes:
        members: data modules by name.

    Raises:
        InputError: if a class is none of an installed modality, an argument is out of range, or an argument of a member
            has no effect here.
    """

    holds: ClassVar[tuple[str, ...]] = ("members",)

    def __init__(
        self,
        members: dict[str, dict[str, Any]],
        *,
        sampling: Sampling = "equal",
        temperature: float = 2.0,
        batch_size: int = 128,
        num_workers: int = 0,
        epoch_steps: int | None = None,
        member: str | None = None,
        predict_path: str | None = None,
    ) -> None:
        super().__init__(batch_size=batch_size, num_workers=num_workers)
        if sampling not in ("proportional", "equal", "temperature") or temperature < 1:
            raise InputError(
                f"sampling={sampling!r}, temperature={temperature}; expected 'proportional', 'equal' or 'temperature', "
                "and a temperature of 1 or more"
            )
        if epoch_steps is not None and epoch_steps < 1:
            raise InputError(f"epoch_steps={epoch_steps}; expected 1 or more")
        if not members:
            raise InputError("--data.members is empty; give a data module for each member of the model")
        if batch_size < _LEAST * len(members):
            raise InputError(
                f"batch_size={batch_size} for {len(members)} members; expected {_LEAST * len(members)} or more, since "
                f"each member needs {_LEAST} samples in every step"
            )
        if member is not None and member not in members:
            raise InputError(f"member={member!r}; the members are {listed(list(members))}")
        if predict_path is not None and member is None:
            raise InputError(
                f"--data.predict_path {predict_path} needs the member that reads it: --data.member, one of "
                f"{listed(list(members))}"
            )

        self.sampling: Sampling = sampling
        self.temperature = temperature
        self.epoch_steps = epoch_steps
        self.member = member
        self.members: dict[str, DataModule] = {}
        for name, settings in members.items():
            args: dict[str, Any] = {"num_workers": num_workers, "batch_size": max(_LEAST, batch_size // len(members))}
            if name == member and predict_path is not None:
                args |= {"predict_path": predict_path}
            self.members[name] = build_part(name, settings, DataModule, args, refused=("batch_size", "min_epoch_steps"))

    # What the model must know

    def settings(self) -> JointSpec:
        """Return the options of all members that their tasks must agree with, without reading the data."""
        return JointSpec(members={name: data.settings().to_dict() for name, data in self.members.items()})

    def spec(self) -> JointSpec:
        """Return the specifications of all members, which read their data once."""
        specs = {}
        for name, data in self.members.items():
            with _naming(name):
                specs[name] = data.spec().to_dict()
        return JointSpec(members=specs)

    @property
    def predicts_files(self) -> bool:
        """Whether the trainer predicts on files that the user named."""
        return self.member is not None and self.members[self.member].predicts_files

    def evaluated(self) -> dict[str, DataModule]:
        """Return the members that this run reads: all of them or, without training, the one that was chosen."""
        fits = self.trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        if self.member is None or fits:
            return self.members
        return {self.member: self.members[self.member]}

    def measure(self) -> dict[str, float]:
        """Measure statistics of the training data of the chosen member.

        Raises:
            InputError: if none is chosen, or there is nothing to measure.
        """
        if self.member is None:
            raise InputError(f"choose whose data are measured: --data.member, one of {listed(self.members)}")
        return self.members[self.member].measure()

    # Lightning's hooks

    def check_data(self) -> None:
        """Check the data of every member."""
        for data in self.members.values():
            data.check_data()

    def prepare_data(self) -> None:
        """Check that the data of every member exist, or create them."""
        for name, data in self._attached():
            with _naming(name):
                data.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Set up the data of every member."""
        for name, data in self._attached():
            with _naming(name):
                data.setup(stage or "fit")

    def _attached(self) -> Iterator[tuple[str, DataModule]]:
        """Yield the members that this run reads, each with the trainer."""
        for name, data in self.evaluated().items():
            data.trainer = self.trainer
            yield name, data

    def train_dataloader(self) -> Any:
        """Return a loader of steps: dictionaries with a batch of each member.

        Raises:
            MissingError: if a member has no training data.
            InputError: if a member has fewer than two training samples for each process.
        """
        _, replicas = self._rank_and_replicas()
        counts = {name: data.count_training_samples() // replicas for name, data in self.members.items()}
        sizes = batch_sizes(counts, self.batch_size, self._exponent())
        steps = self.epoch_steps or max(1, sum(counts.values()) // self.batch_size)

        loaders = {}
        parts = []
        for name, data in self.members.items():
            with _naming(name):
                loaders[name] = data.loader_of_steps(steps, sizes[name])
            parts.append(f"{name} {sizes[name]} ({sizes[name] * steps / counts[name]:.2g} x {counts[name]:,})")
        rank_zero_info(f"An epoch has {steps} steps, with these samples of each member: {', '.join(parts)}")
        return CombinedLoader(loaders, "min_size")

    def _exponent(self) -> float:
        """Return the exponent of n_m in the share of member m."""
        return {"proportional": 1.0, "equal": 0.0, "temperature": 1 / self.temperature}[self.sampling]

    def val_dataloader(self) -> Any:
        """Return the validation loaders by name."""
        return {name: data.val_dataloader() for name, data in self.evaluated().items()}

    def test_dataloader(self) -> Any:
        """Return the test loaders by name."""
        return {name: data.test_dataloader() for name, data in self.evaluated().items()}

    def predict_dataloader(self) -> Any:
        """Return the loader of what is predicted, by the name of its member.

        Raises:
            InputError: if no member is chosen, since the rows of each have other columns.
        """
        if self.member is None and len(self.members) > 1:
            raise InputError(f"choose who predicts: --data.member, one of {listed(self.members)}")
        return {name: data.predict_dataloader() for name, data in self.evaluated().items()}

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Check the labels of a batch, as the data module of each member does."""
        if isinstance(batch, Mapping):  # a step of training
            return {name: self.members[name].on_before_batch_transfer(part, 0) for name, part in batch.items()}
        data = list(self.evaluated().values())[dataloader_idx]
        return data.on_before_batch_transfer(batch, 0)


def batch_sizes(counts: Mapping[str, int], total: int, exponent: float) -> dict[str, int]:
    """Divide the samples of a step among members in shares proportional to ``count ** exponent``.

    Args:
        counts: number of training samples of each member.
        total: samples of a step, at least two for each member.
        exponent: 1 for proportional shares, 0 for equal ones.

    Returns:
        The number of samples of each member, at least 2, with the sum ``total``.

    Example:
        >>> batch_sizes({"image": 900, "sound": 100}, 50, 1.0), batch_sizes({"image": 900, "sound": 100}, 50, 0.5)
        ({'image': 45, 'sound': 5}, {'image': 38, 'sound': 12})
    """
    weights = {name: max(1, count) ** exponent for name, count in counts.items()}
    sizes = dict.fromkeys(counts, _LEAST)
    for _ in range(total - _LEAST * len(counts)):
        # The next sample goes to the member that is furthest below its share.
        sizes[min(weights, key=lambda name: (sizes[name] + 0.5) / weights[name])] += 1
    return sizes


def build_part(name: str, settings: Any, base: Any, args: dict[str, Any], refused: tuple[str, ...]) -> Any:
    """Build the task or data module of a member; only classes that an installed modality exports are built.

    Args:
        name: name of the member.
        settings: ``class_path`` and ``init_args``, as in a configuration.
        base: class from which the class must derive.
        args: arguments that are given here; ``init_args`` may have others for those that are not refused.
        refused: arguments that a member cannot have.

    Raises:
        InputError: if the settings are incomplete or name an unknown class, an argument is refused, or the class
            refuses them.
    """
    if not isinstance(settings, Mapping) or not isinstance(settings.get("class_path"), str):
        raise InputError(f"member {name!r} is {settings!r}; expected class_path and init_args")
    unknown = set(settings) - {"class_path", "init_args"}
    if unknown:
        raise InputError(f"member {name!r} has {listed(sorted(unknown))}; expected class_path and init_args alone")

    own = dict(settings.get("init_args") or {})
    useless = sorted(set(own) & set(refused))
    if useless:
        raise InputError(f"member {name!r} sets {listed(useless)}, which is set for all members at once; leave it out")

    with _naming(name):
        kind = modality_class(settings["class_path"], base)
        if kind.runs_files or kind.holds:
            raise InputError(f"{settings['class_path']} cannot be a member; give a task of a single modality")
        try:
            return kind(**{**args, **own})
        except TypeError as error:
            raise InputError(f"{settings['class_path']} does not take these init_args: {error}") from error


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Name the member in the message of a user's mistake."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"member {name!r}: {error}") from error
