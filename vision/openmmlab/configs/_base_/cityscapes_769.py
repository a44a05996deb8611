# Cityscapes, 19 classes, crops of 769 pixels.
_base_ = ["./cityscapes.py"]
from vision.openmmlab.pipelines import segmentation_test, segmentation_train, segmentation_views

__labels = dict(type="LoadAnnotations")
train_dataloader = dict(dataset=dict(pipeline=segmentation_train((2049, 1025), (769, 769), __labels)))
val_dataloader = dict(dataset=dict(pipeline=segmentation_test((2049, 1025), __labels)))
test_dataloader = val_dataloader
tta_model = dict(type="SegTTAModel")
tta_pipeline = segmentation_views((2049, 1025), __labels)
