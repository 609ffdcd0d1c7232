import numpy as np
import pytest
import torch
from closeness import MODEL, assert_close
from sam2_models import say, tiny_sam2, tiny_sam2_model
from small_models import tiny_model

from unimed.io.images import ImageError
from unimed.models.grounded.frames import key_frames, propagate
from unimed.models.grounded.processing import PromptError
from unimed.models.heads.sam2 import Sam2MaskHead
from unimed.models.heads.sam2_memory import MaskPropagation

RNG = np.random.default_rng(0)
FRAMES = [RNG.integers(0, 255, (40, 50), dtype=np.uint8) for _ in range(12)]


class Lazy:
    """Counts how often each frame is read."""

    def __init__(self, frames):
        self.frames, self.reads = frames, [0] * len(frames)

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, index):
        self.reads[index] += 1
        return self.frames[index]


def test_key_frames_lie_in_the_middle_of_equal_parts_or_come_first():
    assert key_frames(100, 5) == [10, 30, 50, 70, 90] and key_frames(3, 5) == [0, 1, 2]
    assert key_frames(100, 5, first=True) == [0, 1, 2, 3, 4]


def test_every_frame_has_a_mask_and_is_encoded_once():
    model = say(tiny_sam2_model(), "<p> x </p> [SEG] and [SEG].<|end|>")
    encoded = []
    model.mask_head.sam.vision_encoder.backbone.patch_embed.register_forward_hook(lambda *_: encoded.append(1))
    lazy = Lazy(FRAMES)
    both = model.predict_frames(lazy, ["segment the nuclei", "segment the lesion"], max_new_tokens=30)
    assert len(encoded) == len(FRAMES) and max(lazy.reads) <= 3
    assert [len(one.regions) for one in both] == [2, 2]
    region = both[0].regions[0]
    assert region.phrase == "x" and region.mask.shape == (12, 40, 50) and 0 <= region.confidence <= 1
    # Several questions at once give what each gives alone.
    alone = say(model, "<p> x </p> [SEG] and [SEG].<|end|>").predict_frames(
        FRAMES, "segment the nuclei", max_new_tokens=30
    )
    for one, other in zip(both[0].regions, alone.regions, strict=True):
        assert (one.mask == other.mask).mean() > 0.999


@torch.no_grad()
def test_frames_before_the_first_prompt_are_reached_backwards_and_objects_in_turns():
    model = tiny_sam2_model()
    prompts = torch.randn(10, model.mask_head.prompt_dim)
    frames = [np.repeat(frame[..., None], 3, axis=2) for frame in FRAMES[:6]]
    found = dict(propagate(model, frames, prompts, [2]))
    assert sorted(found) == list(range(6)) and all(len(output.logits) == 10 for output in found.values())
    # Time runs the same both ways: the mirrored stack gives the mirrored masks.
    mirrored = dict(propagate(model, frames[:5][::-1], prompts, [2]))
    straight = dict(propagate(model, frames[:5], prompts, [2]))
    for frame in range(5):
        assert_close(straight[frame].logits, mirrored[4 - frame].logits, relative=MODEL)
    alone = dict(propagate(model, frames, prompts[9:], [2]))
    assert_close(found[5].logits[9], alone[5].logits[0], relative=MODEL)


@torch.no_grad()
def test_memory_is_bounded():
    model = tiny_sam2_model()
    head = model.mask_head
    tracker = MaskPropagation(head, 100)
    prompts = torch.randn(1, head.prompt_dim)
    with pytest.raises(RuntimeError, match="prompted"):
        tracker.propagated(0, None)
    features = head.encode(torch.randn(1, 3, 128, 128))
    tracker.prompted(0, features, prompts)
    for frame in range(1, 40):
        tracker.propagated(frame, features)
    assert len(tracker.recent) == 15 and len(tracker.conditioning) == 1


@torch.no_grad()
def test_sam21_remembers_that_a_thing_was_hidden_and_how_long_ago_it_was_seen():
    head = Sam2MaskHead(tiny_sam2(version="2.1")).eval()
    features = [head.encode(torch.randn(1, 3, 128, 128)) for _ in range(3)]
    prompts = torch.randn(2, head.prompt_dim)

    def last():
        tracker = MaskPropagation(head, 3)
        tracker.prompted(0, features[0], prompts)
        tracker.propagated(1, features[1])
        tracker.propagated(2, features[2])
        return tracker.conditioned_embedding, tracker.conditioning[0].features

    score = head.sam.mask_decoder.pred_obj_score_head.proj_out
    score.weight.data.zero_(), score.bias.data.fill_(100.0)
    plain, remembered = last()
    head.sam.temporal_positional_encoding_projection_layer.bias.data.normal_(0, 30)
    assert (last()[0] - plain).abs().max() > 1e-4
    score.bias.data.fill_(-100.0)
    head.sam.occlusion_spatial_embedding_parameter.data.fill_(2.0)
    assert_close(last()[1], remembered + 2, relative=MODEL)


def test_words_alone_prompt_every_frame_where_there_is_no_memory():
    model = say_small("[SEG]<|end|>", presence=3.0)
    prediction = model.predict_frames(FRAMES, "segment the nuclei")
    assert prediction.regions[0].mask.shape == (12, 40, 50) and prediction.regions[0].presence > 0.9
    alone = say_small("[SEG]<|end|>", presence=-3.0).predict_frames(FRAMES, "segment the nuclei")
    assert not alone.regions[0].mask.any() and alone.regions[0].presence < 0.1
    with pytest.raises(PromptError, match="no memory"):
        model.predict_frames(FRAMES, "segment", follow="memory")


def test_a_box_has_no_place_among_slices_and_that_is_written_beside_its_phrase(tmp_path):
    answer = "<p>nuclei</p>[SEG] <p>edge</p>[BOX]<|end|>"
    model = say_small(answer, presence=3.0)
    prediction = model.predict_frames(FRAMES, "segment the nuclei")
    mask, box = prediction.regions
    assert (mask.phrase, box.phrase) == ("nuclei", "edge") and mask.mask.any() and not mask.remark
    assert box.mask is None and box.box_xyxy_px is None and "ask for its mask" in box.remark
    written = prediction.save(tmp_path, "case", ["json"])
    assert "ask for its mask" in written[0].read_text()


def say_small(text, presence):
    from small_models import teach

    model = tiny_model()
    teach(model, model.processor.tokenizer(text, add_special_tokens=False)["input_ids"])
    model.presence_head.weight.data.zero_()
    model.presence_head.bias.data.fill_(presence)
    return model


def test_frames_nobody_can_read_are_refused():
    model = say(tiny_sam2_model(), "[SEG]<|end|>")
    for frames, error, words in (
        ([], PromptError, "no frame"),
        ([FRAMES[0], FRAMES[1][:30]], ImageError, "frame 1"),
    ):
        with pytest.raises(error, match=words):
            model.predict_frames(frames, "segment the nuclei")
    with pytest.raises(PromptError, match="'past'"):
        model.predict_frames(FRAMES, "segment", follow="past")
    with pytest.raises(PromptError, match="one size"):
        model.predict_forward(video=[FRAMES[0], FRAMES[1][:30]], text="<image>segment")


def test_an_object_absent_from_a_frame_can_be_left_out_there():
    model = say(tiny_sam2_model(), "[SEG]<|end|>")
    last = model.mask_head.sam.mask_decoder.pred_obj_score_head.proj_out
    last.weight.data.zero_(), last.bias.data.fill_(-1.0)
    kept = model.predict_frames(FRAMES[:3], "segment the nuclei", max_new_tokens=8)
    cleared = say(model, "[SEG]<|end|>").predict_frames(FRAMES[:3], "segment", max_new_tokens=8, clear_absent=True)
    assert kept.regions[0].mask.any() and not cleared.regions[0].mask.any()
