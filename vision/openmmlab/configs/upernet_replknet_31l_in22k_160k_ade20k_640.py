# RepLKNet-31L, ImageNet-22K weights, as published: 80,000 iterations of 64 crops (64 processes of one), AdamW 2e-4. The
# weights are on Google Drive: download them by hand.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640_replknet.py", "./_base_/segmentation_40k.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31l",
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-31L_ImageNet-22K.pth"),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
train_dataloader = dict(batch_size=1)
train_cfg = dict(max_iters=80_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=800),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=80_000),
]
