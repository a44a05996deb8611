# UniRepLKNet-T, ImageNet-1K weights; settings of the official config. T has six groups in its third stage; the authors
# still count twelve layers.
_base_ = ["./_base_/cascade_mask_rcnn.py", "./_base_/coco_3x.py"]

model = dict(
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_t",
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_t_in1k_224_acc83.21.pth",
        ),
    ),
    neck=dict(in_channels=[80, 160, 320, 640]),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.8, num_layers=12))
