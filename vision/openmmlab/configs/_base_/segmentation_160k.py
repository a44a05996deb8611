# 160,000 iterations of batch 16 over 8 processes; AdamW with a rate of 1e-4 that falls linearly to 0, times a linear
# warm-up of 1,500 iterations; no clipping.
_base_ = ["./runtime.py"]
default_scope = "mmseg"
train_cfg = dict(type="IterBasedTrainLoop", max_iters=160_000, val_interval=4_000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(type="OptimWrapper", optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=160_000),
]
default_hooks = dict(
    checkpoint=dict(type="CheckpointHook", by_epoch=False, interval=4_000, max_keep_ckpts=20, save_best="mIoU")
)
log_processor = dict(by_epoch=False)
visualizer = dict(type="SegLocalVisualizer", vis_backends=[dict(type="LocalVisBackend")])
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator
