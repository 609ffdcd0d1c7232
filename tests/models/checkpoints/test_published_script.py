"""The script that UniBiomed shows its users, with nothing changed but the path."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from golden_files import recording, tensors
from PIL import Image
from published_folders import publish, recorded_unibiomed

from unimed.models.checkpoints import unibiomed

SCRIPT = """
import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, AutoTokenizer

path = {path!r}
model = AutoModel.from_pretrained(
    path, torch_dtype=torch.{dtype}, low_cpu_mem_usage=True, use_flash_attn=True, trust_remote_code=True
).eval()
tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True, use_fast=False)
image = Image.open({image!r}).convert("RGB")
inputs = dict(
    image=image, text="<image>Please segment the liver in CT.", past_text="", mask_prompts=None, tokenizer=tokenizer
)
answer = model.predict_forward(**inputs)
print(answer["prediction"])
mask = answer["prediction_masks"][0][0]
np.save({out!r}, mask)
"""


def run(tmp_path, path, image, dtype="float32"):
    out = str(tmp_path / "mask.npy")
    (tmp_path / "example.py").write_text(SCRIPT.format(path=str(path), image=str(image), out=out, dtype=dtype))
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "HF_HOME": str(tmp_path / "hub")}
    done = subprocess.run(
        [sys.executable, "example.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip(), np.load(out)


def test_the_published_script_runs_on_a_converted_folder(tmp_path):
    publish(tmp_path / "published", say=["[SEG]", ".", "<|im_end|>"])
    unibiomed.convert(tmp_path / "published", tmp_path / "ours")
    picture = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "image.png")
    said, mask = run(tmp_path, tmp_path / "ours", tmp_path / "image.png", "bfloat16")
    assert said == "[SEG].<|im_end|>" and mask.shape == (40, 60) and mask.dtype == bool


def test_the_published_script_gives_the_recorded_answer(tmp_path):
    unibiomed.convert(recorded_unibiomed(tmp_path / "published"), tmp_path / "ours")
    said, mask = run(tmp_path, tmp_path / "ours", recording("unibiomed", "inputs", "image_a_256x128.png"))
    recorded = tensors("unibiomed", "e2e_image_seg_fp32.safetensors")
    assert said == "Sure, it is [SEG].<|end|>"
    assert (mask == recorded["pred_mask_bool"][0, 0].bool().numpy()).all()
