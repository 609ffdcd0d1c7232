"""Every image-text model of the installed transformers, tiny and random, through its own forward pass.

Run `python tests/models/grounded/native_sweep.py [MODEL_TYPE ...]`: rows of a batch, the cache, a [SEG] and [BOX]
training step, saving, loading and an equal answer of each; prints a line per type, with what went wrong, and how many
fit.
"""

import sys
import tempfile
import time
from pathlib import Path

import further_native_models  # noqa: F401
import numpy as np
import torch
from native_models import EXAMPLES, tiny_config, tiny_processor
from small_models import tiny_mask_config
from transformers import AutoModelForImageTextToText
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

import unimed
from unimed.data.collate.grounded import GroundedCollator
from unimed.geometry import Geometry
from unimed.models.backbones.families import FAMILIES, PLUGGED, REFUSED
from unimed.models.starting.native import build_on_native
from unimed.structures import Region, Sample
from unimed.tasks.grounding import GroundingTask

DRAW = np.random.default_rng(0)
WIDE, HIGH = (DRAW.integers(0, 255, size, dtype=np.uint8) for size in ((40, 60, 3), (64, 40, 3)))
ASKED = ["Segment the nuclei.", "What is in this picture, and where?"]


def built(name):
    """A grounded model on a family with random weights that let the image through."""
    torch.manual_seed(0)
    processor = tiny_processor(name)
    vlm = AutoModelForImageTextToText.from_config(tiny_config(name, processor.tokenizer))
    with torch.no_grad():
        decoder = {id(parameter) for parameter in vlm.get_decoder().parameters()}
        for parameter in vlm.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)  # gates that start from nothing would hide the image
            elif parameter.ndim > 1 and id(parameter) not in decoder:
                parameter.normal_(std=parameter[0].numel() ** -0.5)  # and so would the small numbers of a first draw
    return build_on_native(vlm, processor, tiny_mask_config()).eval()


def states(model, batch):
    """Hidden states and logits of the tokens of each row, without padding."""
    with torch.no_grad():
        output = model(**batch)
    inside = batch["attention_mask"].bool()
    return [(h[i], v[i]) for h, v, i in zip(output.hidden, output.logits, inside, strict=True)]


def close(one, other):
    """Equal but for rounding, seen against the size of what is compared."""
    return (one - other).abs().max() <= 1e-4 * max(1.0, other.abs().max())


def sample(number, image):
    """A question for a mask (0), or for a mask and a box (1)."""
    mask = np.zeros(image.shape[:2], dtype=bool)
    mask[5:20, 8:30] = True
    regions = (Region("nuclei", mask=mask), Region("nuclei", box_xyxy_px=(8.0, 5.0, 30.0, 20.0)))
    answer = "<p> nuclei </p> [SEG]." if number == 0 else "<p> nuclei </p> [SEG] at [BOX]."
    return Sample(
        images=(image,), geometry=Geometry.pixels(), sample_id=str(number), regions=regions[: number + 1],
        labels={"task": "referring"}, conversation=(("user", ASKED[0]), ("assistant", answer)),
    )  # fmt: skip


def check_rows(model):
    """Rows of a batch do not touch each other, and the image is looked at."""
    together = states(model, model.processor(images=[WIDE, HIGH], text=ASKED))
    for row, (image, text) in enumerate(zip((WIDE, HIGH), ASKED, strict=True)):
        alone = states(model, model.processor(images=image, text=text))[0]
        assert all(close(a, b) for a, b in zip(together[row], alone, strict=True)), "rows of a batch touch each other"
    blind = states(model, model.processor(images=np.zeros_like(WIDE), text=ASKED[0]))[0]
    assert not torch.allclose(blind[0][-1], together[0][0][-1], atol=1e-6), "the image changes nothing"


def check_cache(model):
    """Answers are the same with and without a cache."""
    batch = dict(model.processor(images=[WIDE, HIGH], text=ASKED))
    cached, anew = (
        model.generate(**batch, max_new_tokens=5, use_cache=use, return_dict_in_generate=True) for use in (True, False)
    )
    assert torch.equal(cached.sequences, anew.sequences), "the cache changes answers"


def check_step(model):
    """A [SEG] and a [BOX] teach the language model and the image part on their own; a step changes weights."""
    task = GroundingTask(model.train())
    batch = GroundedCollator(model.processor)([sample(0, WIDE), sample(1, HIGH)])
    losses = task(batch)
    assert {"text", "dice", "bce", "presence", "box"} <= losses.keys(), sorted(losses)
    assert all(torch.isfinite(value) for value in losses.values()), "a loss is not finite"
    (losses["dice"] + losses["bce"] + losses["box"]).backward()
    decoder = {id(p) for p in model.language_model.parameters()}
    reached = {True: 0, False: 0}
    for parameter in model.backbone.vlm.parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), "a gradient is not finite"
            reached[id(parameter) in decoder] += bool(parameter.grad.abs().sum() > 0)
    assert reached[True] >= 5 and reached[False] >= 2, f"a mask teaches too few parts: {reached}"
    before = [p.detach().clone() for p in model.language_model.parameters()]
    task(batch)["loss"].backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    assert any(not torch.equal(a, b) for a, b in zip(before, model.language_model.parameters(), strict=True))
    model.eval()


def check_saved(model, folder):
    """Tensors, states and an answer are equal after saving and loading."""
    model.save_pretrained(folder)
    again = unimed.load(folder, device="cpu")
    ours, theirs = model.state_dict(), again.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours), "tensors differ"
    before, after = (states(m, m.processor(images=HIGH, text=ASKED[1]))[0] for m in (model, again))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "states differ after loading"
    ids = model.processor.tokenizer("it <p> nuclei </p> [SEG]", add_special_tokens=False)["input_ids"]
    found = [
        m.predict_batch([WIDE], [ASKED[0]], answers=[ids], presence_threshold=0.0)[0].regions[0] for m in (model, again)
    ]
    assert (found[0].mask == found[1].mask).all() and found[0].presence == found[1].presence, "answers differ"
    texts = [m.predict(WIDE, ASKED[0], max_new_tokens=4).markup for m in (model, again)]
    assert texts[0] == texts[1], "texts differ"


def check(name):
    """All of the above for one family.

    Raises:
        Exception: whatever does not hold.
    """
    model = built(name)
    check_rows(model)
    check_cache(model)
    check_step(model)
    with tempfile.TemporaryDirectory() as folder:
        check_saved(model, Path(folder))


def main(names):
    torch.set_num_threads(1)
    fit, failed = [], []
    for name in names or sorted(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        if name in REFUSED:
            print(f"{name}: does not fit: {REFUSED[name]}", flush=True)
            continue
        if name in PLUGGED:
            print(f"{name}: left to a plug-in (docs/extend.md, test_native.py)", flush=True)
            continue
        begin = time.process_time()
        try:
            if name not in EXAMPLES or name not in FAMILIES:
                raise LookupError("no family of it is known, or no small example")
            check(name)
            fit.append(name)
            print(f"{name}: fits; {time.process_time() - begin:.1f} s", flush=True)
        except Exception as error:  # any failure is a finding of the sweep
            failed.append(name)
            print(f"{name}: FAILED: {type(error).__name__}: {str(error).splitlines()[:1]}", flush=True)
    print(f"{len(fit)} fit, {len(failed)} failed: {' '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
