"""A predicted [BOX] beside a [SEG] guides its mask, and no other."""

import numpy as np
import torch
from small_decoders import small_light
from small_models import TEXTS, teach

from unimed.models.grounded.answers import parse_pieces, pieces_of_text
from unimed.models.grounded.pointing import guides
from unimed.models.starting.grounded_small import build_small
from unimed.tokens import BOX_TOKEN, SEG_TOKEN

MARKS = {SEG_TOKEN: SEG_TOKEN, BOX_TOKEN: BOX_TOKEN}


def answer(text):
    return parse_pieces(pieces_of_text(text, MARKS, ()))


def test_which_box_guides_which_mask():
    boxes = [((0.0, 0.0, 4.0, 4.0), None, 1.0), ((5.0, 5.0, 9.0, 9.0), None, 1.0)]
    assert guides(answer("<p> a </p> [SEG] [BOX]."), boxes) == {0: boxes[0][0]}
    assert guides(answer("<p> a </p> [BOX] [SEG] and <p> b </p> [SEG]."), boxes) == {0: boxes[0][0]}
    assert guides(answer("<p> a </p> [SEG] and <p> b </p> [SEG] [BOX]."), boxes) == {1: boxes[0][0]}
    assert guides(answer("<p> a </p> [SEG] and <p> b </p> [BOX]."), boxes) == {}
    assert guides(answer("<p> a </p> [SEG] [BOX]."), [((3.0, 3.0, 3.0, 3.0), None, 1.0)]) == {}


@torch.no_grad()
def test_the_box_changes_the_mask_of_its_phrase():
    model = build_small(
        TEXTS, hidden_dim=32, layers=1, heads=2, vision_grid=2, mask_config=small_light(), box_head="point"
    ).eval()
    image, seen = np.random.default_rng(0).integers(0, 255, (40, 52, 3), dtype=np.uint8), []
    decode = model.mask_head.decode

    def noted(features, index, prompts, boxes_xyxy=None):
        seen.append(boxes_xyxy)
        output = decode(features, index, prompts, boxes_xyxy)
        output.logits = output.logits * 0 + (1.0 if boxes_xyxy is not None else -1.0)
        return output

    model.mask_head.decode = noted
    for said, shown in (("<p> nuclei </p> [SEG] [BOX].", True), ("<p> nuclei </p> [SEG].", False)):
        seen.clear()
        ids = model.processor.tokenizer(said, add_special_tokens=False)["input_ids"]
        teach(model, [*ids, *model.processor.stop_ids])
        regions = model.predict(image, "Segment the nuclei.", presence_threshold=0.0).regions
        assert regions[0].mask.any() == shown and len([boxes for boxes in seen if boxes is not None]) == shown
        if shown:
            box = torch.tensor(regions[1].box_xyxy_px)
            frame = model.processor.frame((40, 52))
            expected = box / torch.from_numpy(frame.box_unit_px) * model.mask_head.image_size
            torch.testing.assert_close(seen[-1][0], expected.float(), rtol=1e-3, atol=1e-3)
