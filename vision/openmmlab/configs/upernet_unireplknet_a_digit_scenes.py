# UPerNet, small enough for a CPU, on the built-in scenes of digits (96 x 96 pixels).
_base_ = ["./_base_/digit_scenes_seg.py", "./_base_/runtime.py"]

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(96, 96),
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_a",
        depths=(1, 1, 3, 1),
        drop_path_rate=0.05,
        layer_scale_init_value=0.0,  # off: a small initial value is for long runs
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
        loss_decode=dict(type="CrossEntropyLoss", class_weight=[0.1] + [1.0] * 10),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
