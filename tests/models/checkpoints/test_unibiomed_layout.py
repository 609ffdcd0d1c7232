import json

import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import SMALL, recording, tensors
from PIL import Image
from published_folders import recorded_unibiomed
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from unimed.chat import TEMPLATES
from unimed.models.checkpoints import internvl, unibiomed
from unimed.models.checkpoints.sam2 import check_names
from unimed.models.grounded.frames import ask
from unimed.models.grounded.generation import generate
from unimed.models.grounded.modeling import GroundedMLLM
from unimed.models.grounded.processing import PromptError
from unimed.models.grounded.regions import region_cells, token_index
from unimed.models.heads.mask import resize_mask_logits
from unimed.models.heads.sam2_memory import MaskPropagation

TEXT_1B = dict(
    model_type="qwen2", vocab_size=151679, hidden_size=896, intermediate_size=4864, num_hidden_layers=24,
    num_attention_heads=14, num_key_value_heads=2, rope_theta=1e6, rms_norm_eps=1e-6,
)  # fmt: skip
TEXT_8B = dict(
    model_type="internlm2", vocab_size=92558, hidden_size=4096, intermediate_size=14336, num_hidden_layers=32,
    num_attention_heads=32, num_key_value_heads=8, rope_theta=1e6, rms_norm_eps=1e-5,
    max_position_embeddings=32768, rope_scaling={"type": "dynamic", "factor": 2.0}, bias=False,
)  # fmt: skip
VISION = dict(
    hidden_size=1024,
    intermediate_size=4096,
    num_hidden_layers=24,
    num_attention_heads=16,
    image_size=448,
    patch_size=14,
)


class Words:
    unk_token_id = None

    def convert_tokens_to_ids(self, token):
        return {"<IMG_CONTEXT>": 5, "[SEG]": 6}[token]


@pytest.mark.parametrize(("name", "text"), [("1b_qwen2", TEXT_1B), ("8b_internlm2", TEXT_8B)])
def test_every_published_tensor_finds_its_place(name, text):
    shapes = json.loads((SMALL / "unibiomed" / f"hf_sa2va_{name}_keys.json").read_text())
    published = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    config = unibiomed.grounded_config({"vision_config": VISION, "llm_config": text}, Words())
    with torch.device("meta"):
        model = GroundedMLLM(config)
    state = unibiomed.convert_state_dict(published, text)
    report = check_names(model, state, "unibiomed", name, "")
    assert (report.missing, report.unexpected) == ([], [])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["plain", "dynamic"])
def test_internlm2_is_llama_under_other_names(kind):
    folder = SMALL / "unibiomed" / "internlm2"
    published = json.loads((folder / f"config_{kind}.json").read_text()) | {"model_type": "internlm2"}
    model = LlamaForCausalLM(internvl.text_config_of(published)).eval()
    state = internvl.internlm2_to_llama(
        load_file(folder / "model.safetensors"), published["num_attention_heads"], published["num_key_value_heads"]
    )
    assert list(model.load_state_dict(state, strict=False)) == [[], []]
    recorded = load_file(folder / f"outputs_{kind}.safetensors")
    output = model(recorded["input_ids"], output_hidden_states=True)
    assert_close(output.logits, recorded["logits"], f"internlm2 {kind} logits", MODEL)
    assert_close(output.hidden_states[-1], recorded["last_hidden"], f"internlm2 {kind} states", MODEL)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    return unibiomed.build(recorded_unibiomed(tmp_path_factory.mktemp("published")))[0]


def near(name, ours, recorded, relative=MODEL):
    assert_close(ours, recorded, name, relative)


@torch.no_grad()
def test_every_stage_of_the_image_path_is_the_reference(published):
    model = published
    recorded = tensors("unibiomed", "e2e_image_seg_fp32.safetensors")
    rgb = np.array(Image.open(recording("unibiomed", "inputs", "image_a_256x128.png")).convert("RGB"))
    tiles = model.processor.tiles(rgb)
    near("tiles", tiles[:, :, ::8, ::8], recorded["pixel_values_stride8"], 1e-6)
    near("sums of the tiles", tiles.double().sum((1, 2, 3)).float(), recorded["pixel_values_sum"], 1e-5)
    pixels = model.processor.mask_pixels(rgb)[None]
    near("pixels of the mask head", pixels[..., ::8, ::8], recorded["sam_image_stride8"], 1e-6)
    tokens, _ = model.image_tokens(tiles)
    near("vision_tokens", tokens, recorded["vision_tokens"])
    question = model.processor.question("<image>Please segment the liver in CT.", 3, literal=False)
    ids = model.processor._ids(TEMPLATES["phi3_chat"].prompt([("user", question)]))
    assert ids == recorded["input_ids"].tolist()
    embeds = model.merge(torch.tensor([ids]), tokens)
    near("inputs_embeds", embeds[0], recorded["llm_inputs_embeds"])
    features = model.mask_head.encode(pixels)
    near("sam_fpn2", features.embedding, recorded["sam_fpn2_image_embed"])
    row = generate(
        model, embeds, torch.ones(1, len(ids), dtype=torch.long), keep_states_of=[model.config.seg_token_id],
        stop_ids=model.processor.stop_ids, stopped=model.processor.stopped, max_new_tokens=64,
    )[0]  # fmt: skip
    assert row.ids == recorded["generated_ids"].tolist()
    states = torch.stack(row.states)
    near("seg_hidden", states, recorded["seg_hidden"])
    near("seg_embed", model.seg_projection(states), recorded["seg_embed"])
    output = model.mask_head.decode(features, torch.zeros(1, dtype=torch.long), model.seg_projection(states))
    near("low_res_multimasks", output.candidates, recorded["low_res_multimasks"])
    near("ious", output.candidate_iou, recorded["ious_multimask"])


SCENARIOS = {
    "image_seg": ("image_a_256x128.png", "<image>Please segment the liver in CT."),
    "multi_seg": ("image_e_100x96.png", "<image>Describe with masks."),
    "region": ("image_a_256x128.png", "<image>What is region1?"),
    "text_only": (None, "Hello"),
}


@torch.no_grad()
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_states_logits_and_masks_of_every_scenario_are_the_reference(published, scenario):
    model, (image, text) = published, SCENARIOS[scenario]
    recorded = tensors("unibiomed", f"e2e_{scenario}_fp32.safetensors")
    rgb = size = regions = None
    if image is not None:
        rgb = np.array(Image.open(recording("unibiomed", "inputs", image)).convert("RGB"))
        size = rgb.shape[:2]
        if scenario == "region":
            regions = [list(np.load(recording("unibiomed", "inputs", "region_masks.npz"))["masks"])]
    inputs = model.processor(images=rgb, text=text, regions=regions, literal=False)
    ids = inputs["input_ids"][0].tolist()
    assert ids == recorded["input_ids"].tolist()
    row = model.generate(**inputs, max_new_tokens=64, return_dict_in_generate=True).rows[0]
    assert row.ids == recorded["generated_ids"].tolist(), "token ids are identical"
    shown = {name: inputs.get(name) for name in ("pixel_values", "layout")}
    hidden = model(input_ids=torch.tensor([ids + row.ids[:-1]]), **shown).hidden[0]
    near(f"{scenario} last hidden", hidden, recorded["llm_last_hidden"])
    near(f"{scenario} logits", model.lm_head(hidden[len(ids) - 1 :]), recorded["logits_for_generated"])
    states = model.seg_states(row)
    if states is None:
        assert "[SEG]" not in model.processor.raw_text(row.ids)
        return
    near(f"{scenario} [SEG] state", states, recorded["seg_hidden"])
    prompts = model.seg_projection(states)
    near(f"{scenario} [SEG] projection", prompts, recorded["seg_embed"])
    features = model.mask_head.encode(model.processor.mask_pixels(rgb)[None])
    if "sam_fpn0_conv_s0_stride4" in recorded:
        fine, middle = features.high_resolution
        near(f"{scenario} SAM level 0", fine[..., ::4, ::4], recorded["sam_fpn0_conv_s0_stride4"])
        near(f"{scenario} SAM level 1", middle[..., ::2, ::2], recorded["sam_fpn1_conv_s1_stride2"])
    tracker = MaskPropagation(model.mask_head, 1)
    output = tracker.prompted(0, features, prompts)
    near(f"{scenario} predicted IoU", output.candidate_iou, recorded["ious_multimask"])
    near(f"{scenario} object score", output.object_logits[:, None], recorded["object_score_logits"])
    near(f"{scenario} object pointer", tracker.conditioning[0].pointer, recorded["obj_ptr"])
    near(f"{scenario} low-res masks", output.logits[:, None], recorded["low_res_mask"])
    final = resize_mask_logits(output.logits, size, model.mask_head.image_size)
    near(f"{scenario} final mask logits", final[:, None], recorded["final_mask_logits"])


@torch.no_grad()
def test_memory_modules_are_the_reference(published):
    sam = published.mask_head.sam
    recorded = tensors("unibiomed", "sam2_memory_modules.safetensors")
    attention = type(sam.memory_attention)(small_grid(sam.config)).eval()
    attention.load_state_dict(sam.memory_attention.state_dict())
    attended = attention(
        current_vision_features=recorded["curr"],
        memory=recorded["memory"],
        current_vision_position_embeddings=recorded["curr_pos"],
        memory_posision_embeddings=recorded["memory_pos"],
        num_object_pointer_tokens=int(recorded["num_obj_ptr_tokens"]),
    )
    near("memory attention", attended.reshape(256, 1, -1), recorded["memory_attention_output"])
    masks = torch.sigmoid(recorded["enc_mask_logits"]) * 20 - 10
    features, positions = sam.memory_encoder(recorded["enc_pix_feat"], masks)
    near("memory encoder", features, recorded["enc_out_features"])
    near("memory positions", positions.expand_as(features), recorded["enc_out_pos"])


def small_grid(config):
    """The recording of the memory attention is on a grid of 16 x 16."""
    config = type(config)(**config.to_dict())
    config.memory_attention_rope_feat_sizes = [16, 16]
    return config


@pytest.mark.parametrize(
    ("scenario", "image", "text", "said"),
    [
        ("image_seg", "image_a_256x128.png", "<image>Please segment the liver in CT.", "Sure, it is [SEG].<|end|>"),
        ("multi_seg", "image_e_100x96.png", "<image>Describe with masks.", "<p> x </p> [SEG] [SEG]<|end|>"),
        ("text_only", None, "Hello", "hi<|im_end|>"),
    ],
)
def test_predict_forward_returns_what_users_know(published, scenario, image, text, said):
    recorded = tensors("unibiomed", f"e2e_{scenario}_fp32.safetensors")
    picture = None if image is None else Image.open(recording("unibiomed", "inputs", image)).convert("RGB")
    answer = published.predict_forward(image=picture, text=text, tokenizer=published.processor.tokenizer)
    assert answer["prediction"] == said
    masks = answer["prediction_masks"]
    if image is None:
        assert masks == []
    else:
        assert all((a == b.bool().numpy()).all() for a, b in zip(masks, recorded["pred_mask_bool"], strict=True))


@torch.no_grad()
def test_regions_drawn_by_the_user_become_tokens(published):
    recorded = tensors("unibiomed", "e2e_region_fp32.safetensors")
    picture = Image.open(recording("unibiomed", "inputs", "image_a_256x128.png")).convert("RGB")
    masks = np.load(recording("unibiomed", "inputs", "region_masks.npz"))["masks"]
    model = published
    tokens, _ = model.image_tokens(model.processor.tiles(np.array(picture)))
    cells = region_cells(masks, (16, 16))
    question = model.processor.question("<image>What is region1?", 3, literal=False, cells=cells)
    ids = model.processor._ids(TEMPLATES["phi3_chat"].prompt([("user", question)]))
    assert ids == recorded["input_ids"].tolist()
    embeds = model.merge(torch.tensor([ids]), tokens.flatten(0, 1)[token_index(768, cells)])
    near("region inputs_embeds", embeds[0], recorded["llm_inputs_embeds"])
    answer = model.predict_forward(image=picture, text="<image>What is region1?", mask_prompts=[masks])
    assert answer == {"prediction": "a cat.<|end|>", "prediction_masks": []}
    assert model.processor._ids(answer["prediction"]) == recorded["generated_ids"].tolist()
    for wrong in ([masks[:, :50]], [masks * 0], [masks, masks]):
        with pytest.raises(PromptError, match="mask_prompts"):
            model.predict_forward(image=picture, text="<image>What is region1?", mask_prompts=wrong)


@torch.no_grad()
def test_a_mask_is_carried_through_the_frames(published):
    model = published
    recorded = tensors("unibiomed", "e2e_video_seg_fp32.safetensors")
    frames = [
        np.array(Image.open(recording("unibiomed", "inputs", f"video_{i}_96x80.png")).convert("RGB")) for i in range(8)
    ]
    (row,) = ask(model, frames[:5], ["<image>Please segment the tumor."], 64, literal=False)
    assert row.ids == recorded["generated_ids"].tolist()
    prompts = model.seg_projection(model.seg_states(row))
    near("video seg_embed", prompts, recorded["seg_embed"])
    tracker = MaskPropagation(model.mask_head, 8)
    for frame in range(8):
        features = model.mask_head.encode(model.processor.mask_pixels(frames[frame])[None])
        output = tracker.prompted(frame, features, prompts) if frame < 5 else tracker.propagated(frame, features)
        memory = (tracker.conditioning | tracker.recent)[frame]
        near(f"frame {frame} low-res mask", output.logits, recorded["low_res_mask"][frame])
        final = resize_mask_logits(output.logits, frames[0].shape[:2], model.mask_head.image_size)
        near(f"frame {frame} final mask logits", final[0], recorded["final_mask_logits"][0, frame])
        near(f"frame {frame} object score", output.object_logits, recorded["object_score_logits"][frame])
        near(f"frame {frame} pointer", memory.pointer[0], recorded["obj_ptr"][frame])
        if f"pix_feat_with_mem_frame{frame}_stride2" in recorded:
            ours = tracker.conditioned_embedding[..., ::2, ::2]
            # Plain code without vectors is 1.5e-5 away: the attention over all frames adds up rounding.
            near(f"frame {frame} memory", ours, recorded[f"pix_feat_with_mem_frame{frame}_stride2"], 5 * MODEL)
    said = model.predict_forward(video=[Image.fromarray(f) for f in frames], text="<image>Please segment the tumor.")
    assert said["prediction"] == "[SEG].<|end|>"
    assert (said["prediction_masks"][0] == recorded["pred_mask_bool"][0].bool().numpy()).all()
