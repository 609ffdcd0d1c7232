"""Volumes of the sample set: a decoder that reads slices together, the same one slice by slice, and slice propagation.

    unimed grid configs/unified/_volumes.py --over decoder=volumetric,slices,memory --seeds 0 1 2 --out runs/volumes \\
        --metric dice --kind instances

Four questions about three volumes are trained on; the seven findings of validation and test are scored by the protocol
of ReXGroundingCT. No choice is made on the validation volumes here, so that they can be tested on as well.
"""

from unimed.models.checkpoints.sam2 import sam2_video_config


def volumes(split, **arguments):
    return dict(type="RecordDataset", path="data/sample", split=split, tasks=["volume"], **arguments)


def memory():
    """SAM 2 with some thousand random weights; its memory carries masks from the five key slices to the others."""
    return sam2_video_config(
        16, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7], hidden_dim=64, image_size=128, memory_layers=1,
        memory_feed_forward=64, memory_dim=64, decoder_mlp=64, iou_hidden=32,
    ).to_dict()  # fmt: skip


task = dict(
    type="GroundingTask",
    model=dict(
        type="SmallGroundedMLLM", texts="data/sample/records/train.jsonl", hidden_dim=64, layers=2, heads=2,
        vision_grid=2, box_head=None,
        mask_config=dict(
            model_type="unimed_volumetric", image_size=64, widths=[8, 16, 32], prompt_width=32, window=16, boxes=False
        ),
    ),
    # Few pixels belong to a thing: by cross-entropy alone nothing is shown for a hundred steps.
    loss_weights=dict(dice=2.0, bce=1.0),
    scores="masks/rexgroundingct",
    max_new_tokens=24,
    batch_size=1,
)  # fmt: skip
# Neighboring slices, the same for every decoder.
train_data = volumes("train", slices=8, foreground_fraction=0.7, contiguous=True)
test_data = dict(mixture=[dict(dataset=volumes("val", to_uint8=True)), dict(dataset=volumes("test", to_uint8=True))])
# As many slices as it sees of a whole volume in the test.
collate = dict(type="GroundedCollator", language_frames=5)
optimizer = dict(type="AdamW", lr=1e-2, weight_decay=0.02)
schedule = dict(type="cosine", warmup=10)
batch_size = 2
max_steps = 60
clip = 1.0
checkpoint = dict(interval=60, keep=1)
log = dict(interval=20)
seed = 0
work_dir = "work_dirs/unified_volumes"

grid = dict(
    decoder=dict(
        volumetric={},
        # The same convolutions, each slice a volume of its own.
        slices={"task.model.mask_config.window": 1},
        memory={"task.model.mask_config": dict(_delete_=True, **memory())},
    )
)
