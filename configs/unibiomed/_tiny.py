"""The code of the big configs on one CPU core: a random InternVL and SAM 2 of a million parameters, a drawn tree.

python tools/prepare_data.py biomed-shapes
bash tools/dist.sh train configs/unibiomed/_tiny.py 1
"""

_base_ = "_base.py"

_tree = "data/biomed_shapes"


def shapes(reader, folder, split="train", **arguments):
    drawn = dict(prompt_style="random") if split == "train" else {}
    return dict(dataset=dict(type=reader, root=folder, split=split, **drawn, **arguments))


task = dict(
    model=dict(
        type="TinyGroundedMLLM",
        texts=[
            "Please segment disc in drawn image. bright square in drawn image. It is [SEG]. Sure, [SEG].",
            "What is the <region> in the picture? Answer with interleaved segmentation masks.",
            "a bright disc on the left side of a drawn image. There is no square here. nothing is drawn.",
            "<p> bright disc. a bright disc is drawn. </p> [SEG] no findings. disc in drawn volume",
        ],
    ),
    lora=dict(r=64, lora_alpha=128, lora_dropout=0.0),
    # A vision encoder that nobody trained sees nothing, so here it is trained.
    freeze=["mask_head.sam.memory_attention", "mask_head.sam.memory_encoder", "mask_head.sam.object_pointer_proj"],
    mask_points=512,
    max_new_tokens=48,
)
train_data = dict(
    mixture=[
        shapes("BiomedDataset", f"{_tree}/Shapes", sentence="random", min_samples=20),
        shapes("BiomedDataset", f"{_tree}/Shapes", kind="region", region_style="box"),
        shapes("BiomedDataset", f"{_tree}/Shapes", kind="region", region_style="tokens"),
        shapes("BiomedDataset", f"{_tree}/Disease/Disc", kind="disease"),
        shapes("BiomedDataset", f"{_tree}/Disease/Square", kind="disease"),
        shapes("RadGenomeDataset", f"{_tree}/RadGenome", kind="vqa"),
        shapes("RadGenomeDataset", f"{_tree}/RadGenome", kind="report"),
        shapes("MedTrinityDataset", f"{_tree}/MedTrinity"),
        shapes("BiomedVolumeDataset", f"{_tree}/3D/Shapes", slices=4, foreground_fraction=0.7, repeats=2),
    ],
    group_by_length=2,
)
test_data = dict(
    mixture=[
        shapes("BiomedDataset", f"{_tree}/Shapes", "test"),
        shapes("BiomedDataset", f"{_tree}/Disease/Disc", "test", kind="disease"),
        shapes("RadGenomeDataset", f"{_tree}/RadGenome", "test", kind="report"),
        shapes("MedTrinityDataset", f"{_tree}/MedTrinity", "test"),
        shapes("BiomedVolumeDataset", f"{_tree}/3D/Shapes", "test"),
    ]
)
collate = dict(mask_target_size=64)
optimizer = dict(lr=3e-3)
batch_size = 4
accumulate = 2
max_steps = 240
precision = "fp32"
num_workers = 0
checkpoint = dict(interval=80, keep=2)
log = dict(interval=10)
test_batch_size = 8
seed = 0
work_dir = "work_dirs/unibiomed_tiny"
