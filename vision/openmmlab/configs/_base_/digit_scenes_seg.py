# The built-in scenes of digits, as label maps: 0 the photo, 1 + d the digit d.
_base_ = "./digit_scenes.py"
default_scope = "mmseg"
__colors = [[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]]
__colors += [[145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]]
__meta = dict(classes=["photo", *(str(digit) for digit in range(10))], palette=__colors)
__labels = dict(type="LoadAnnotations")

train_pipeline = [
    dict(type="LoadImageFromFile"),
    __labels,
    dict(type="RandomResize", scale=(96, 96), ratio_range=(1.0, 1.25), keep_ratio=True),  # no padding
    dict(type="RandomCrop", crop_size=(96, 96)),
    dict(type="PackSegInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    __labels,
    dict(type="PackSegInputs"),
]
__scenes = dict(type="BaseSegDataset", metainfo=__meta, img_suffix=".png", seg_map_suffix=".png")
train_dataloader = dict(
    batch_size=16,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        **__scenes, data_prefix=dict(img_path="images/train", seg_map_path="labels/train"), pipeline=train_pipeline
    ),
)
__held_out = dict(**__scenes, pipeline=test_pipeline)
val_dataloader = dict(
    dataset=dict(**__held_out, data_prefix=dict(img_path="images/val", seg_map_path="labels/val")),
)
test_dataloader = dict(
    dataset=dict(**__held_out, data_prefix=dict(img_path="images/test", seg_map_path="labels/test")),
)
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

train_cfg = dict(type="IterBasedTrainLoop", max_iters=1000, val_interval=250)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=2e-3, weight_decay=0.05))
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
