# UniRepLKNet-L, ImageNet-22K weights fine-tuned on 1K at 384; settings of the official config.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640.py", "./_base_/segmentation_160k.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_l",
        drop_path_rate=0.4,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained", checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_l_in22k_to_in1k_384_acc87.88.pth"
        ),
    ),
    decode_head=dict(in_channels=[192, 384, 768, 1536]),
    auxiliary_head=dict(in_channels=768),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.85))
