# Mask R-CNN, small enough for a CPU, on the built-in scenes of digits (96 x 96 pixels).
_base_ = ["./_base_/digit_scenes_det.py", "./_base_/runtime.py"]

__nms = dict(type="nms", iou_threshold=0.7)
__norm = dict(type="BN", requires_grad=True)
__coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4)
__classify = dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0)
__assign = dict(type="MaxIoUAssigner", match_low_quality=True)
__sample = dict(type="RandomSampler", neg_pos_ub=-1)

model = dict(
    type="MaskRCNN",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="UniRepLKNet",
        variant="unireplknet_a",
        depths=(1, 1, 3, 1),
        drop_path_rate=0.05,
        layer_scale_init_value=0.0,  # off: a small initial value is for long runs
    ),
    neck=dict(type="FPN", in_channels=[40, 80, 160, 320], out_channels=64, num_outs=4, norm_cfg=__norm),
    rpn_head=dict(
        type="RPNHead",
        in_channels=64,
        feat_channels=64,
        anchor_generator=dict(type="AnchorGenerator", scales=[4], ratios=[0.7, 1.4], strides=[4, 8, 16, 32]),
        bbox_coder=dict(target_stds=[1.0] * 4, **__coder),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="L1Loss", loss_weight=1.0),
    ),
    roi_head=dict(
        type="StandardRoIHead",
        bbox_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=64,
            featmap_strides=[4, 8],
            finest_scale=28,
        ),
        bbox_head=dict(
            type="Shared2FCBBoxHead",
            in_channels=64,
            fc_out_channels=256,
            roi_feat_size=7,
            num_classes=10,
            bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2], **__coder),
            reg_class_agnostic=True,
            loss_cls=__classify,
            loss_bbox=dict(type="L1Loss", loss_weight=1.0),
        ),
        mask_roi_extractor=dict(
            type="SingleRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=14, sampling_ratio=2),
            out_channels=64,
            featmap_strides=[4, 8],
            finest_scale=28,
        ),
        mask_head=dict(
            type="FCNMaskHead",
            num_convs=2,
            norm_cfg=__norm,
            in_channels=64,
            conv_out_channels=64,
            num_classes=10,
            class_agnostic=True,
            loss_mask=dict(type="CrossEntropyLoss", use_mask=True, loss_weight=1.0),
        ),
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3, **__assign),
            sampler=dict(num=128, pos_fraction=0.5, add_gt_as_proposals=False, **__sample),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(nms_pre=500, max_per_img=200, nms=__nms, min_bbox_size=0),
        rcnn=dict(
            assigner=dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, **__assign),
            sampler=dict(num=32, pos_fraction=0.25, add_gt_as_proposals=True, **__sample),
            mask_size=28,
            pos_weight=-1,
            debug=False,
        ),
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=100, nms=__nms, min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=30, mask_thr_binary=0.5),
    ),
)
