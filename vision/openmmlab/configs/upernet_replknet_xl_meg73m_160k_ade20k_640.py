# RepLKNet-XL as published: 40,000 iterations of 128 crops (64 processes of two), AdamW 2e-4. The weights lie on Google
# Drive and are downloaded by hand.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640_replknet.py", "./_base_/segmentation_40k.py", "./_base_/runtime.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640), mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_xl",
        drop_path_rate=0.5,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-XL_MegData73M_ImageNet1K.pth"),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
