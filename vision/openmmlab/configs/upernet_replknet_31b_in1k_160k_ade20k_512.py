# RepLKNet-31B, ImageNet-1K weights, as published: 40,000 iterations of 128 crops (64 processes of two), AdamW 2e-4.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_512_replknet.py", "./_base_/segmentation_40k.py"]

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
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
)
