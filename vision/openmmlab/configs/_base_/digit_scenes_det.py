# The built-in scenes of digits, as COCO annotations.
_base_ = "./digit_scenes.py"
default_scope = "mmdet"
__colors = [[0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [0, 130, 200], [245, 130, 48]]
__colors += [[145, 30, 180], [70, 240, 240], [240, 50, 230], [210, 245, 60], [250, 190, 212]]
__meta = dict(classes=[str(digit) for digit in range(10)], palette=__colors[1:])
__labels = dict(type="LoadAnnotations", with_bbox=True, with_mask=True)

train_pipeline = [
    dict(type="LoadImageFromFile"),
    __labels,
    dict(type="RandomResize", scale=(96, 96), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type="PhotoMetricDistortion"),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(96, 96), keep_ratio=True),
    __labels,
    dict(type="PackDetInputs"),
]
__scenes = dict(type="CocoDataset", metainfo=__meta)
train_dataloader = dict(
    batch_size=4,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        **__scenes, ann_file="annotations/train.json", data_prefix=dict(img="images/train/"), pipeline=train_pipeline
    ),
)
__held_out = dict(**__scenes, pipeline=test_pipeline, test_mode=True)
val_dataloader = dict(
    dataset=dict(**__held_out, ann_file="annotations/val.json", data_prefix=dict(img="images/val/")),
)
test_dataloader = dict(
    dataset=dict(**__held_out, ann_file="annotations/test.json", data_prefix=dict(img="images/test/")),
)
val_evaluator = dict(type="CocoMetric", ann_file="data/digit_scenes/annotations/val.json", metric=["bbox", "segm"])
test_evaluator = dict(type="CocoMetric", ann_file="data/digit_scenes/annotations/test.json", metric=["bbox", "segm"])

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12)
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.05))
visualizer = dict(type="DetLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
