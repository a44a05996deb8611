# UniRepLKNet-S, ImageNet-1K weights; settings of the official config.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/coco_3x.py"]

model = dict(
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_s",
        drop_path_rate=0.5,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_s_in1k_224_acc83.91.pth",
        ),
    ),
    neck=dict(in_channels=[96, 192, 384, 768]),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.8, num_layers=12))
