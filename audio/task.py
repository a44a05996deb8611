"""The audio classifier, for one label or several."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from audio.augment import mix_waveforms, noise_and_roll, spec_augment
from audio.data import AudioDataModule, AudioSpec, Waves
from audio.feature_map import LogMel, cut_windows, pad_waves, starts_of_windows
from core.data.module import DataModule
from core.data.spec import DataSpec
from core.errors import InputError
from core.export import Exported
from core.training.answers import WindowOutput
from core.training.classification import ClassificationTask
from core.training.tagging import tagging_metrics
from core.training.task import Backbone, EvaluationSplit

__all__ = ["AudioClassifier"]

_WINDOWS_AT_ONCE = 64
"""Number of windows that the network reads at once; an hour of sound has thousands of them."""


class AudioClassifier(ClassificationTask):
    """:class:`core.training.ClassificationTask` for recordings, which have one label or several.

    ``task(waves)`` takes waveforms (B, T) float in [-1, 1] at ``spec.sample_rate``, or a list of B waveforms (T_i,),
    and returns logits (B, num_classes). Lengths (B,) may follow as a second argument if padded waveforms differ in
    length. In eval mode, a recording that is longer than one map is cut into overlapping windows, whose probabilities
    are averaged.

    Also logs ``val_mAP``, ``val_auc`` and ``val_dprime``, which are means over the classes, each class against the
    rest, and the same for the test split, also if a recording has one label. The default augmentation is the one
    published for Speech Commands.

    Args:
        backbone: name of a LarKit or timm model, or a module that takes one channel.
        num_classes: number of classes; taken from the data where they are known.
        spec: description of the data; the command passes it.
        criterion: 'bce' for the binary cross entropy of each class, as published, or 'ce' for the cross entropy over
            the classes; None for 'bce' with several labels and 'ce' otherwise.
        label_smoothing: share of the target that is spread over all classes.
        mixup: probability that a training waveform is mixed with another one.
        frequency_mask: upper limit of the number of mel bands that training masks (exclusive); 0 for no mask.
        time_mask: upper limit of the number of frames that training masks (exclusive); 0 for no mask.
        noise: largest strength of the noise that training adds to a map; 0 for none.
        roll: largest number of frames by which training rolls a map in time; 0 for none.
        backbone_args: arguments for ``timm.create_model`` when ``backbone`` is a name.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if an argument is out of range, or contradicts the data.
    """

    spec_class: ClassVar[type[DataSpec]] = AudioSpec
    data_class: ClassVar[type[DataModule]] = AudioDataModule
    has_windows: ClassVar[bool] = True
    pipeline_tag: ClassVar[str | None] = "audio-classification"

    spec: AudioSpec
    feature_map: LogMel

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int | None = None,
        *,
        spec: DataSpec | Mapping[str, Any] | None = None,
        criterion: Literal["bce", "ce"] | None = "bce",
        label_smoothing: float = 0.0,
        mixup: float = 0.6,
        frequency_mask: int = 48,
        time_mask: int = 48,
        noise: float = 0.1,
        roll: int = 10,
        backbone_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if kwargs.get("mixup_alpha") or kwargs.get("cutmix_alpha"):
            raise InputError(
                "audio mixes waveforms, not maps; set --model.mixup instead of mixup_alpha or cutmix_alpha"
            )
        in_range = 0 <= mixup <= 1 and min(frequency_mask, time_mask, roll) >= 0 and 0 <= noise < math.inf
        if not in_range:
            raise InputError(
                f"mixup={mixup}, frequency_mask={frequency_mask}, time_mask={time_mask}, noise={noise}, roll={roll}; "
                "expected a probability for mixup, and 0 or more for the others"
            )

        super().__init__(
            backbone,
            num_classes,
            spec=spec,
            criterion=criterion,
            label_smoothing=label_smoothing,
            backbone_args=backbone_args,
            **kwargs,
        )
        self.mix_probability = mixup
        self.frequency_mask = frequency_mask
        self.time_mask = time_mask
        self.noise = noise
        self.roll = roll

        self.top1 = nn.ModuleDict(
            {split: MulticlassAccuracy(self.num_classes, average="micro") for split in ("val", "test")}
        )

    # What the task knows about its data

    @classmethod
    def map_channels(cls, spec: AudioSpec) -> int:
        """Return 1, since a log-mel map has one channel."""
        return 1

    def build_feature_map(self, spec: AudioSpec) -> LogMel:
        """Build the log-mel map with the settings and statistics of the data."""
        return spec.feature_map()

    def read_spec(self, data: DataModule) -> DataSpec:
        """Return the specification of the data; statistics that the task knows are not measured again."""
        if isinstance(data, AudioDataModule) and self.spec.mean is not None and self.spec.std is not None:
            data.know_statistics(self.spec.mean, self.spec.std)
        return super().read_spec(data)

    def use_spec(self, theirs: AudioSpec) -> None:
        """Adopt the statistics and the overlap of the data, and compare the classes and maps with those of the model.

        Raises:
            InputError: if the classes, the settings of the maps or their statistics differ.
        """
        super().use_spec(theirs)
        for name in ("sample_rate", "num_mels", "frame_length", "frame_shift", "target_length"):
            self._refuse_other(name, theirs)
        self.store_spec(replace(self.spec, overlap=theirs.overlap))

        if theirs.mean is None or theirs.std is None:
            return
        if self.spec.mean is None:
            self.store_spec(replace(self.spec, mean=theirs.mean, std=theirs.std))
            self.feature_map.set_statistics(theirs.mean, theirs.std)
        self._refuse_other("mean", theirs)
        self._refuse_other("std", theirs)

    def _refuse_other(self, name: str, theirs: AudioSpec) -> None:
        """Raise an error if a setting of the data is known and differs from that of the model."""
        own = getattr(self.spec, name)
        other = getattr(theirs, name)
        if other is not None and own != other:
            raise InputError(
                f"the model was trained with {name}={own}, and the data have {name}={other}; leave --data.{name} out, "
                f"or type --data.{name} {own}"
            )

    # The flow

    def to_export(self, raw: tuple[Any, ...], source: Literal["raw", "map"]) -> Exported:
        """Return the module that ``lightning export`` writes; its input are waveforms (B, T) of at most one map."""
        if isinstance(raw[0], list):
            raw = self.feature_map.first_windows(raw[0])
        return super().to_export(raw, source)

    def forward(self, waves: Tensor | Sequence[Tensor], lengths_B: Tensor | None = None) -> Tensor:
        """Return the logits of recordings, in eval mode of any length.

        Args:
            waves: waveforms (B, T), or a list of B waveforms (T_i,), float in [-1, 1].
            lengths_B: number of samples of each waveform (B,) int64; by default all T.

        Returns:
            Logits (B, num_classes).
        """
        fits = isinstance(waves, Tensor) and waves.shape[1] <= self.feature_map.samples()
        if self.training or fits:
            logits: Tensor = self.read(self.to_maps((waves, lengths_B)))
            return logits

        if lengths_B is not None:
            waves = [wave[:length] for wave, length in zip(waves, lengths_B.tolist(), strict=True)]
        return self._read_windows(waves)

    def _read_windows(self, waves: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the logits (B, num_classes) of recordings that are cut into windows."""
        logits_NK, cuts = self._window_logits(waves)
        return torch.stack([self.mean_logits(own_NK) for own_NK in logits_NK.split([len(cut) for cut in cuts])])

    def _window_logits(self, waves: Tensor | Sequence[Tensor]) -> tuple[Tensor, list[list[Tensor]]]:
        """Return the logits (N, num_classes) of all windows of recordings, and the windows of each recording."""
        cuts = [cut_windows(wave, self.feature_map.samples(), self.spec.overlap) for wave in waves]
        windows = [window for cut in cuts for window in cut]

        parts: list[Tensor] = []
        for first in range(0, len(windows), _WINDOWS_AT_ONCE):
            padded = pad_waves(windows[first : first + _WINDOWS_AT_ONCE])
            parts.append(self.read(self.to_maps(padded)))

        return torch.cat(parts), cuts

    def augment_batch(self, raw: Any, target: Tensor) -> tuple[Waves, Tensor]:
        """Mix waveforms; the targets become (B, num_classes) float.

        Args:
            raw: :class:`audio.data.Waves`, or waveforms (B, T) alone.
            target: labels (B,) int64, or (B, num_classes) of 0 and 1.
        """
        if isinstance(raw, tuple):
            wave_BT, lengths_B = raw
        else:
            wave_BT = raw
            lengths_B = torch.full((len(raw),), raw.shape[1])

        target_BK = self.one_hot(target).float()
        mixed_BT, target_BK = mix_waveforms(wave_BT.float(), lengths_B, target_BK, probability=self.mix_probability)
        return Waves(mixed_BT, lengths_B), target_BK

    def augment_map(self, maps: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Mask maps with the value of padded cells, add noise, and roll them in time."""
        x = spec_augment(
            maps.float(),  # bfloat16 cannot represent the positions of the masks
            frequency_mask=self.frequency_mask,
            time_mask=self.time_mask,
            value=self.feature_map.padding,
        )
        x = noise_and_roll(x, noise=self.noise, roll=self.roll)
        return x.to(maps.dtype), target

    # Metrics

    def build_scores(self) -> MetricCollection:
        """Return the means over the classes, each class against the rest."""
        return tagging_metrics(self.num_classes)

    def update_scores(self, scores: MetricCollection, output: Tensor, target: Tensor) -> None:
        """Add one batch to the metrics and, unless there are several labels, to the confusion matrix."""
        scores.update(self.probabilities(output), self.one_hot(target).long())
        if not self.spec.multi_label:
            self.confusion.update(output, target)

    def update_metrics(self, split: EvaluationSplit, raw: Any, output: Tensor, target: Tensor) -> None:
        """Add one batch to the metrics of a split, among them the accuracy unless there are several labels."""
        super().update_metrics(split, raw, output, target)
        if not self.spec.multi_label:
            cast(Metric, self.top1[split]).update(output, target)

    def log_metrics(self, split: EvaluationSplit) -> None:
        """Log the loss and the metrics of a split, among them the accuracy unless there are several labels."""
        super().log_metrics(split)
        if not self.spec.multi_label:
            self.log(f"{split}_acc", cast(Metric, self.top1[split]), prog_bar=split == "val", batch_size=1)

    # Pictures

    def show(self, raw: Any) -> Tensor:
        """Return the maps (N, 1, F, T), each scaled to [0, 1], with low frequencies at the bottom.

        Of a long recording, the first window is shown.
        """
        maps = self.feature_map(*raw) if isinstance(raw, tuple) else self.feature_map(raw)

        low = maps.amin(dim=(1, 2, 3), keepdim=True)
        high = maps.amax(dim=(1, 2, 3), keepdim=True)
        scaled = (maps - low) / (high - low).clamp(min=1e-6)
        return scaled.flip(2)

    # Prediction

    def window_output(self, raw: Sequence[Tensor], names: Any) -> WindowOutput:
        """Return the logits of each window of the recordings, which overlap by ``spec.overlap``."""
        logits_NK, cuts = self._window_logits(raw)
        size = self.feature_map.samples()
        rate = self.spec.sample_rate
        starts: list[float] = []
        ends: list[float] = []
        for wave in raw:
            for start in starts_of_windows(len(wave), size, self.spec.overlap):
                starts.append(start / rate)
                ends.append(min(start + size, len(wave)) / rate)

        counts = [len(cut) for cut in cuts]
        each = [name for name, count in zip(names, counts, strict=True) for _ in range(count)]
        return WindowOutput(logits_NK, each, starts, ends, counts)

    def pool_features(self, features: list[Tensor], raw: Sequence[Tensor]) -> Tensor:
        """Return the features of each window, or their mean for each recording."""
        features_ND = torch.cat(features)
        if self.answer_options.reads_windows:
            return features_ND
        size = self.feature_map.samples()
        counts = [len(starts_of_windows(len(wave), size, self.spec.overlap)) for wave in raw]
        return torch.stack([own_ND.mean(dim=0) for own_ND in features_ND.split(counts)])
