# UPerNet with an auxiliary head on the third stage. Training images are padded to the crop, 512 unless a config says
# otherwise; test images are whole and not padded.
__norm = dict(type="SyncBN", requires_grad=True)
__shared = dict(num_classes=150, norm_cfg=__norm, align_corners=False, dropout_ratio=0.1)

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=(512, 512),
    ),
    decode_head=dict(
        type="UPerHead",
        in_channels=[96, 192, 384, 768],
        in_index=[0, 1, 2, 3],
        pool_scales=(1, 2, 3, 6),
        channels=512,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
        **__shared,
    ),
    auxiliary_head=dict(
        type="FCNHead",
        in_channels=384,
        in_index=2,
        channels=256,
        num_convs=1,
        concat_input=False,
        loss_decode=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=0.4),
        **__shared,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)
