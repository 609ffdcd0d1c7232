"""Whatever is predicted perfectly scores 1 in any order, under any name, with any characters; any corruption costs."""

import random
import string
from dataclasses import replace

import numpy as np
import pytest

import unimed
from unimed.evaluation.scorers.grounding import score_grounding
from unimed.evaluation.scorers.multi_task import score_benchmarks
from unimed.evaluation.scorers.parsing import score_parsing
from unimed.evaluation.scorers.reports import score_reports
from unimed.geometry import Geometry
from unimed.io.result import Prediction
from unimed.structures import Region, Sample

NAMES = ["liver", "left kidney", "right kidney", "liver tumor", "spleen", "HER2+ cells", "HER2- cells", "lésion",
         "肝臓", "nodule < 5 mm", "nodule > 5 mm", "lesion 1", "lesion 2", "grade A nuclei"]  # fmt: skip
ANSWERS = [
    "yes",
    "no",
    "A",
    "2+",
    "< 5 cm",
    "-5",
    "2.5 mm",
    "HER2-",
    "↑",
    "≥3",
    "hepatitis A",
    "the left lung",
    "½",
    "T1",
]
REPORTS = [
    "No acute process.",
    "a mass of 2.5 cm (left) ||| stable",
    "liver",
    "line\nbreak\u2028and more",
    "HER2+ !!!",
    "",
]
#: Samples per task; 300 were tried once.
COUNT = 20
SIGNS = str.maketrans("+-<>≥↑", "-+><≤↓")


def mask(generator, shape):
    result = np.zeros(shape, bool)
    corner = [generator.randrange(size - 3) for size in shape]
    result[tuple(slice(c, c + generator.randint(2, 3)) for c in corner)] = True
    return result


def box(generator):
    x, y = generator.randrange(30), generator.randrange(30)
    return (float(x), float(y), float(x + generator.randint(2, 9)), float(y + generator.randint(2, 9)))


def names(generator, count, twice=True):
    chosen = generator.sample(NAMES, count)
    if twice and count > 1 and generator.random() < 0.3:
        chosen[1] = chosen[0]
    return chosen


def sample(generator, task, regions=(), question="what is this?", answer="", shape=(40, 40), **labels):
    return Sample((np.zeros(shape, np.uint8),), Geometry.pixels(), f"s{generator.random()}", "CT",
                  (("user", question), ("assistant", answer)), tuple(regions), {"task": task} | labels,
                  patient_id=f"p{generator.randrange(3)}")  # fmt: skip


def segmented(generator, task="referring", shape=(20, 20)):
    chosen = names(generator, generator.randint(1, 4))
    return sample(generator, task, [Region(n, mask=mask(generator, shape), presence=1.0) for n in chosen],
                  f"Segment the {' and the '.join(chosen)}.", shape=shape)  # fmt: skip


def absent(generator):
    name = generator.choice(NAMES)
    return sample(generator, "absent", [Region(name, presence=0.0)], f"Segment the {name}.", shape=(20, 20))


def boxed(generator, task="box", least=1):
    chosen = names(generator, generator.randint(least, 4)) if least else names(generator, 1)
    regions = [Region(name, box_xyxy_px=box(generator), presence=1.0) for name in chosen]
    return sample(generator, task, regions or [Region(generator.choice(NAMES), presence=0.0)], "Find what is there.")


def worded(generator, task, pool):
    letters = string.printable + "é中☃\u2028\u0085±≥"
    noise = "".join(generator.choice(letters) for _ in range(generator.randint(0, 12)))
    answer = generator.choice(pool) if generator.random() < 0.7 else f"{generator.choice(pool)} {noise}"
    return sample(generator, task, answer=answer)


TASKS = {
    "referring": segmented,
    "volume": lambda g: segmented(g, "volume", (6, 8, 8)),
    "absent": absent,
    "box": boxed,
    "mrg": lambda g: boxed(g, "mrg"),
    "parsing": lambda g: segmented(g, "parsing"),
    "vqa": lambda g: worded(g, "vqa", ANSWERS),
    "classification": lambda g: worded(g, "classification", ANSWERS),
    "caption": lambda g: worded(g, "caption", REPORTS),
    "report": lambda g: worded(g, "report", REPORTS),
    "region": lambda g: worded(g, "region", REPORTS[:5]),
    "refer": lambda g: sample(g, "refer", [Region("liver", box_xyxy_px=box(g))], "liver"),
}


def perfect(one, generator):
    """The truth itself: regions in another order, masks and presence as they are."""
    shown = [r for r in one.regions if r.presence is None or r.presence >= 0.5]
    generator.shuffle(shown)
    answer = next((text for role, text in one.conversation if role == "assistant"), "")
    return Prediction(answer, tuple(replace(r, presence=1.0) for r in shown))


def drop(p, generator):
    return replace(p, regions=p.regions[1:]) if p.regions else None


def duplicate(p, generator):
    return replace(p, regions=(*p.regions, p.regions[0])) if p.regions else None


def rename(p, generator):
    if not p.regions:
        return None
    return replace(p, regions=(replace(p.regions[0], phrase="unrelated thing"), *p.regions[1:]))


def exchange(p, generator):
    for i, first in enumerate(p.regions):
        for j, second in enumerate(p.regions[:i]):
            here, there = (
                (first.mask, second.mask) if first.mask is not None else (first.box_xyxy_px, second.box_xyxy_px)
            )
            if first.phrase != second.phrase and not np.array_equal(here, there):
                turned = list(p.regions)
                turned[i], turned[j] = replace(first, phrase=second.phrase), replace(second, phrase=first.phrase)
                return replace(p, regions=tuple(turned))
    return None


def move(p, generator):
    if not p.regions:
        return None
    first = p.regions[0]
    if first.mask is not None:
        moved = replace(first, mask=np.roll(first.mask, 4, axis=-1))
    else:
        moved = replace(first, box_xyxy_px=tuple(v + 1.5 for v in first.box_xyxy_px))
    return replace(p, regions=(moved, *p.regions[1:]))


def empty(p, generator):
    return None if not p.regions and not p.text.strip() else Prediction("")


def further(p, generator):
    """An object that is not there."""
    if p.regions and p.regions[0].mask is not None:
        return replace(p, regions=(*p.regions, Region("unrelated thing", mask=~p.regions[0].mask, presence=1.0)))
    if p.regions:
        return replace(p, regions=(*p.regions, Region("unrelated thing", box_xyxy_px=(50, 50, 60, 60), presence=1.0)))
    return replace(p, regions=(Region("unrelated thing", mask=np.ones((20, 20), bool), presence=1.0),))


def flip_sign(p, generator):
    turned = p.text.translate(SIGNS)
    return replace(p, text=turned) if turned != p.text else None


def other_text(p, generator):
    return replace(p, text="something else 7") if p.text.strip() else None


REGIONS = (drop, duplicate, rename, exchange, move, empty, further)
CORRUPTIONS = {
    **dict.fromkeys(("referring", "volume", "box", "mrg", "parsing"), REGIONS),
    "absent": (further,),
    **dict.fromkeys(("vqa", "classification"), (flip_sign, other_text, empty)),
    **dict.fromkeys(("caption", "report", "region"), (flip_sign, other_text, empty)),
    "refer": (drop, duplicate, move, empty, further),
}
#: Numbers of the scorers that a perfect prediction brings to 1, and those it brings to 0.
BEST = (
    "dice_mean iou_mean dice/ presence_acc presence_sens presence_spec miou acc_at box_ phrase_ accuracy bleu rouge"
    " meteor f1"
).split()
WORST = "false_mask missed_mask superfluous false_box false_positive false_negative uncertainty_ ece".split()


def numbers(task, one, prediction):
    """Metric -> value where higher is better, by `unimed.evaluate` and by the scorer of the task."""
    rows = unimed.evaluate([prediction], [one])
    found = {}
    for line in rows.means(resamples=0):
        value = line["mean"].value if line["better"] == "higher" else 1 - line["mean"].value
        if not np.isnan(value):
            found[f"evaluate/{line['kind']}/{line['metric']}"] = value
    scorer = {"mrg": score_reports, "parsing": score_parsing, "refer": score_benchmarks}.get(task, score_grounding)
    for name, value in scorer([one], [prediction])["summary"].items():
        last = name.split("/", 1)[1] if task == "refer" else name
        if not isinstance(value, (int, float)) or np.isnan(value) or "cider" in name:
            continue
        if any(last.startswith(start) for start in WORST):
            found[f"scorer/{name}"] = 1 - float(value)
        elif any(last.startswith(start) for start in BEST):
            found[f"scorer/{name}"] = float(value)
    return found


@pytest.mark.parametrize("task", TASKS)
def test_perfect_predictions_score_one_and_corrupted_ones_less(task):
    generator, tried, corrupted = random.Random(sum(map(ord, task))), 0, dict.fromkeys(CORRUPTIONS[task], 0)
    for _ in range(COUNT):
        one = TASKS[task](generator)
        prediction = perfect(one, generator)
        best = numbers(task, one, prediction)
        assert best, "something is measured"
        wrong = {name: value for name, value in best.items() if value != pytest.approx(1, abs=1e-9)}
        assert not wrong, (one.regions, one.conversation, wrong)
        tried += 1
        for corrupt in CORRUPTIONS[task]:
            worse = corrupt(prediction, generator)
            if worse is None:
                continue
            corrupted[corrupt] += 1
            values = numbers(task, one, worse)
            assert all(value <= 1 + 1e-9 for value in values.values())
            lower = [name for name, value in values.items() if value < 1 - 1e-6]
            for road in ("evaluate", "scorer"):
                assert any(name.startswith(road) for name in lower), (corrupt.__name__, road, one, worse, values)
    counts = ", ".join(f"{corrupt.__name__} {count}" for corrupt, count in corrupted.items())
    print(f"{task}: {tried} perfect predictions, 0 below 1; corrupted: {counts}, 0 at 1")
    assert all(count for count in corrupted.values()), counts


def test_exchanged_arguments_are_told():
    from unimed.evaluation.evaluating import evaluate
    from unimed.geometry import Geometry
    from unimed.io.result import Prediction
    from unimed.structures import Sample

    sample = Sample((np.zeros((4, 4, 3), np.uint8),), Geometry(np.eye(4)), "a")
    with pytest.raises(ValueError, match="got Sample and Prediction"):
        evaluate([sample], [Prediction("x")])
    with pytest.raises(ValueError, match="got dict and Sample"):
        evaluate([Prediction("x").to_dict()], [sample])
