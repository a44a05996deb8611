# RepLKNet-31B as published: 20,000 iterations of 64 crops (32 processes of two), AdamW 2e-4. The weights lie on Google
# Drive and are downloaded by hand.
_base_ = ["./_base_/upernet.py", "./_base_/cityscapes_769.py", "./_base_/segmentation_40k.py", "./_base_/runtime.py"]

model = dict(
    data_preprocessor=dict(size=(769, 769)),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31b",
        drop_path_rate=0.3,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-31B_ImageNet-22K.pth"),
    ),
    decode_head=dict(in_channels=[128, 256, 512, 1024], num_classes=19),
    auxiliary_head=dict(in_channels=512, num_classes=19),
)
train_cfg = dict(max_iters=20_000)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=20_000),
]
