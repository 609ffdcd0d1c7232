import numpy as np
import pytest

from unimed.data.canonical import box_of_mask, pointed_regions, with_conversation, without_markers
from unimed.geometry import Geometry
from unimed.structures import TASK_ALIASES, Region, Sample, Task, TaskNameError, task_of

MASK = np.zeros((20, 30), bool)
MASK[5:10, 6:12] = True


IMAGE = np.zeros((20, 30), np.uint8)


def sample(regions=(), images=(IMAGE,), **labels):
    return Sample(images, Geometry.pixels(), "a", regions=regions, labels=labels)


def test_every_word_of_a_task_means_one_task_with_one_name_for_routing_and_scoring():
    for word in (*Task, *TASK_ALIASES):
        task = task_of(word)
        assert task.short in ("qa", "vqa", "refer", "identify", "caption", "cls")
        assert task_of(task) is task
    assert (task_of("absent").short, task_of("identify"), task_of("cls").short) == ("refer", Task.REGION, "cls")
    with pytest.raises(TaskNameError, match="'segment' is not known; choose one of: referring"):
        task_of("segment")
    with pytest.raises(TaskNameError, match="sample a: "):
        _ = sample(task="draw").task


def test_a_sample_without_a_task_or_words_gets_those_its_regions_allow():
    assert sample().task is Task.VQA and sample(images=()).task is Task.QA
    assert sample(captions=["x"]).task is Task.CAPTION
    there, absent = Region("liver", mask=MASK), Region("tumor", presence=0.0)
    asked = with_conversation(sample((there, absent)))
    assert asked.task is Task.REFERRING
    assert asked.conversation == (
        ("user", "Please segment liver, tumor."), ("assistant", "<p> liver </p> [SEG]. There is no tumor."),
    )  # fmt: skip
    assert pointed_regions(asked) == [there]
    boxed = with_conversation(sample((Region("liver", box_xyxy_px=(1, 2, 3, 4)),)))
    assert boxed.conversation[1][1] == "<p> liver </p> [BOX]." and boxed.task is Task.BOX
    assert with_conversation(sample(captions=["a scan"])).conversation[1][1] == "a scan"
    with pytest.raises(ValueError, match="sample a: it has no conversation"):
        with_conversation(sample())


def test_boxes_of_masks_and_text_without_markers():
    assert box_of_mask(MASK) == (6, 5, 12, 10) == box_of_mask(np.stack([MASK, MASK & False]))
    assert box_of_mask(MASK & False) is None
    assert without_markers("A <p> liver </p> [SEG] , and [BOX].") == "A liver, and."
