# GFL, small enough for a CPU and for small sets from random weights: det.yaml, on your own boxes.
_base_ = ["./_base_/own_data_det.py", "./_base_/runtime.py"]

__norm = dict(type="BN", requires_grad=True)

model = dict(
    type="GFL",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_a",
        out_indices=(1, 2, 3),
        drop_path_rate=0.05,
        layer_scale_init_value=1.0,  # random weights learn faster than with the published 1e-6
        init_cfg=dict(
            type="Pretrained",
            checkpoint="hf-hub:DingXiaoH/UniRepLKNet/unireplknet_a_in1k_224_acc77.03.pth",
        ),
    ),
    neck=dict(type="FPN", in_channels=[80, 160, 320], out_channels=64, num_outs=3, norm_cfg=__norm),
    bbox_head=dict(
        type="GFLHead",
        num_classes=10,
        in_channels=64,
        feat_channels=64,
        stacked_convs=2,
        norm_cfg=dict(type="GN", num_groups=8, requires_grad=True),  # a batch norm would mix the levels' statistics
        anchor_generator=dict(
            type="AnchorGenerator", ratios=[1.0], octave_base_scale=4, scales_per_octave=1, strides=[8, 16, 32]
        ),
        loss_cls=dict(type="QualityFocalLoss", use_sigmoid=True, beta=2.0, loss_weight=1.0),
        loss_dfl=dict(type="DistributionFocalLoss", loss_weight=0.25),
        loss_bbox=dict(type="GIoULoss", loss_weight=2.0),
        reg_max=12,
    ),
    train_cfg=dict(assigner=dict(type="ATSSAssigner", topk=9), allowed_border=-1, pos_weight=-1, debug=False),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.02, nms=dict(type="nms", iou_threshold=0.6), max_per_img=100
    ),
)
