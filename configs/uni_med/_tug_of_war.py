"""Do tasks pull in different directions? `_tiny` with the hook that compares gradients.

Without experts: `--cfg-options task.connector.projector_type=mlp2x_gelu`.
"""

_base_ = ["_tiny.py"]
hooks = [
    dict(type="RoutingHook", interval=50),
    dict(type="GradientConflictHook", interval=50, modules=["connector", "backbone.lm", "backbone.visual_encoder"]),
]
max_steps = 150
work_dir = "work_dirs/uni_med_tug_of_war"
