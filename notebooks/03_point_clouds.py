# %% [markdown]
# # Point clouds: a shape becomes views
#
# Points have no order and no grid. Looked at from some side they have both: each point falls on a pixel, and what is known
# of the point is drawn there. A net for images reads such views.

# %%
import logging
import shutil
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
import trimesh
from lightning import Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from matplotlib import pyplot as plt
from PIL import Image
from sklearn.neighbors import NearestCentroid

from pointcloud import DigitClouds, PointCloudClassifier, PointViews
from pointcloud.feature_map import sample_points, unit_sphere
from pointcloud.files import read_cloud
from pointcloud.furniture import write_furniture
from pointcloud.views import pose_matrices

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # the page shows what the cells print, and no hints
logging.getLogger("trimesh").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
seed_everything(0, verbose=False)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## From a file to a map
#
# A chair as a mesh, in the format of ModelNet40. 2,048 points are drawn from its surface, moved into the unit sphere, and of
# these 512 are kept that lie far from each other.

# %%
write_furniture(folder / "furniture", [("train", 1)])
chair = folder / "furniture" / "train" / "chair" / "000.off"
mesh = trimesh.load(chair)
points = unit_sphere(torch.from_numpy(read_cloud(chair, 2048)))
points = sample_points(points[None, :, [2, 0, 1]], 512, train=False)  # the file's y points up, and here z does
print(f"{chair.name}: {len(mesh.vertices)} vertices, {len(mesh.faces)} triangles; points {tuple(points.shape)}")

# %% [markdown]
# The first four of the ten published views: the cloud is tilted, then looked at from four sides. `PointViews` computes a
# feature of each point from its neighbours, draws it at the point's pixels, and lets a small image branch make colours of
# that. It learns together with the net, so that here, untrained, the colours mean nothing yet, but the shape is there.

# %%
views = PointViews(num_views=4, obj_size=64, neighbors=16, dim=16, fusion=False)
with torch.no_grad():
    images = views(points, pose_matrices(torch.tensor([0.8]), torch.tensor([-0.4])))
pictures = (images * views.std + views.mean).clamp(0, 1)

figure = plt.figure(figsize=(10, 2.4), layout="constrained")
solid = figure.add_subplot(1, 5, 1, projection="3d")
solid.scatter(*points[0].T, s=1, c=points[0, :, 2])
solid.set(xlabel="x", ylabel="y", zlabel="z", xticks=[], yticks=[], zticks=[], title="512 points")
solid.set_aspect("equal")
for i, picture in enumerate(pictures):
    axes = figure.add_subplot(1, 5, i + 2)
    axes.imshow((picture - picture.min()).permute(1, 2, 0) / (picture.max() - picture.min()))
    axes.set(title=f"view {i}", xlabel="pixel")
plt.show()

# %% [markdown]
# ## Training
#
# On digits, handwritten ones whose ink has become points: `shots` takes 60 clouds of each class. Two small views are enough
# for them.

# %%
data = DigitClouds(shots=60, batch_size=50, num_workers=0)
frontal = {"theta": [-0.1, 0.1], "phi": [-0.6, -0.4], "scale": [0.9, 1.1]}
angles = {"val_theta": [0], "val_phi": [-0.5], "test_theta": [0], "test_phi": [-0.5]}  # multiples of pi
task = PointCloudClassifier(
    "unireplknet_a",
    num_classes=10,
    num_views=2,
    obj_size=32,
    neighbors=8,
    dim=16,
    fusion=False,
    poses=frontal | angles,
    backbone_args={"depths": (1, 1, 1, 1), "dims": (24, 48, 96, 192), "layer_scale_init_value": 0.1},
    lr=4e-3,
    warmup_epochs=1,
)
trainer = Trainer(
    max_epochs=6,
    limit_val_batches=0,
    logger=CSVLogger(folder),
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
)
trainer.fit(task, datamodule=data)
(measured,) = trainer.test(task, datamodule=data, verbose=False)
print(f"test accuracy: {measured['test_acc']:.3f}")

# %% [markdown]
# For comparison, the nearest centroid of simple features: how the points are spread along each axis.


# %%
def spread(clouds):
    """Histograms of x, y and z, and the labels."""
    rows = [(np.concatenate([np.histogram(axis, 8, (-1, 1))[0] for axis in cloud.T]), label) for cloud, label in clouds]
    return [np.array(column) for column in zip(*rows, strict=True)]


print(f"nearest centroid: {NearestCentroid().fit(*spread(data.train_set)).score(*spread(data.test_set)):.3f}")

# %% [markdown]
# The run folder has a sheet of test clouds, each drawn from half above, with the two views that the net got and its answer.

# %%
run = Path(trainer.log_dir)
Image.open(run / "examples.png").quantize(64)

# %% [markdown]
# And the confusion matrix, digit against digit.

# %%
Image.open(run / "confusion_matrix.png")

# %% [markdown]
# ## A file of your own
#
# Meshes and clouds in .off, .obj, .ply, .stl, .npy, .txt or .pcd. A test cloud written as text stands in for one.

# %%
cloud, digit = data.test_set[450]
np.savetxt(folder / "question.txt", 20 * cloud[:, [1, 2, 0]].numpy())  # its unit does not matter, and y points up
asked = DigitClouds(num_workers=0, predict_path=str(folder / "question.txt"))
(answer,) = trainer.predict(task, datamodule=asked)
print(f"{answer['class'][0]}, probability {answer['probability'][0]:.2f}; the digit is {digit}")

# %% [markdown]
# The same on the command line, for class folders of your own shapes (`pointcloud/README.md` has the rest):
#
#     lightning fit -c pointcloud/configs/folder.yaml --data.root shapes --model.num_classes 2
#     lightning predict -c pointcloud/configs/folder.yaml --data.predict_path shapes --ckpt_path best

# %%
shutil.rmtree(folder)
