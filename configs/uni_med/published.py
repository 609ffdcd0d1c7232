"""Uni-Med as its YAML trains it: EVA-ViT-g, five experts, Llama-2-7b with LoRA, eleven data sets, 50000 x 4 samples.

Put `Llama-2-7b-chat-hf` and `eva_vit_g.pth` into `pretrained/` and the data below `data/uni_med` (docs/uni_med.md).
Unlike the published trainer a batch mixes data sets; per step the fractions are the same.
"""

_base_ = "../_base_/gpu_run.py"

_root = "data/uni_med"
_shared = dict(compat=None)


def part(kind, weight, **arguments):
    return dict(dataset=dict(type=kind, **arguments, **_shared), weight=weight)


task = dict(
    type="GroundingTask",
    model=dict(
        type="UniMed",
        llama="pretrained/Llama-2-7b-chat-hf",
        eva="pretrained/eva_vit_g.pth",
        sft_type="lora",
        lora=dict(r=8, lora_alpha=16),
    ),
    connector=dict(
        projector_type="moe_mlp",
        num_experts=5,
        resample_method="projection",
        resample_rate=4,
        router_method="router_task_token",
        router_type="soft",
        num_task_tokens=1,
        task_token_c=5632,
    ),
    reduction="tokens",
    scores="benchmarks",
    max_new_tokens=100,
)
train_data = dict(
    mixture=[
        part("MedQADataset", 2.0, root=f"{_root}/MedQA"),
        part("PubMedQADataset", 2.0, root=f"{_root}/PubMedQA"),
        part("SlakeVQADataset", 5.0, root=f"{_root}/Slake-VQA"),
        part(
            "PathVQADataset",
            5.0,
            annotations=f"{_root}/Path-VQA/qas/train_vqa.pkl",
            image_root=f"{_root}/Path-VQA/images",
        ),
        part("SlakeBoxDataset", 4.0, root=f"{_root}/Slake-VQA", task="refer"),
        part("SlakeBoxDataset", 4.0, root=f"{_root}/Slake-VQA", task="identify"),
        part(
            "SAMedBoxDataset",
            4.0,
            region_dir=f"{_root}/SA-Med2D-20M/regions_small_train",
            image_dir=f"{_root}/SA-Med2D-20M/images_small_train",
            task="refer",
        ),
        part(
            "SAMedBoxDataset",
            4.0,
            region_dir=f"{_root}/SA-Med2D-20M/regions_small_train",
            image_dir=f"{_root}/SA-Med2D-20M/images_small_train",
            task="identify",
        ),
        part(
            "MedPixDataset",
            8.0,
            table=f"{_root}/MedPix/data_csv/MedPix_single_train.csv",
            image_dir=f"{_root}/MedPix/images",
        ),
        part(
            "MimicReportDataset",
            8.0,
            annotations=f"{_root}/MIMIC/annotation.json",
            image_root=f"{_root}/MIMIC-CXR-JPG",
        ),
        part("MedMnistDataset", 1.34, path=f"{_root}/MedMNIST/dermamnist_224.npz"),
        part("MedMnistDataset", 2.66, path=f"{_root}/MedMNIST/organsmnist_224.npz"),
    ]
)


def benchmark(kind, **arguments):
    return dict(dataset=dict(type=kind, split="test", **arguments, **_shared))


# The ten published benchmarks. All of them have to be there; for a part of them say which:
# --cfg-options test_data.mixture="[...]".
test_data = dict(
    mixture=[
        benchmark("SlakeVQADataset", root=f"{_root}/Slake-VQA"),
        benchmark(
            "PathVQADataset", annotations=f"{_root}/Path-VQA/qas/test_vqa.pkl", image_root=f"{_root}/Path-VQA/images"
        ),
        benchmark("SlakeBoxDataset", root=f"{_root}/Slake-VQA", task="refer"),
        benchmark(
            "SAMedBoxDataset",
            region_dir=f"{_root}/SA-Med2D-20M/regions_small_test",
            image_dir=f"{_root}/SA-Med2D-20M/images_small_test",
            task="refer",
        ),
        benchmark("SlakeBoxDataset", root=f"{_root}/Slake-VQA", task="identify"),
        benchmark(
            "SAMedBoxDataset",
            region_dir=f"{_root}/SA-Med2D-20M/regions_small_test",
            image_dir=f"{_root}/SA-Med2D-20M/images_small_test",
            task="identify",
        ),
        benchmark(
            "MedPixDataset",
            table=f"{_root}/MedPix/data_csv/MedPix_single_test.csv",
            image_dir=f"{_root}/MedPix/images",
        ),
        benchmark(
            "MimicReportDataset", annotations=f"{_root}/MIMIC/annotation.json", image_root=f"{_root}/MIMIC-CXR-JPG"
        ),
        benchmark("MedMnistDataset", path=f"{_root}/MedMNIST/dermamnist_224.npz"),
        benchmark("MedMnistDataset", path=f"{_root}/MedMNIST/organsmnist_224.npz"),
    ]
)
collate = dict(type="GroundedCollator")
optimizer = dict(lr=1e-5, betas=(0.9, 0.999), weight_decay=0.05)
schedule = dict(type="cosine", warmup=5000, min_ratio=0.01)
batch_size = 4
max_steps = 50000
num_workers = 6
hooks = [dict(type="RoutingHook", interval=500)]
checkpoint = dict(interval=5000, keep=3, weights="trainable")
seed = 42
work_dir = "work_dirs/uni_med"
