# UniRepLKNet-XL, ImageNet-22K weights fine-tuned on 1K at 384. The authors published no config for XL on ADE20K: the
# settings are those of L.
_base_ = ["./_base_/upernet.py", "./_base_/ade20k_640.py", "./_base_/segmentation_160k.py"]

model = dict(
    data_preprocessor=dict(size=(640, 640)),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_xl",
        drop_path_rate=0.4,
        with_cp=True,
        init_cfg=dict(
            type="Pretrained", checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_xl_in22k_to_in1k_384_acc87.96.pth"
        ),
    ),
    decode_head=dict(in_channels=[256, 512, 1024, 2048]),
    auxiliary_head=dict(in_channels=1024),
)
optim_wrapper = dict(constructor="LarKLayerDecay", paramwise_cfg=dict(decay_rate=0.85))
