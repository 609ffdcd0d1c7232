"""A YAML with the keys of the published trainer becomes a config the engine accepts."""

from pathlib import Path

import pytest

from unimed.engine.config import load_config
from unimed.evaluation.benchmarks.uni_med import SETS
from unimed.models.checkpoints import uni_med_yaml
from unimed.models.checkpoints.reading import CheckpointError
from unimed.models.checkpoints.uni_med_yaml import BENCHMARKS

YAML = """
model:
  arch: uni_med
  image_size: 224
  freeze_vit: True
  vit_precision: fp16
  has_moe: True
  projector_type: moe_mlp
  num_experts: 5
  router_method: router_task_token
  router_type: soft
  num_task_tokens: 1
  task_token_c: 5632
  llm_model_path: "/models/llama"
  lora_r: 16
  chat_template: True
  max_txt_len: 1024
  end_sym: "</s>"
  num_expert: 7
datasets:
  medqa_en: {batch_size: 4, sample_ratio: 2, text_processor: {train: {name: blip_caption_new}}}
  ref_slake: {batch_size: 4, sample_ratio: 4}
  medmnist_2d_small: {batch_size: 4, sample_ratio: 4}
run:
  lr_sched: linear_warmup_cosine_lr
  init_lr: 1e-5
  min_lr: 1e-7
  warmup_steps: 5000
  max_epoch: 2
  iters_per_epoch: 50000
  amp: True
  wandb_log: False
  output_dir: out
"""


def test_every_key_has_its_place(tmp_path):
    source = tmp_path / "train.yaml"
    source.write_text(YAML)
    assert uni_med_yaml.recognises(source)
    report = uni_med_yaml.convert(source, tmp_path / "out")
    config = load_config(tmp_path / "out" / "train.py")
    assert report.unexpected == ["model.num_expert"]
    assert report.dropped["run.wandb_log"]
    assert "datasets.medqa_en.text_processor" in report.dropped
    model = config["task"]["model"]
    assert (model["llama"], model["lora"]["r"], model["vision"]["image_size"]) == ("/models/llama", 16, 224)
    assert config["task"]["connector"]["num_experts"] == 5
    assert config["max_steps"] == 100000
    assert config["schedule"]["min_ratio"] == pytest.approx(0.01)
    assert (config["precision"], config["work_dir"], config["batch_size"]) == ("fp16", "out", 4)
    tested = [entry["dataset"] for entry in config["test_data"]["mixture"]]
    assert set(BENCHMARKS) == set(SETS) and len(tested) == 10 and all(entry["split"] == "test" for entry in tested)
    shipped = load_config(Path(__file__).parents[3] / "configs" / "uni_med" / "published.py")["test_data"]["mixture"]
    known = [{k: v for k, v in entry["dataset"].items() if k != "compat"} for entry in shipped]
    assert known == [dict(entry) for entry in tested], "the shipped config and a converted one test the same"
    weights = [entry["weight"] for entry in config["train_data"]["mixture"]]
    assert sum(weights) == pytest.approx(10, abs=1e-3)


def test_what_cannot_be_converted_is_named(tmp_path):
    source = tmp_path / "train.yaml"
    source.write_text(YAML.replace("ref_slake", "ref_coco"))
    with pytest.raises(CheckpointError, match="'ref_coco' is not known; known are medqa_en"):
        uni_med_yaml.convert(source, tmp_path / "out")
    source.write_text(YAML.replace("arch: uni_med", "arch: minigpt"))
    assert not uni_med_yaml.recognises(source)
    with pytest.raises(CheckpointError, match="minigpt"):
        uni_med_yaml.convert(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_shipped_configs_are_accepted():
    for name in ("published", "_tiny", "_tug_of_war"):
        config = load_config(f"configs/uni_med/{name}.py")
        assert config["task"]["type"] == "GroundingTask"


def test_options_replace_values_of_the_yaml(tmp_path):
    source = tmp_path / "train.yaml"
    source.write_text(YAML)
    uni_med_yaml.convert(source, tmp_path / "out", options=["run.init_lr=1e-6", "model.num_experts=3", "run.seed=7"])
    config = load_config(tmp_path / "out" / "train.py")
    assert (config["optimizer"]["lr"], config["task"]["connector"]["num_experts"], config["seed"]) == (1e-6, 3, 7)
    for wrong in ("init_lr=1", "run.init_lr", "run.init_lr.more=1", "run.seed=[1"):
        with pytest.raises(CheckpointError, match="--options"):
            uni_med_yaml.convert(source, tmp_path / "none", options=[wrong])
    assert not (tmp_path / "none").exists()
