# Your own boxes: the pipelines of det.yaml. LabeledBoxes replaces data, size and number of classes by those of your
# files; without files, these are the built-in scenes.
_base_ = "./digit_scenes_det.py"
from vision.openmmlab.pipelines import detection_test, detection_train

own_data = True
train_dataloader = dict(dataset=dict(pipeline=detection_train((96, 96), flip=False)))
val_dataloader = dict(dataset=dict(pipeline=detection_test((96, 96))))
test_dataloader = dict(dataset=dict(pipeline=detection_test((96, 96))))
val_evaluator = dict(metric="bbox")
test_evaluator = dict(metric="bbox")
