# ADE20K, 150 classes, crops of 512 pixels. Label 0 of the files means 'other' and is ignored. As by UniRepLKNet's
# authors, test images are stretched to multiples of 32.
_base_ = ["./ade20k.py"]
from vision.openmmlab.pipelines import segmentation_test, segmentation_train, segmentation_views

__labels = dict(type="LoadAnnotations", reduce_zero_label=True)
train_dataloader = dict(dataset=dict(pipeline=segmentation_train((2048, 512), (512, 512), __labels)))
val_dataloader = dict(dataset=dict(pipeline=segmentation_test((2048, 512), __labels, multiple=32)))
test_dataloader = val_dataloader
tta_model = dict(type="SegTTAModel")
tta_pipeline = segmentation_views((2048, 512), __labels, multiple=32)
