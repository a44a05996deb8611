# FCOS on RepLKNet-31B, 24 epochs: AdamW 2e-4, gradients clipped at 35.
_base_ = ["./_base_/fcos.py", "./_base_/coco_3x.py", "./_base_/runtime.py"]

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
train_cfg = dict(max_epochs=24)
optim_wrapper = dict(
    optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0), clip_grad=dict(max_norm=35, norm_type=2)
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=500),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=24, milestones=[16, 22], gamma=0.1),
]
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
