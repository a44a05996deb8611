# FCOS on RepLKNet-31B, ImageNet-1K weights, as published: 24 epochs, 2 images a process, AdamW 2e-4, norms without
# decay, gradients clipped at 35, 500 iterations at a third of the rate. The number of processes is not published.
_base_ = ["./_base_/fcos.py", "./_base_/coco_3x.py"]

model = dict(
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31b",
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://download.openmmlab.com/mmclassification/v0/replknet/replknet-31B_3rdparty_in1k_20221118-fd08e268.pth",
        ),
    ),
)
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomChoiceResize", scales=[(1333, 640), (1333, 800)], keep_ratio=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="PackDetInputs"),
]
test_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="Resize", scale=(1333, 800), keep_ratio=True),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="PackDetInputs", meta_keys=("img_id", "img_path", "ori_shape", "img_shape", "scale_factor")),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0), clip_grad=dict(max_norm=35, norm_type=2)
)
param_scheduler = [
    dict(type="ConstantLR", factor=1 / 3, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
