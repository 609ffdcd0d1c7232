import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from golden_files import recording, tensors
from PIL import Image

from unimed.models.checkpoints.sam2 import convert_state_dict, sam2_video_config
from unimed.models.heads.mask import resize_mask_logits
from unimed.models.heads.sam2 import Sam2MaskHead


def tiny_head(image_size=128):
    torch.manual_seed(0)
    config = sam2_video_config(
        8, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7],
        hidden_dim=32, image_size=image_size, memory_layers=1, memory_feed_forward=32, memory_dim=16,
        decoder_mlp=32, iou_hidden=32,
    )  # fmt: skip
    return Sam2MaskHead(config).eval()


@torch.no_grad()
def test_prompts_of_several_images_in_any_order_give_what_each_gives_alone():
    head = tiny_head()
    features = head.encode(torch.randn(2, 3, 128, 128))
    prompts = torch.randn(5, head.prompt_dim)
    image_index = torch.tensor([1, 0, 1, 1, 0])
    together = head.decode(features, image_index, prompts)
    for row in range(5):
        alone = head.decode(
            features.select(int(image_index[row])), torch.zeros(1, dtype=torch.long), prompts[row, None]
        )
        assert_close(together.logits[row], alone.logits[0], relative=MODEL)
        assert_close(together.iou[row], alone.iou[0], relative=MODEL)


def test_no_prompt_gives_no_mask_and_gradient_reaches_a_prompt():
    head = tiny_head()
    features = head.encode(torch.randn(1, 3, 128, 128))
    assert head.decode(features, torch.zeros(0, dtype=torch.long), torch.zeros(0, 32)).logits.shape == (0, 32, 32)
    prompt = torch.randn(1, 32, requires_grad=True)
    head.decode(features, torch.zeros(1, dtype=torch.long), prompt).logits.sum().backward()
    assert prompt.grad.abs().sum() > 0


@torch.no_grad()
def test_parity_with_the_sam2_package():
    recorded = tensors("unibiomed", "sam2_alone", "outputs.safetensors")
    config = sam2_video_config(
        16, [1, 2, 4, 2], 1, [4, 6], [8, 4, 14, 7], [7, 7],
        hidden_dim=128, image_size=512, memory_layers=2, memory_feed_forward=128, decoder_mlp=128, iou_hidden=64,
    )  # fmt: skip
    head = Sam2MaskHead(config).eval()
    head.sam.load_state_dict(convert_state_dict(tensors("unibiomed", "sam2_alone", "model.safetensors")))
    from torchvision.transforms.v2.functional import normalize, resize

    image = (
        torch.from_numpy(
            np.array(Image.open(recording("unibiomed", "sam2_alone", "image_200x150.png")).convert("RGB"))
        ).permute(2, 0, 1)
        / 255
    )
    pixels = normalize(resize(image, [512, 512], antialias=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])[None]
    features = head.encode(pixels)
    embedding = features.embedding + head.sam.no_memory_embedding.reshape(1, -1, 1, 1)
    language = head.decode(features, torch.zeros(3, dtype=torch.long), recorded["language_embed"][:, 0])
    scale = torch.tensor([512 / 200, 512 / 150])
    box = head.decode_boxes(
        features, torch.zeros(1, dtype=torch.long), torch.tensor([[30, 40, 120, 110.0]]) * scale.repeat(2)
    )
    point = head.decode_points(features, torch.tensor([[[60.0, 75.0]]]) * scale, torch.ones(1, 1, dtype=torch.int))
    final = resize_mask_logits(language.logits, (150, 200), 512)
    for name, ours in {
        "image_embed": embedding,
        "high_res_feats_0": features.high_resolution[0],
        "high_res_feats_1": features.high_resolution[1],
        "lang_low_res_multi": language.candidates,
        "lang_iou": language.candidate_iou,
        "lang_obj_score_logits": language.object_logits[:, None],
        "lang_final_logits_150x200": final[:, None],
        "box_single_low_res": box.logits,
        "pt1_multi_low_res": point.candidates[0],
    }.items():
        assert_close(ours, recorded[name], name, MODEL)


@pytest.mark.parametrize("through", [None, 64])
def test_masks_come_back_in_the_size_asked_for(through):
    assert resize_mask_logits(torch.randn(3, 16, 16), (50, 70), through).shape == (3, 50, 70)
