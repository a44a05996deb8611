"""Image classification as a LightningModule."""

from typing import Any

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn

from core.errors import InputError
from core.training.classification import ClassificationTask
from core.training.pictures import image_sheet, save_figure
from vision.feature_map import to_pixels

__all__ = ["ImageClassifier"]

SHEET = 32
"""Images on a sheet of examples."""


class ImageClassifier(ClassificationTask):
    """:class:`core.training.ClassificationTask` for images, which also leaves a sheet of examples.

    After a validation, test or prediction the run folder holds ``examples.png``: images spread over the whole split,
    each with the class that the model gives it and its probability, in red where it is wrong.
    """

    def setup(self, stage: str) -> None:
        """Compare the model with the data: classes, channels, and the normalisation that its weights were trained with.

        Raises:
            InputError: if classes or channels differ; another normalisation is a warning.
        """
        super().setup(stage)
        mode = getattr(getattr(self.trainer, "datamodule", None), "mode", None)
        stem = next((module for module in self.backbone.modules() if isinstance(module, nn.Conv2d)), None)
        if mode is not None and stem is not None and stem.in_channels != len(mode):
            raise InputError(
                f"the model takes {stem.in_channels} channels and the data have {len(mode)} ({mode}); "
                f"set --model.backbone_args.in_chans {len(mode)}, or --data.mode, mean and std"
            )
        self._compare_normalisation()

    def _compare_normalisation(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        cfg = getattr(self.backbone, "pretrained_cfg", None) or {}
        if not self.hparams.get("pretrained") or len(cfg.get("mean") or ()) != len(getattr(data, "mean", ())):
            return
        for name in ("mean", "std"):
            trained, given = tuple(cfg[name]), tuple(getattr(data, name))
            if trained != given:
                rank_zero_warn(
                    f"the pretrained weights know pixels with {name} {trained}, the data are normalised by {given}; "
                    f"set --data.{name} '{list(trained)}'"
                )

    def on_validation_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch."""
        self._keep_examples(outputs, batch, self.trainer.num_val_batches)

    def on_test_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch."""
        self._keep_examples(outputs, batch, self.trainer.num_test_batches)

    def on_predict_batch_end(self, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Keep some examples of the batch, titled with their predicted class."""
        titles = [f"{c} {p:.2f}" for c, p in zip(outputs["class"], outputs["probability"], strict=True)]
        self._keep(batch[0], titles, [False] * len(titles), self.trainer.num_predict_batches)

    def on_validation_epoch_end(self) -> None:
        """Draw the examples and the confusion matrix."""
        self._draw_examples()
        super().on_validation_epoch_end()

    def on_test_epoch_end(self) -> None:
        """Draw the examples and the confusion matrix."""
        self._draw_examples()
        super().on_test_epoch_end()

    def on_predict_epoch_end(self) -> None:
        """Draw the examples."""
        self._draw_examples()

    def _keep_examples(self, logits: Tensor, batch: Any, batches: list[int | float]) -> None:
        x, y = batch
        probability, label = torch.softmax(logits.float(), dim=1).max(dim=1)
        titles = [f"{self.class_names[i]} {p:.2f}" for i, p in zip(label.tolist(), probability.tolist(), strict=True)]
        self._keep(x, titles, (label != y).tolist(), batches)

    def _keep(self, x: Tensor, titles: list[str], wrong: list[bool], batches: list[int | float]) -> None:
        share = -(-SHEET // max(1, int(sum(batches))))
        kept = self.__dict__.setdefault("_examples", [])
        chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(len(kept)))[:share].tolist()
        kept += [(x[i].float().cpu(), titles[i], wrong[i]) for i in chosen if len(kept) < SHEET]

    def _draw_examples(self) -> None:
        data: Any = getattr(self.trainer, "datamodule", None)
        kept = self.__dict__.pop("_examples", [])
        if not kept or not hasattr(data, "mean") or self.trainer.sanity_checking:
            return
        images, titles, wrong = zip(*kept, strict=True)
        pixels = to_pixels(torch.stack(images), data.mean, data.std)
        save_figure(self.trainer, "examples", image_sheet(pixels, list(titles), list(wrong)))
