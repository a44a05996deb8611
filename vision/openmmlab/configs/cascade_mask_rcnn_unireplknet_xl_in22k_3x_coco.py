# UniRepLKNet-XL, ImageNet-22K weights; settings of the official config, which does not say whether its weights were
# fine-tuned on 1K; here they were not.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/coco_3x.py"]

model = dict(
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_xl",
        drop_path_rate=0.7,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_xl_in22k_pretrain.pth",
        ),
    ),
    neck=dict(in_channels=[256, 512, 1024, 2048]),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.7, num_layers=12))
custom_hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=1e-4, gamma=2000, update_buffers=True, priority=49)
]
