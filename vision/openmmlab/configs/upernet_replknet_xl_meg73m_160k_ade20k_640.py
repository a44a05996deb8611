# RepLKNet-XL, MegData73M weights: 160,000 iterations of 32 crops (16 processes of two), AdamW 2e-4, as published,
# except that the authors' config trains with its test pipeline, and this one with the training pipeline that theirs
# defines. The weights are on Google Drive: download them by hand.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640_replknet.py", "./_base_/segmentation_40k.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640), mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_xl",
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-XL_MegData73M_pretrain.pth"),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
    test_cfg=dict(mode="slide", crop_size=(640, 640), stride=(426, 426)),
)
train_cfg = dict(max_iters=160_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160_000),
]
