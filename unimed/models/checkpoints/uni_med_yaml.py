"""A training YAML of the published Uni-Med to a config of this project; `docs/uni_med.md` shows the table."""

from __future__ import annotations

import pprint
from collections.abc import Sequence
from pathlib import Path

from unimed.files import write_atomic
from unimed.models.checkpoints.reading import CheckpointError, ConversionReport

CONNECTOR = (
    "has_moe", "projector_type", "num_experts", "resample_method", "resample_rate", "router_method", "router_type",
    "sparse_topk", "num_task_tokens", "task_token_c",
)  # fmt: skip
#: Values the published code takes for keys that are not in the YAML.
DEFAULTS = {
    "model": {"resample_rate": 4, "resample_method": "projection", "num_experts": 3, "router_type": "soft",
              "router_method": "router_task_token", "sparse_topk": 2, "num_task_tokens": 10, "task_token_c": 768,
              "sft_type": "lora", "lora_r": 8, "lora_alpha": 16, "lora_target_modules": ["all"], "max_txt_len": 300,
              "end_sym": "\n", "max_context_len": 3800, "chat_template": False, "freeze_vit": True},
    "run": {"init_lr": 1e-5, "min_lr": 1e-7, "warmup_steps": 0, "weight_decay": 0.05, "beta2": 0.999, "max_epoch": 1,
            "iters_per_epoch": 10000, "num_workers": 6, "accum_grad_iters": 1, "log_freq": 50, "seed": 42,
            "amp": False, "lr_sched": "linear_warmup_cosine_lr"},
}  # fmt: skip
#: Keys without a place here, and why.
DROPPED = {
    "model.arch": "the task says it", "model.model_type": "one kind only", "model.vit_model": "eva_clip_g only",
    "model.vit_precision": "precision holds for the whole model", "model.drop_path_rate": "the encoder is frozen",
    "model.use_grad_checkpoint": "a frozen encoder needs none", "model.low_resource": "never worked",
    "model.llm_model_name": "the folder says it", "model.prompt_template": "the [INST] template is built in",
    "run.task": "one task", "run.runner": "one runner", "run.warmup_lr": "warm-up begins near 0",
    "run.lr_decay_rate": "step schedule: give schedule=dict(type='multistep', milestones=..., gamma=...)",
    "run.evaluate": "tools/test.py", "run.train_splits": "split of each data set", "run.valid_splits": "val_data",
    "run.test_splits": "test_data: all ten", "run.use_dist_eval_sampler": "always", "run.device": "device is found",
    "run.world_size": "tools/dist.sh", "run.dist_url": "tools/dist.sh", "run.distributed": "tools/dist.sh",
    "run.wandb_log": "log=dict(to=[...])", "run.job_name": "work_dir", "run.resume_ckpt_path": "--resume",
}  # fmt: skip
#: Data set of the YAML -> (class, arguments with the paths a user has to check).
DATASETS = {
    "medqa_en": ("MedQADataset", {"root": "MedQA"}),
    "pubmedqa": ("PubMedQADataset", {"root": "PubMedQA"}),
    "slakevqa_en": ("SlakeVQADataset", {"root": "Slake-VQA"}),
    "path_vqa": ("PathVQADataset", {"annotations": "Path-VQA/qas/train_vqa.pkl", "image_root": "Path-VQA/images"}),
    "ref_slake": ("SlakeBoxDataset", {"root": "Slake-VQA", "task": "refer"}),
    "invref_slake": ("SlakeBoxDataset", {"root": "Slake-VQA", "task": "identify"}),
    "ref_sa_med": ("SAMedBoxDataset", {"region_dir": "SA-Med2D-20M/regions_small_train",
                                       "image_dir": "SA-Med2D-20M/images_small_train", "task": "refer"}),
    "invref_sa_med": ("SAMedBoxDataset", {"region_dir": "SA-Med2D-20M/regions_small_train",
                                          "image_dir": "SA-Med2D-20M/images_small_train", "task": "identify"}),
    "medpix_single": ("MedPixDataset", {"table": "MedPix/data_csv/MedPix_single_train.csv",
                                        "image_dir": "MedPix/images"}),
    "mimic_caption": ("MimicReportDataset", {"annotations": "MIMIC/annotation.json", "image_root": "MIMIC-CXR-JPG"}),
    "medmnist_2d_small": ("MedMnistDataset", {"path": "MedMNIST/dermamnist_224.npz"}),
}  # fmt: skip
#: What has numbers in the paper, and the files of its test split where they differ from those of the training.
BENCHMARKS = (
    "slakevqa_en", "path_vqa", "ref_slake", "ref_sa_med", "invref_slake", "invref_sa_med", "medpix_single",
    "mimic_caption", "medmnist_2d_derma", "medmnist_2d_organs",
)  # fmt: skip
_SA_MED_TEST = {
    "region_dir": "SA-Med2D-20M/regions_small_test",
    "image_dir": "SA-Med2D-20M/images_small_test",
}
TEST_PATHS = {
    "path_vqa": {"annotations": "Path-VQA/qas/test_vqa.pkl"},
    "ref_sa_med": _SA_MED_TEST,
    "invref_sa_med": _SA_MED_TEST,
    "medpix_single": {"table": "MedPix/data_csv/MedPix_single_test.csv"},
    "medmnist_2d_organs": {"path": "MedMNIST/organsmnist_224.npz"},
}


def recognises(path: Path) -> bool:
    """A YAML file whose model is `uni_med`."""
    path = Path(path)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return False
    try:
        return (_read(path).get("model") or {}).get("arch") == "uni_med"
    except CheckpointError:
        return False


def add_arguments(parser) -> None:
    """Paths that the YAML does not know or that differ here."""
    parser.add_argument("--llama", help="Hugging Face folder of the language model (default: as in the YAML)")
    parser.add_argument("--eva", help="eva_vit_g.pth (default: pretrained/eva_vit_g.pth)")
    parser.add_argument("--data-root", help="folder below which the data sets lie (default: data/uni_med)")


def convert(
    source: Path,
    destination: Path,
    llama: str | None = None,
    eva: str | None = None,
    data_root: str = "data/uni_med",
    options: Sequence[str] = (),
) -> ConversionReport:
    """Write the config; every key of the YAML is in the report as mapped, dropped with its reason, or unexpected.

    Args:
        destination: a `.py` file, or a folder that gets `<name of the YAML>.py`.
        llama, eva: paths; the YAML's `llm_model_path` and `pretrained/eva_vit_g.pth` by default.
        data_root: folder below which the data sets lie; the YAML does not know them.
        options: "section.key=value" that replace values of the YAML, as the published `--options`.

    Raises:
        CheckpointError: no YAML of Uni-Med, an unknown data set (the known ones are listed), or no projector_type.
    """
    source, destination = Path(source), Path(destination)
    if destination.suffix != ".py":
        destination = destination / f"{source.stem}.py"
    values = _read(source)
    for option in options:
        _replace(values, option)
    model, run, datasets = (values.get(name) or {} for name in ("model", "run", "datasets"))
    if model.get("arch") != "uni_med":
        raise CheckpointError(f"{source}: model.arch is {model.get('arch')!r}, expected 'uni_med'")
    if "projector_type" not in model:
        raise CheckpointError(f"{source}: model.projector_type is missing; it has no default")
    report = ConversionReport("uni_med_yaml", str(source), str(destination))
    config = {
        "task": _task(model, llama, eva),
        "train_data": {"mixture": _mixture(source, datasets, data_root)},
        "test_data": {"mixture": _benchmarks(data_root)},
        "collate": {"type": "GroundedCollator"},
        **_run(run),
        "batch_size": max((int(entry.get("batch_size", 4)) for entry in datasets.values()), default=4),
        "hooks": [{"type": "RoutingHook", "interval": 500}],
        "checkpoint": {"interval": 5000, "keep": 3, "weights": "trainable"},
    }
    if model.get("ckpt"):
        report.notes.append(f"model.ckpt {model['ckpt']}: convert it with --from uni_med and set task.model to it")
    _account(report, values)
    text = [f'"""Uni-Med, converted from {source.name}. Check the paths of the data sets."""', ""]
    text += [f"{key} = {pprint.pformat(value, width=118, sort_dicts=False)}" for key, value in config.items()]
    write_atomic(destination, lambda path: Path(path).write_text("\n".join(text) + "\n", encoding="utf-8"))
    return report


def _replace(values: dict, option: str) -> None:
    """Set "run.init_lr=1e-5" in the values of a YAML."""
    import yaml

    name, equals, text = option.partition("=")
    *sections, key = name.split(".")
    if not equals or not sections or not key:
        raise CheckpointError(f"--options {option}: write SECTION.KEY=VALUE, e.g. run.init_lr=1e-5")
    for section in sections:
        values[section] = values.get(section) or {}
        values = values[section]
        if not isinstance(values, dict):
            raise CheckpointError(f"--options {option}: {section} is a value, no section")
    try:
        values[key] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckpointError(f"--options {option}: {text!r} is no YAML value") from error


def _read(path: Path) -> dict:
    import yaml

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    return values if isinstance(values, dict) else {}


def _task(model: dict, llama, eva) -> dict:
    full = DEFAULTS["model"] | model
    connector = {key: full[key] for key in CONNECTOR if key in full}
    parts = {
        "llama": llama or model.get("llm_model_path") or "pretrained/Llama-2-7b-chat-hf",
        "eva": eva or "pretrained/eva_vit_g.pth",
        "sft_type": full["sft_type"],
        "freeze_vision": bool(full["freeze_vit"]),
        "chat_template": bool(full["chat_template"]),
        "end_symbol": full["end_sym"],
        "max_answer_tokens": int(full["max_txt_len"]),
        "max_prompt_tokens": int(full["max_context_len"]),
    }
    if "image_size" in model:
        parts["vision"] = {"image_size": int(model["image_size"])}
    if full["sft_type"] == "lora":
        parts["lora"] = {"r": int(full["lora_r"]), "lora_alpha": int(full["lora_alpha"])}
        if list(full["lora_target_modules"]) != ["all"]:
            parts["lora"]["target_modules"] = list(full["lora_target_modules"])
    task = {"type": "GroundingTask", "model": {"type": "UniMed", **parts}, "connector": connector}
    return task | {"scores": "benchmarks", "max_new_tokens": 100}


def _mixture(source: Path, datasets: dict, root: str) -> list[dict]:
    entries = []
    for name, options in datasets.items():
        if name not in DATASETS:
            raise CheckpointError(f"{source}: data set {name!r} is not known; known are {', '.join(DATASETS)}")
        kind, arguments = DATASETS[name]
        given = {key: value if key == "task" else f"{root}/{value}" for key, value in arguments.items()}
        weight = float(options.get("sample_ratio", 1.0))
        if name != "medmnist_2d_small":
            entries.append({"dataset": {"type": kind, **given}, "weight": weight})
            continue
        # The published builder joins both files; shares follow their sizes, 7007 and 13932 images.
        for file, size in (("dermamnist", 7007), ("organsmnist", 13932)):
            dataset = {"type": kind, "path": f"{root}/MedMNIST/{file}_224.npz"}
            entries.append({"dataset": dataset, "weight": round(weight * size / 20939, 4)})
    return entries


def _benchmarks(root: str) -> list[dict]:
    """The ten published benchmarks, of the test split of the data sets in `DATASETS`; a trainer's YAML names none."""
    entries = []
    for name in BENCHMARKS:
        kind, arguments = DATASETS["medmnist_2d_small" if name.startswith("medmnist") else name]
        arguments = arguments | TEST_PATHS.get(name, {})
        given = {key: value if key == "task" else f"{root}/{value}" for key, value in arguments.items()}
        entries.append({"dataset": {"type": kind, "split": "test", **given}})
    return entries


def _run(run: dict) -> dict:
    full = DEFAULTS["run"] | run
    rate = float(full["init_lr"])
    cosine = full["lr_sched"] == "linear_warmup_cosine_lr"
    schedule = {"type": "cosine" if cosine else "constant", "warmup": int(full["warmup_steps"])}
    if cosine:
        schedule["min_ratio"] = float(full["min_lr"]) / rate
    return {
        "optimizer": {"type": "AdamW", "lr": rate, "betas": (0.9, float(full["beta2"])),
                      "weight_decay": float(full["weight_decay"])},
        "schedule": schedule,
        "accumulate": int(full["accum_grad_iters"]),
        "max_steps": int(full["max_epoch"]) * int(full["iters_per_epoch"]),
        "precision": "fp16" if full["amp"] else "fp32",
        "num_workers": int(full["num_workers"]),
        "log": {"interval": int(full["log_freq"])},
        "seed": int(full["seed"]),
        "work_dir": str(full.get("output_dir") or "work_dirs/uni_med"),
    }  # fmt: skip


#: Keys that have a place in the config.
MAPPED = {
    "model": {*CONNECTOR, "image_size", "freeze_vit", "llm_model_path", "sft_type", "lora_r", "lora_alpha", "ckpt",
              "lora_target_modules", "chat_template", "max_txt_len", "end_sym", "max_context_len"},
    "run": {*DEFAULTS["run"], "output_dir"},
    "datasets": {"batch_size", "sample_ratio"},
}  # fmt: skip


def _account(report: ConversionReport, values: dict) -> None:
    for section, keys in values.items():
        if section not in MAPPED:
            report.unexpected.append(section)
            continue
        for key, value in (keys or {}).items():
            inner = [key] if section != "datasets" else [f"{key}.{name}" for name in (value or {})]
            for name in inner:
                if name.split(".")[-1] in MAPPED[section]:
                    report.mapped += 1
                elif section == "datasets" and name.split(".")[-1] in ("vis_processor", "text_processor", "type"):
                    report.dropped[f"datasets.{name}"] = "pictures and texts have one form (compat cuts texts)"
                elif f"{section}.{name}" in DROPPED:
                    report.dropped[f"{section}.{name}"] = DROPPED[f"{section}.{name}"]
                elif name == "use_grad_checkpoint_llm":
                    report.dropped[f"{section}.{name}"] = "set gradient_checkpointing = True"
                else:
                    report.unexpected.append(f"{section}.{name}")
