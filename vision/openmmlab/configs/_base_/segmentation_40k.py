# RepLKNet's schedule for ADE20K: 40,000 iterations over 64 processes, otherwise that of 160,000.
_base_ = ["./segmentation_160k.py"]

train_cfg = dict(max_iters=40_000, val_interval=4_000)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=1500, end=40_000),
]
default_hooks = dict(checkpoint=dict(interval=4_000))
