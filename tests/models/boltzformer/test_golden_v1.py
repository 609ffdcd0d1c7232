"""BiomedParse v1 beside its recording: every intermediate, the query each prompt chooses, and the masks."""

import pytest
import torch
from models.boltzformer.recorded import Recording, near, v1_model
from torch.nn import functional as F


@pytest.mark.parametrize(("case", "compat"), [("two", "reference"), ("one", "reference"), ("one", None)])
def test_prompts_asked_together_and_alone(case, compat):
    recorded, model, record = Recording("v1_2d.npz"), v1_model(compat=compat), {}
    prompts = model.encode_ids(recorded[f"{case}.input_ids"], recorded[f"{case}.attention_mask"])
    image = recorded["image"].float()[None]
    with torch.no_grad():
        output = model(image, prompts, record=record)
    near(prompts.tokens[prompts.valid], recorded[f"{case}.grounding_tokens"][:, 0])
    near(prompts.end, recorded[f"{case}.class_emb"])
    near(output.masks, recorded[f"{case}.pred_masks"])
    near(output.vectors, recorded[f"{case}.pred_captions"])
    near(output.similarity[0].T, recorded[f"{case}.similarity"])
    assert torch.equal(output.matched[0], recorded[f"{case}.matched_id"])
    classes = model.class_logits(output.vectors, recorded["default_text_embeddings"])
    near(classes, recorded[f"{case}.pred_logits"])
    probability = F.interpolate(output.chosen, image.shape[-2:], mode="bilinear", align_corners=False)[0].sigmoid()
    near(probability, recorded[f"{case}.prob"], 1e-3)  # recorded in half precision
    if case == "one":
        return
    for k in (2, 3, 4, 5):
        near(record[f"res{k}"], recorded[f"two.backbone.res{k}"])
    for name in ("mask_features", "multi_scale.0", "multi_scale.1", "multi_scale.2"):
        near(record[name], recorded[f"two.{name}"])
    for k in range(5):
        near(record[f"heads{k}.mask_logits"], recorded[f"two.heads{k}.mask_logits"])
    for k in range(4):
        for part in ("after_cross", "after_self", "after_ffn"):
            near(record[f"layer{k}.{part}"], recorded[f"two.layer{k}.{part}"].transpose(0, 1))
        blocked = recorded[f"two.heads{k}.attn_mask_blocked"][None]
        opened = (~blocked | blocked.all(-1, keepdim=True)).expand(1, 4, -1, -1)
        assert torch.equal(record[f"heads{k}.may_attend"].expand_as(opened), opened)


def test_a_prompt_does_not_depend_on_its_neighbours_unless_published_behaviour_is_asked_for():
    recorded = Recording("v1_2d.npz")
    image = recorded["image"].float()[None]
    for compat, alike in ((None, True), ("reference", False)):
        model = v1_model(compat=compat)
        both = model.encode_ids(recorded["two.input_ids"], recorded["two.attention_mask"])
        first = model.encode_ids(recorded["one.input_ids"], recorded["one.attention_mask"])
        together = model.segment_slices(image, both).mask_logits[:, :1]
        alone = model.segment_slices(image, first).mask_logits
        assert torch.allclose(together, alone, atol=1e-4) is alike


def test_a_query_whose_mask_is_empty_looks_everywhere():
    model = v1_model()
    logits = torch.full((1, 7, 8, 10), -5.0)
    logits[0, 0, 2:4, 2:5] = 5.0
    may = model.decoder.attention_mask(logits, (8, 10))
    assert may.shape == (1, 1, 7, 80) and may[0, 0, 1:].all() and may[0, 0, 0].sum() == 6
