# UniRepLKNet-T, ImageNet-1K weights; settings of the official config.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_512.py", "./_base_/segmentation_160k.py"]

model = dict(
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_t",
        drop_path_rate=0.2,
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_t_in1k_224_acc83.21.pth",
        ),
    ),
    decode_head=dict(in_channels=[80, 160, 320, 640]),
    auxiliary_head=dict(in_channels=320),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=1.0))
