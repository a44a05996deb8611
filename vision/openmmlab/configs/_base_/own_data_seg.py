# Your own label maps: the pipelines of seg.yaml. LabeledMasks replaces data, size and number of classes by those of
# your files; without files, these are the built-in scenes.
_base_ = "./digit_scenes_seg.py"
from vision.openmmlab.pipelines import own_segmentation_train, segmentation_test

__labels = dict(type="LoadAnnotations")
own_data = True
train_dataloader = dict(dataset=dict(pipeline=own_segmentation_train((96, 96), __labels, flip=False)))
val_dataloader = dict(dataset=dict(pipeline=segmentation_test((96, 96), __labels)))
test_dataloader = dict(dataset=dict(pipeline=segmentation_test((96, 96), __labels)))
