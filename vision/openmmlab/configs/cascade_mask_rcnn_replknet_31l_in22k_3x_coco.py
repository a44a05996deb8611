# RepLKNet-31L, ImageNet-22K weights, as published: 36 epochs, AdamW 4e-4, norms without decay, 1 image a process; the
# number of processes is not published. The weights are on Google Drive: download them by hand.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/coco_3x.py"]

model = dict(
    backbone=dict(
        type="RepLKNet",
        variant="replknet_31l",
        drop_path_rate=0.7,
        with_cp=True,
        init_cfg=dict(type="Pretrained", checkpoint="weights/RepLKNet-31L_ImageNet-22K.pth"),
    ),
    neck=dict(in_channels=[192, 384, 768, 1536]),
)
train_dataloader = dict(batch_size=1)
optim_wrapper = dict(optimizer=dict(lr=4e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
