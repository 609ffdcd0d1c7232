"""Wordings, nonsense and mirrored images: what is asked, what training may draw, and what the measures say."""

import random
from dataclasses import replace

import numpy as np
import pytest

from unimed.data.readers import hard_prompts
from unimed.data.readers.hard_prompts import HardPromptDataset, asked_for_nonsense, asked_otherwise, mirrored
from unimed.evaluation.honesty import MIRROR, NONSENSE_KIND, PARAPHRASE, honesty_samples, score_honesty
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.registry import DATASETS
from unimed.structures import Region, Sample


def sample(number, there=True, side="left"):
    image = np.zeros((20, 30), np.uint8)
    image[4:10, 3:9] = 200
    mask = image > 0
    phrase = f"{side} kidney"
    region = Region(phrase, mask=mask, box_xyxy_px=(3.0, 4.0, 9.0, 10.0), presence=1.0)
    answer = f"<p> {phrase} </p> [SEG]." if there else f"There is no {phrase}."
    return Sample(
        images=(image,),
        geometry=Geometry.pixels(),
        sample_id=f"s{number}",
        conversation=(("user", f"Segment the {phrase}."), ("assistant", answer)),
        regions=(region if there else Region(phrase, presence=0.0),),
        labels={"task": "referring" if there else "absent", "choices": ["left", "right"]},
        patient_id=f"p{number // 2}",
    )


def perfect(one):
    """Finds the bright square, on whichever side it is, unless something else is asked for."""
    asked = one.regions[0]
    mask = one.images[0] > 0
    shown = mask if "kidney" in asked.phrase and asked.presence else np.zeros_like(mask)
    return Prediction("", (Region(asked.phrase, mask=shown, presence=float(shown.any())),))


def measures(samples, predict):
    asked = honesty_samples(samples, most=100)
    from unimed.evaluation.rows import presence_rows

    predictions = [predict(one) for one in samples]
    presence = [row for one, answer in zip(samples, predictions, strict=True) for row in presence_rows(one, answer)]
    return score_honesty(samples, predictions, asked, [predict(one) for one in asked.samples], presence)


def test_mirrored_twice_is_the_sample():
    one = sample(0)
    turned, again = mirrored(one), mirrored(mirrored(one))
    assert turned.regions[0].phrase == "right kidney" and "right kidney" in turned.conversation[1][1]
    assert turned.regions[0].box_xyxy_px == (21.0, 4.0, 27.0, 10.0) and turned.labels["choices"] == ["right", "left"]
    assert turned.regions[0].mask[5, 25] and np.array_equal(turned.images[0][:, ::-1], one.images[0])
    assert again.conversation == one.conversation and np.array_equal(again.images[0], one.images[0])
    assert again.regions[0].box_xyxy_px == one.regions[0].box_xyxy_px
    with pytest.raises(ValueError, match="s0.*only 2D"):
        mirrored(replace(one, images=(np.zeros((4, 5, 6), np.uint8),)))


def test_what_a_test_asks_is_never_drawn_in_training():
    assert not set(hard_prompts.WORDINGS) & set(hard_prompts.HELD_OUT_WORDINGS)
    assert not set(hard_prompts.NONSENSE) & set(hard_prompts.HELD_OUT_NONSENSE)


def test_a_truthful_model_scores_perfectly():
    samples = [sample(i, there=i % 3 > 0) for i in range(12)]
    scores = measures(samples, perfect)
    found = scores["summary"]
    assert found["paraphrase_mean"] == found["paraphrase_worst"] == found["mirror_dice"] == 1
    assert found["paraphrase_variance"] == found["false_mask_rate/absent"] == found["false_mask_rate/nonsense"] == 0
    lines = {line["measure"]: line for line in scores["tables"]["honesty"]}
    assert len(lines) == 6 and lines["false_mask_rate/nonsense"]["cases"] == 12
    assert lines["mirror_dice"]["cases"] == 8, "two empty masks say nothing"
    assert "p1" not in str(scores["cases"]), "no patient leaves the scorer"


def test_each_measure_sees_its_own_mistake():
    samples = [sample(i, there=i % 3 > 0) for i in range(12)]

    def paints_always(one):
        return Prediction("", (Region(one.regions[0].phrase, mask=one.images[0] > 0, presence=1.0),))

    found = measures(samples, paints_always)["summary"]
    assert found["false_mask_rate/absent"] == found["false_mask_rate/nonsense"] == 1 == found["mirror_dice"]

    def knows_one_side(one):  # always the left half of the picture, wherever the thing is
        mask = np.zeros(one.images[0].shape, bool)
        mask[4:10, 3:9] = "kidney" in one.regions[0].phrase
        return Prediction("", (Region(one.regions[0].phrase, mask=mask, presence=1.0),))

    assert measures(samples, knows_one_side)["summary"]["mirror_dice"] == 0

    def knows_one_wording(one):
        return perfect(one) if one.conversation[0][1].startswith("Segment the") else Prediction("")

    found = measures(samples, knows_one_wording)["summary"]
    assert found["paraphrase_mean"] == pytest.approx(0.2) and found["paraphrase_worst"] == 0
    assert found["paraphrase_variance"] == pytest.approx(0.16)


def test_questions_are_made_of_what_fits():
    several = replace(sample(1), regions=sample(1).regions * 2)
    volume = replace(sample(2), images=(np.zeros((4, 5, 6), np.uint8),))
    vqa = replace(sample(3), labels={"task": "vqa"})
    asked = honesty_samples([several, volume, vqa, sample(4), sample(5, there=False)])
    kinds = [kind for _, kind in asked.origins]
    assert kinds.count(PARAPHRASE) == 4 and kinds.count(NONSENSE_KIND) == 2 and kinds.count(MIRROR) == 2
    assert {index for index, _ in asked.origins} == {3, 4}
    assert not honesty_samples([vqa]).samples and not honesty_samples([sample(0)], most=0).samples
    with pytest.raises(ValueError, match="s3.*one thing"):
        asked_otherwise(vqa, "Mark {}.")


@DATASETS.register_module()
class _Kidneys:
    def __len__(self):
        return 40

    def __getitem__(self, index):
        return sample(index, there=index % 2 == 0)


def test_training_draws_what_it_is_told_to():
    inner = dict(type="_Kidneys")
    plain = HardPromptDataset(inner, mirrored=0, reworded=0, nonsense=0)
    assert plain[0].conversation == sample(0).conversation
    always = HardPromptDataset(inner, mirrored=1, reworded=0, nonsense=0)[0]
    assert always.regions[0].phrase == "right kidney"
    worded = HardPromptDataset(inner, mirrored=0, reworded=1, nonsense=0, wordings=["Find {} now."])[0]
    assert worded.conversation[0][1] == "Find left kidney now." and "[SEG]" in worded.conversation[1][1]
    silly = HardPromptDataset(inner, mirrored=0, reworded=0, nonsense=1, phrases=["teapot"])[0]
    assert silly.task.value == "absent" and silly.conversation[1][1] == "There is no teapot in this image."
    assert silly.regions[0].presence == 0 and "[SEG]" not in silly.conversation[1][1]
    assert asked_for_nonsense(sample(1), "teapot", "Find {}.").sample_id == "s1-nonsense"
    for wrong in (dict(mirrored=2), dict(wordings=["no place"])):
        with pytest.raises(ValueError):
            HardPromptDataset(inner, **wrong)


def test_what_is_not_there_is_pointed_at_for_the_presence_head_alone():
    inner = dict(type="_Kidneys")
    vain = HardPromptDataset(inner, mirrored=0, reworded=0, nonsense=1, phrases=["teapot"], pointed=1)[0]
    assert vain.conversation[-1] == ("assistant", "<p> teapot </p> [SEG].") and vain.regions[0].presence == 0
    assert not vain.teaches_words and vain.regions[0].mask is None
    # What is there keeps its answer, and no draw of the other settings moves.
    for seed in range(20):
        drawn = []
        for pointed in (0.0, 1.0):
            random.seed(seed)
            one = HardPromptDataset(inner, nonsense=0.5, pointed=pointed)[0]
            drawn.append((one.conversation[0], one.regions[0].phrase))
            assert one.teaches_words == (not pointed or one.regions[0].presence > 0)
        assert drawn[0] == drawn[1]
    with pytest.raises(ValueError, match="s0.*not there"):
        hard_prompts.pointed_at_nothing(sample(0))


def test_invented_words_and_garbled_questions_keep_the_phrase():
    words = {hard_prompts.invented_word(random.Random(seed)) for seed in range(200)}
    assert len(words) > 150
    tested = " ".join((*hard_prompts.HELD_OUT_NONSENSE, *hard_prompts.HELD_OUT_WORDINGS))
    assert not any(word in tested for word in words)
    questions = {
        hard_prompts.garbled("Where is the {}? Answer with a mask.", random.Random(seed)) for seed in range(30)
    }
    assert len(questions) > 20 and all(question.count("{}?") == 1 for question in questions)

    data = HardPromptDataset(dict(type="_Kidneys"), 0.0, 1.0, 0.5, invented=1.0, garbled=1.0)
    asked = [data[0] for _ in range(60)]
    nonsense = {one.regions[0].phrase for one in asked if one.regions[0].presence == 0.0}
    assert len(nonsense) > 15 and not nonsense & set(hard_prompts.NONSENSE)
    assert all(one.regions[0].phrase in one.conversation[0][1] for one in asked)
