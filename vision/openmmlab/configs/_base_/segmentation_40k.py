# RepLKNet-31B on ADE20K: 40,000 iterations of 128 crops over 64 processes; AdamW with a rate of 2e-4 that falls
# linearly to 0, times a linear warm-up of 400 iterations; norms without decay, no clipping.
_base_ = ["./segmentation_160k.py"]

train_cfg = dict(max_iters=40_000, val_interval=2_000)
optim_wrapper = dict(optimizer=dict(lr=2e-4), paramwise_cfg=dict(norm_decay_mult=0.0))
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=400),
    dict(type="PolyLR", eta_min=0.0, power=1.0, by_epoch=False, begin=0, end=40_000),
]
default_hooks = dict(checkpoint=dict(interval=2_000))
