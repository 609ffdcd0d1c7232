import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from sam2_models import tiny_sam2, tiny_sam2_model  # noqa: E402
from transformers import Florence2Config, Qwen2_5_VLForConditionalGeneration

from unimed.models.backbones.vision_language import build_backbone  # noqa: E402
from unimed.models.grounded import GroundedConfig, GroundedMLLM  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, 255, size, dtype=np.uint8) for size in ((60, 90, 3), (100, 40, 3))]


def rows_of(model, images, texts):
    """Input of a batch, padded on the right, as `GroundedMLLM.forward` takes it."""
    processor = model.processor
    ids = [
        processor.encode_prompt([("user", text)], processor.unit_count(*image.shape[:2]))
        for image, text in zip(images, texts, strict=True)
    ]
    read = [processor.pixels(image) for image in images]
    input_ids = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for row, one in enumerate(ids):
        input_ids[row, : len(one)], mask[row, : len(one)] = torch.tensor(one), 1
    grids = None if read[0][1] is None else torch.cat([grid for _, grid in read])
    return input_ids, mask, torch.cat([pixels for pixels, _ in read]), grids


@torch.no_grad()
def test_qwen_vl_reads_images_as_transformers_does():
    model = tiny_sam2_model("qwen2_5_vl")
    input_ids, mask, pixels, grids = rows_of(model, IMAGES, ["segment the nuclei", "what is it, in short"])
    ours = model(input_ids=input_ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grids)
    vlm = model.backbone.vlm
    assert isinstance(vlm, Qwen2_5_VLForConditionalGeneration)
    kinds = (input_ids == model.config.image_token_id).int()
    theirs = vlm(
        input_ids=input_ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grids, mm_token_type_ids=kinds
    )
    assert_close(ours.logits[mask > 0], theirs.logits[mask > 0], relative=MODEL)
    # Places matter: the same tokens in mere order are another picture.
    plain = model(
        input_ids=input_ids, attention_mask=mask, pixel_values=pixels, image_grid_thw=grids,
        position_ids=torch.arange(input_ids.shape[1]).expand(2, -1),
    )  # fmt: skip
    assert not torch.allclose(ours.logits, plain.logits, atol=1e-3)


@torch.no_grad()
def test_qwen_vl_goes_on_where_the_prompt_ends():
    """What is said step by step with a cache is what one pass over the whole gives."""
    model = tiny_sam2_model("qwen2_5_vl")
    texts, regions = ["What is region1?", "what"], [[(0, 0, 40, 60)], None]
    inputs = model.processor(images=IMAGES, text=texts, regions=regions)
    together = model.generate(**inputs, max_new_tokens=6, return_dict_in_generate=True).rows
    for row, text, image, given in zip(together, texts, IMAGES, regions, strict=True):
        one = model.processor(images=image, text=text, regions=given)
        whole = torch.cat([one["input_ids"], torch.tensor([row.ids])], dim=1)
        inputs = dict(pixel_values=one["pixel_values"], image_grid_thw=one["image_grid_thw"], layout=one["layout"])
        logits = model(input_ids=whole, **inputs).logits
        said = logits[0, one["input_ids"].shape[1] - 1 : -1].argmax(-1).tolist()
        assert said == row.ids


def test_qwen_vl_takes_a_connector_and_says_what_does_not_fit():
    backbone = tiny_sam2_model("qwen2_5_vl").config.backbone_config
    config = GroundedConfig(
        backbone_config=backbone, mask_config=tiny_sam2(), image_token_id=5, seg_token_id=6,
        connector={"projector_type": "mlp2x_gelu", "resample_method": "none", "num_task_tokens": 0},
    )  # fmt: skip
    model = GroundedMLLM(config)
    tokens, _ = model.image_tokens(torch.randn(16, 1176), image_grid_thw=torch.tensor([[1, 4, 4]]))
    assert tokens.shape == (1, 4, 32)
    with pytest.raises(ValueError, match="images_per_row|rows show"):
        model.backbone.position_ids(torch.tensor([[5, 1], [5, 1]]), None, torch.tensor([[1, 2, 2]] * 3))
    with pytest.raises(ValueError, match="encoder-decoder"):
        build_backbone(Florence2Config())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["internvl", "internvl_phi3", "internvl_llama", "llava"])
def test_language_models_of_every_published_size_class_answer_and_learn(kind):
    model = tiny_sam2_model(kind)
    prediction = model.predict(IMAGES[0], "what is it", max_new_tokens=3)
    assert prediction.geometry is not None
    input_ids, mask, pixels, _ = rows_of(model, IMAGES, ["a", "what is it in this"])
    input_ids[:, -1] = model.config.seg_token_id
    mask[:, -1] = 1
    with torch.enable_grad():
        output = model(
            input_ids=input_ids, attention_mask=mask, labels=input_ids, pixel_values=pixels,
            mask_pixel_values=torch.randn(2, 3, 128, 128),
        )  # fmt: skip
        (output.loss + output.masks.logits.sum()).backward()
    assert output.masks.logits.shape == (2, 32, 32)
    assert model.get_input_embeddings().weight.grad.abs().sum() > 0
