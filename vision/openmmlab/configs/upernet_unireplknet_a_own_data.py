# UPerNet, small enough for a CPU and for small sets from random weights: seg.yaml, on your own label maps.
_base_ = ["./_base_/own_data_seg.py", "./_base_/runtime.py"]

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_a",
        drop_path_rate=0.05,
        layer_scale_init_value=1.0,  # random weights learn faster than with the published 1e-6
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_a_in1k_224_acc77.03.pth",
        ),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[40, 80, 160, 320],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3),
        channels=64,
        num_classes=11,
        dropout_ratio=0.0,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        init_cfg=dict(type="Normal", std=0.1, override=dict(name="conv_seg")),
        loss_decode=dict(type="PixelCrossEntropy", class_weight=None),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
