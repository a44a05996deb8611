# RepLKNet-31B, ImageNet-1K weights, as published: 20,000 iterations of 64 crops (32 processes of two), AdamW 2e-4.
_base_ = ["./_base_/upernet.py", "./_base_/cityscapes_769.py", "./_base_/segmentation_40k.py"]

model = dict(
    data_preprocessor=dict(size=(769, 769)),
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
    decode_head=dict(in_channels=[128, 256, 512, 1024], num_classes=19, align_corners=True),
    auxiliary_head=dict(in_channels=512, num_classes=19, align_corners=True),
)
train_cfg = dict(max_iters=20_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=400),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=20_000),
]
