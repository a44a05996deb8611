"""Classification of point clouds by their views."""

import math
from typing import Any, Literal, cast

import torch
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from core.backbones.build import input_channels
from core.backbones.staged import StagedNet
from core.checkpoints import load_weights
from core.errors import InputError
from core.training.classification import ClassificationTask
from core.training.examples import Examples
from core.training.task import Exported
from pointcloud.feature_map import PointViews
from pointcloud.metrics import MeanClassAccuracy
from pointcloud.views import Poses, pixels, pose_matrices

__all__ = ["PointCloudClassifier", "ViewHead", "ViewNet"]

_PICTURE = 120  # pixels along a side of a cloud on the sheet of examples


class ViewHead(nn.Module):
    """The published head: pooled features of all views next to each other, layer norm, linear. Names are the published.

    Args:
        dim: features of all views together.
        num_classes: logits.
    """

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.norm, self.cls_head = nn.LayerNorm(dim), nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) to (B, num_classes)."""
        return self.cls_head(self.norm(x))


class ViewNet(nn.Module):
    """Backbone and head on the views of a cloud, stacked along the channels; what ``export`` writes.

    Args:
        backbone: for views alone.
        head: for the pooled features of all views; None takes the mean of the backbone's logits.
        views: V.
    """

    def __init__(self, backbone: nn.Module, head: ViewHead | None, views: int) -> None:
        super().__init__()
        self.backbone, self.head, self.views = backbone, head, views

    def forward(self, x: Tensor) -> Tensor:
        """(B, V * 3, H, W) to (B, num_classes)."""
        images = x.reshape(-1, x.shape[1] // self.views, *x.shape[2:])
        if self.head is None:
            return self.backbone(images).unflatten(0, (-1, self.views)).mean(dim=1)
        return self.head(_pooled(self.backbone, images).unflatten(0, (-1, self.views)).flatten(1))


def _pooled(backbone: Any, images: Tensor) -> Tensor:
    """The mean over the last map, before any final norm; of a net without maps, its own embedding."""
    features = backbone.forward_features(images)
    if features.ndim != 4:
        return backbone.forward_head(features, pre_logits=True)
    return features.mean(dim=(1, 2) if getattr(backbone, "output_fmt", "NCHW") == "NHWC" else (2, 3))


class PointCloudClassifier(ClassificationTask):
    """:class:`core.training.ClassificationTask` for clouds: points to views, views through a backbone to a class.

    Batches are (points, y): points (B, N, 3) float32. In training each cloud is looked at in a random pose, else in
    all poses of a list, over whose logits the mean is taken. Logged are ``val_acc`` (overall accuracy), ``val_macc``
    (:class:`pointcloud.metrics.MeanClassAccuracy`), ``val_acc5`` from ten classes on, and the same for test.

    Args:
        backbone: name of a LarKit or timm model for images, or a module with timm's methods.
        num_classes: number of classes.
        head: 'concat', the published head on the features of all views side by side, or 'mean' of the views' logits.
        frozen: 'all' keeps the backbone as it is loaded, in eval mode; 'but_norms' trains those of its parameters whose
            name contains 'norm', as P2P does; the views and the head always train.
        num_views: V, the first of the ten published views.
        obj_size: side of the square that an object is drawn into; even.
        img_size: side of the images; by default ``obj_size``.
        neighbors: of a point in the edge features, itself among them.
        trans_dim: channels of a point's first features.
        dim: channels of the maps before they become images.
        fusion: attention over the views; needs an ``img_size`` that 7 divides.
        poses: what differs from the defaults of :class:`pointcloud.views.Poses`.
        label_smoothing: share of the target spread over the other classes.
        weights: file or Hub name for :func:`core.load_weights`: of the backbone, or of a whole run.
        kwargs: the other arguments of :class:`core.training.Task`.

    Raises:
        InputError: if the arguments do not fit together; points have no mixup and cutmix.
    """

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        *,
        head: Literal["concat", "mean"] = "concat",
        frozen: Literal["none", "all", "but_norms"] = "none",
        num_views: int = 4,
        obj_size: int = 224,
        img_size: int | None = None,
        neighbors: int = 32,
        trans_dim: int = 8,
        dim: int = 64,
        fusion: bool = True,
        poses: dict[str, Any] | None = None,
        label_smoothing: float = 0.2,
        weights: str | None = None,
        **kwargs: Any,
    ) -> None:
        if head not in ("concat", "mean") or frozen not in ("none", "all", "but_norms"):
            raise InputError(f"head={head!r}, frozen={frozen!r}; 'concat' or 'mean', 'none', 'all' or 'but_norms'")
        if kwargs.get("mixup_alpha") or kwargs.get("cutmix_alpha"):
            raise InputError("clouds are not mixed: leave out mixup_alpha and cutmix_alpha")
        if label_smoothing > 1 - 1 / max(num_classes, 2):
            raise InputError(f"label_smoothing={label_smoothing}; at most 1 - 1 / num_classes may go to other classes")
        super().__init__(backbone, num_classes, label_smoothing=label_smoothing, **kwargs)
        if input_channels(self.backbone) != 3:
            raise InputError(
                f"the model takes {input_channels(self.backbone)} channels; views have 3: leave out in_chans"
            )
        sizes: dict[str, Any] = {"num_views": num_views, "obj_size": obj_size, "img_size": img_size}
        self.points = PointViews(neighbors=neighbors, trans_dim=trans_dim, dim=dim, fusion=fusion, **sizes)
        try:
            self.poses = Poses(**(poses or {}))
        except TypeError as error:
            raise InputError(f"poses={poses}: {error}; known are the fields of pointcloud.views.Poses") from error
        self.cls_head = self._head(head, num_classes)
        if weights is not None:
            load_weights(self, weights)
        self.frozen = frozen
        self._freeze(bool(weights or kwargs.get("pretrained")))
        scores: dict[str, Any] = {
            "acc": MulticlassAccuracy(num_classes, average="micro"),
            "macc": MeanClassAccuracy(num_classes),
        }
        if num_classes >= 10:
            scores["acc5"] = MulticlassAccuracy(num_classes, top_k=5, average="micro")
        self.use_metrics(MetricCollection(scores))
        self.examples = Examples(size=16, columns=4, width=3.0)

    def example_shape(self) -> tuple[int, ...]:
        """Two clouds of 256 points."""
        return (2, 256, 3)

    def _head(self, head: str, num_classes: int) -> ViewHead | None:
        if head == "mean":
            return None
        net = cast(Any, self.backbone)
        net.reset_classifier(0)
        if isinstance(net, StagedNet):
            net.norm.requires_grad_(False)  # the head reads the map before it
        return ViewHead(self.points.num_views * net.num_features, num_classes)

    def _freeze(self, loaded: bool) -> None:
        if self.frozen == "none":
            return
        if not loaded:
            rank_zero_warn(
                "the frozen backbone has random weights; set --model.pretrained true or --model.weights FILE"
            )
        for name, parameter in self.backbone.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and self.frozen == "but_norms" and "norm" in name)
        self.train()

    def train(self, mode: bool = True) -> "PointCloudClassifier":
        """Set train or eval mode; a backbone that is frozen as a whole stays in eval mode."""
        super().train(mode)
        if getattr(self, "frozen", "none") == "all":
            self.backbone.eval()
        return self

    def get_classifier(self) -> nn.Module:
        """The last layer, which may have another number of classes in a file of weights."""
        if self.cls_head is None:
            return cast(Any, self.backbone).get_classifier()
        return self.cls_head.cls_head

    def forward(self, points_BN3: Tensor) -> Tensor:
        """Points (B, N, 3) to logits (B, num_classes), of a random pose in training mode, else a mean over poses."""
        net = ViewNet(self.backbone, self.cls_head, self.points.num_views)
        if self.training:
            pose_B33, shift_B13 = (tensor.to(points_BN3) for tensor in self.poses.draw(len(points_BN3)))
            return net(self._stacked(self.points(points_BN3, pose_B33, shift_B13)))
        testing = self._trainer is not None and self._trainer.testing
        votes = [net(self._views(points_BN3, pose_33)) for pose_33 in self.poses.grid(test=testing).to(points_BN3)]
        return torch.stack(votes).mean(dim=0)

    def _views(self, points_BN3: Tensor, pose_33: Tensor) -> Tensor:
        return self._stacked(self.points(points_BN3, pose_33.expand(len(points_BN3), 3, 3)))

    def _stacked(self, images: Tensor) -> Tensor:
        """Images of views (B * V, 3, H, W) with the views of a cloud along the channels: (B, V * 3, H, W)."""
        return images.unflatten(0, (-1, self.points.num_views)).flatten(1, 2)

    def loss(self, logits: Tensor, y: Tensor, *, smoothing: float = 0.0) -> Tensor:
        """Cross entropy; the share ``smoothing`` of the target goes to the other classes alone."""
        return F.cross_entropy(logits, y, label_smoothing=smoothing * self.num_classes / (self.num_classes - 1))

    def to_export(self, batch: Any) -> Exported:
        """Backbone and head, and the first validation views of some clouds, stacked along the channels."""
        parts = super().to_export(batch)
        net = ViewNet(self.backbone, self.cls_head, self.points.num_views)
        images = self._views(parts.images, self.poses.grid(test=False)[0].to(parts.images))
        return parts._replace(module=net.eval(), images=images)

    def to_pictures(self, x: Tensor) -> Tensor:
        """Clouds (N, P, 3) as drawings from half above, and their views to the right, as the model gets them."""
        x = x.to(self.device)
        pose_33 = self.poses.grid(test=False)[0].to(x)
        with torch.no_grad():
            views = self._views(x, pose_33).unflatten(1, (-1, 3))
        views = (views * self.points.std + self.points.mean).clamp(0, 1).float()
        low, high = views.amin(dim=(1, 3, 4), keepdim=True), views.amax(dim=(1, 3, 4), keepdim=True)
        views = (views - low) / (high - low).clamp(min=1e-6)
        columns = math.ceil(views.shape[1] / 2)
        views = F.pad(views, (0, 0, 0, 0, 0, 0, 0, 2 * columns - views.shape[1]), value=1.0)
        side = _PICTURE // min(2, self.points.num_views)
        tiles = F.interpolate(views.flatten(0, 1), size=(side, side)).unflatten(0, views.shape[:2])
        rows = min(2, self.points.num_views)
        tiles = tiles[:, : rows * columns].unflatten(1, (rows, columns)).permute(0, 3, 1, 4, 2, 5)
        return torch.cat([_drawings(x), tiles.flatten(4, 5).flatten(2, 3)], dim=3).cpu()


def _drawings(points_NP3: Tensor) -> Tensor:
    """Clouds (N, P, 3) as pictures (N, 3, side, side), near points dark, seen from half above."""
    pose = pose_matrices(*torch.tensor([[0.25 * math.pi], [-0.35 * math.pi]]).to(points_NP3))
    seen = points_NP3 @ pose[0].T
    place = pixels(seen, _PICTURE)
    shade = seen[..., 2] - seen[..., 2].amin(dim=1, keepdim=True)
    shade = 0.85 * (1 - shade / shade.amax(dim=1, keepdim=True).clamp(min=1e-6))
    picture = torch.ones(len(seen), _PICTURE**2, device=seen.device)
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        index = (place[..., 0] + row) * _PICTURE + place[..., 1] + column
        picture.scatter_reduce_(1, index, shade, "amin")
    return picture.view(-1, 1, _PICTURE, _PICTURE).expand(-1, 3, -1, -1)
