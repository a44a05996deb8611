# RepLKNet-XL, MegData73M weights, as published: 36 epochs, AdamW 4e-4, norms without decay, 4 images a process; the
# number of processes is not published. The weights are on Google Drive: download them by hand.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/coco_3x.py"]

model = dict(
    data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3),
    backbone=dict(
        type="RepLKNet",
        variant="replknet_xl",
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-XL_MegData73M_pretrain.pth"),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
train_dataloader = dict(batch_size=4)
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
