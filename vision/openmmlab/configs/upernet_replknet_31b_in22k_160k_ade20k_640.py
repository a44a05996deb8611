# RepLKNet-31B, ImageNet-22K weights, as published: 40,000 iterations of 128 crops (64 processes of two), AdamW 2e-4.
# The weights are on Google Drive: download them by hand.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640_replknet.py", "./_base_/segmentation_40k.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31b",
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-31B_ImageNet-22K.pth"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024]),
    auxiliary_head=dict(in_channels=512),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
