# ADE20K, 150 classes, crops of 640 pixels from smaller images. Label 0 of the files means 'other' and is ignored. As
# by RepLKNet's authors, test images are not stretched.
_base_ = ["./ade20k.py"]
from vision.openmmlab.pipelines import segmentation_test, segmentation_train, segmentation_views

__labels = dict(type="LoadAnnotations", reduce_zero_label=True)
train_dataloader = dict(dataset=dict(pipeline=segmentation_train((2048, 512), (640, 640), __labels)))
val_dataloader = dict(dataset=dict(pipeline=segmentation_test((2048, 512), __labels)))
test_dataloader = val_dataloader
tta_model = dict(type="SegTTAModel")
tta_pipeline = segmentation_views((2048, 512), __labels)
