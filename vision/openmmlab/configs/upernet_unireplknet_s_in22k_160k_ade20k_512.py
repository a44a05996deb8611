# UniRepLKNet-S, ImageNet-22K weights fine-tuned on 1K at 384; settings of the official config.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_512.py", "./_base_/segmentation_160k.py"]

model = dict(
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_s",
        drop_path_rate=0.3,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained", checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_s_in22k_to_in1k_384_acc86.44.pth"
        ),
    ),
    decode_head=dict(in_channels=[96, 192, 384, 768]),
    auxiliary_head=dict(in_channels=384),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.9))
