# What all configs share: LarKit's registration, TF32 as in UniRepLKNet's training scripts, batch norms over all
# processes, pictures.
custom_imports = dict(imports=["vision.openmmlab"], allow_failed_imports=False)
env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
sync_bn = "torch"  # batch norms over all processes; MMEngine does not change them in a run of one process
vis_backends = [dict(type="LocalVisBackend")]
default_hooks = dict(tf32=dict(type="AllowTF32"))
