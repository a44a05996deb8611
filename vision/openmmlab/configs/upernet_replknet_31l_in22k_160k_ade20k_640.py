# RepLKNet-31L as published: 40,000 iterations of 128 crops (64 processes of two), AdamW 2e-4. The weights lie on Google
# Drive and are downloaded by hand.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640_replknet.py", "./_base_/segmentation_40k.py", "./_base_/runtime.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31l",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-31L_ImageNet-22K.pth"),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
