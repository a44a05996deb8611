# The built-in scenes of digits, for detection and segmentation; vision.openmmlab.demo draws them at the first use.
train_dataloader = dict(num_workers=2, persistent_workers=True, dataset=dict(data_root="data/digit_scenes/"))
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(data_root="data/digit_scenes/"),
)
test_dataloader = val_dataloader
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
