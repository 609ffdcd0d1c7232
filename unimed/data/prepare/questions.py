"""Cases to records: what is asked of an image, and the answer that follows from its masks, header or documentation.

Every answer is a template over measured facts and each record says so. Wordings are drawn by a generator that is seeded
with the name of the case, so that the set is the same on every machine.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np

from unimed.data.prepare.cases import Case, Folder, Structure, box_of
from unimed.tokens import BOX_TOKEN, PHRASE_END, PHRASE_START, SEG_TOKEN

#: Answers of modality questions, most general names.
MODALITIES = (
    "CT",
    "MRI",
    "X-ray",
    "ultrasound",
    "fluorescence microscopy",
    "histology",
    "fundus photography",
    "bone scan",
)
SEGMENT = ("Segment the {}.", "Point out the {} with a mask.", "Where is the {}? Answer with a mask.")
BOX = ("Put a box around the {}.", "Where is the {}? Answer with a box.", "Locate the {} with a box.")
EVERY_BOX = ("Put a box around every {}.", "Locate every {} with a box.")
IF_PRESENT = ("Is there any {} in this image? If so, segment it.", "Segment the {} if it is visible.")
IS_THERE = ("Is there any {} in this image?", "Does this image show any {}?")
CAPTION = ("Describe this image in one sentence.", "Write a caption for this image.")
REPORT = ("Write a short report and point at what you mention.", "Report the findings and mark each with a mask.")
REGION = ("What is region1?", "Describe region1.")

#: More single objects than this are not asked for in one answer.
MOST_OBJECTS = 12


class Answer:
    """Text of an answer and the regions it points at, built together so that they cannot disagree."""

    def __init__(self):
        self.text = ""
        self.regions: list[dict] = []

    def say(self, text: str) -> Answer:
        self.text += text
        return self

    def point(self, phrase: str, mask: str | None = None, box: tuple | None = None, shown: str = "") -> Answer:
        """Append the phrase (`shown`, if its spelling differs) and one [SEG] for a mask or one [BOX] for a box."""
        self.text += f"{PHRASE_START} "
        span = (len(self.text), len(self.text) + len(shown or phrase))
        self.text += f"{shown or phrase} {PHRASE_END} {SEG_TOKEN if mask else BOX_TOKEN}"
        self.regions.append(region(phrase, mask, box, True, span))
        return self

    def deny(self, phrase: str) -> Answer:
        """Remember that `phrase` was asked for and is not there."""
        self.regions.append(region(phrase, None, None, False, None))
        return self


def region(phrase, mask, box, present, span) -> dict:
    """One entry of `regions` in a record."""
    return {
        "phrase": phrase,
        "mask": mask,
        "box_xyxy_px": list(box) if box else None,
        "present": present,
        "phrase_span": list(span) if span else None,
    }


class Asker:
    """Makes the records of one case and hands them to the folder.

    The image and each mask are written once and shared by all records of the case.
    """

    def __init__(self, case: Case, folder: Folder):
        self.case = case
        self.folder = folder
        self.image = folder.write_image(case)
        self.masks = {s.phrase: folder.write_mask(case, s) for s in case.structures}
        self._count: dict[str, int] = {}

    def ask(self, task: str, wordings: tuple[str, ...] | str, answer: Answer | str, subject: str = "", **extra) -> None:
        """Add one record; `subject` fills the wording."""
        case = self.case
        number = self._count[task] = self._count.get(task, -1) + 1
        if isinstance(wordings, str):
            wordings = (wordings,)
        question = random.Random(f"{case.name}/{task}/{number}").choice(wordings).format(subject)
        if isinstance(answer, str):
            answer = Answer().say(answer)
        self.folder.add(
            {
                "id": f"{case.name}-{task}-{number}",
                "task": task,
                ("volume" if case.geometry is not None else "image"): self.image,
                "modality": case.modality,
                "site": case.site,
                "patient_id": case.patient_id,
                "source": case.source,
                "license": case.license,
                "label_origin": case.label_origin,
                "split": case.split,
                "question": question,
                "answer": answer.text,
                "regions": answer.regions,
                "label": extra.get("label"),
                "choices": extra.get("choices"),
                "note": "; ".join(part for part in (case.note, extra.get("note", "text is a template")) if part),
            }
        )


def ask_case(case: Case, folder: Folder, fair: set[str]) -> Asker:
    """All records that follow from one case alone.

    Args:
        fair: which of "modality" and "site" may be asked of this case (see `unimed.data.prepare.sample`).

    Returns:
        The asker, for the questions that need to know other cases too.
    """
    asker = Asker(case, folder)
    if case.geometry is not None:
        for structure in case.structures:
            wording = ("Segment the {} in this volume.", "Mark the {} on every slice.")
            answer = Answer().point(structure.phrase, asker.masks[structure.phrase]).say(".")
            asker.ask("volume", wording, answer, structure.phrase)
        return asker
    for structure in case.structures:
        mask = asker.masks[structure.phrase]
        asker.ask("referring", SEGMENT, Answer().point(structure.phrase, mask).say("."), structure.phrase)
        _ask_boxes(asker, structure)
        _ask_region(asker, structure)
    if len(case.structures) > 1:
        phrases = [s.phrase for s in case.structures]
        listed = _listing([f"the {p}" for p in phrases])
        answer = Answer()
        for index, phrase in enumerate(phrases):
            answer.say("" if index == 0 else ", " if index < len(phrases) - 1 else " and ")
            answer.point(phrase, asker.masks[phrase])
        asker.ask("referring", ("Segment {}.", "Mark {} in one answer."), answer.say("."), listed)
    _ask_facts(asker, fair)
    asker.ask("caption", CAPTION, caption_of(case), note=_text_origin(case))
    if report := report_of(asker):
        asker.ask("report", REPORT, report)
    return asker


def _ask_boxes(asker: Asker, structure: Structure) -> None:
    if not structure.objects:
        asker.ask("box", BOX, Answer().point(structure.phrase, box=box_of(structure.mask)).say("."), structure.phrase)
        return
    if len(structure.objects) > 1:
        sizes = [int(mask.sum()) for mask in structure.objects]
        # Two of nearly one size would make "the largest" a matter of luck.
        if max(sizes) > 1.1 * sorted(sizes)[-2]:
            largest = structure.objects[int(np.argmax(sizes))]
            name = f"largest {structure.piece}"
            asker.ask("box", BOX, Answer().point(name, box=box_of(largest)).say("."), name)
    else:
        box = box_of(structure.objects[0])
        asker.ask("box", BOX, Answer().point(structure.piece, box=box).say("."), structure.piece)
    if 1 < len(structure.objects) <= MOST_OBJECTS:
        answer = Answer()
        boxes = sorted((box_of(mask) for mask in structure.objects), key=lambda box: (box[1], box[0]))
        for index, box in enumerate(boxes):
            answer.say(", " if index else "").point(structure.piece, box=box)
        asker.ask("box", EVERY_BOX, answer.say("."), structure.piece)


def _ask_region(asker: Asker, structure: Structure) -> None:
    case = asker.case
    answer = Answer().say(
        f"Region1 shows {structure.phrase}, {case.site}, {case.modality}. It covers {_percent(structure.mask)} of the "
        f"image and lies {_place(structure.mask)}."
    )
    answer.regions.append(region(structure.phrase, asker.masks[structure.phrase], None, True, None))
    asker.ask("region", REGION, answer, label=structure.phrase, note="region1 is given by its mask; text is a template")


def _ask_facts(asker: Asker, fair: set[str]) -> None:
    case = asker.case
    if "modality" in fair:
        asker.ask("vqa", "Which imaging modality is this?", f"{case.modality}.", label=case.modality, choices=None)
        asker.ask(
            "classification",
            f"Classify the modality: {', '.join(MODALITIES)}.",
            case.modality,
            label=case.modality,
            choices=list(MODALITIES),
        )
    if "site" in fair:
        asker.ask("vqa", "Which part of the body is shown?", f"{case.site}.", label=case.site)
    for structure in case.structures:
        if structure.piece and 1 <= len(structure.objects) <= MOST_OBJECTS and structure.piece != structure.phrase:
            number = str(len(structure.objects))
            asker.ask("vqa", "How many {} are there?", f"{number}.", structure.phrase, label=number)
    if case.structures and len(case.absent) >= 3:
        draw = random.Random(f"{case.name}/visible")
        visible = draw.choice(case.structures).phrase
        choices = [visible, *draw.sample(sorted(case.absent), 3)]
        draw.shuffle(choices)
        question = f"Which of these is visible: {', '.join(choices)}?"
        asker.ask("vqa", question, f"{visible}.", label=visible, choices=choices)
    if case.details.get("finding_asked"):
        label = "lesion" if any(s.phrase == "lesion" for s in case.structures) else "no lesion"
        asker.ask(
            "classification", "Classify this slice: lesion, no lesion.", label, label=label,
            choices=["lesion", "no lesion"],
        )  # fmt: skip


def ask_presence(askers: list[Asker], yes_no: bool) -> Iterator[tuple[Asker, str, bool]]:
    """Choose, phrase by phrase, as many images that show it as images that do not.

    A phrase that is never or always there would be answered without looking, so each is asked equally often both ways.
    """
    kind = "yesno" if yes_no else "absent"
    images = [asker for asker in askers if asker.case.geometry is None]
    phrases = sorted({s.phrase for asker in images for s in asker.case.structures})
    for phrase in phrases:
        there = [a for a in images if phrase in a.masks]
        missing = [a for a in images if phrase in a.case.absent]
        count = min(len(there), len(missing))
        draw = random.Random(f"{kind}/{phrase}/{images[0].case.split}")
        for asker in draw.sample(there, count):
            yield asker, phrase, True
        for asker in draw.sample(missing, count):
            yield asker, phrase, False


def ask_about_presence(askers: list[Asker]) -> None:
    """Absent-object questions (task "absent") and yes/no questions (task "vqa") of one split, both balanced."""
    for asker, phrase, there in ask_presence(askers, yes_no=False):
        answer = Answer()
        if there:
            answer.say("Yes, ").point(phrase, asker.masks[phrase]).say(".")
        else:
            answer.say(f"No, there is no {phrase} in this image.").deny(phrase)
        label = "yes" if there else "no"
        asker.ask("absent", IF_PRESENT, answer, phrase, label=label, choices=["yes", "no"])
    for asker, phrase, there in ask_presence(askers, yes_no=True):
        label = "yes" if there else "no"
        asker.ask("vqa", IS_THERE, f"{label.capitalize()}.", phrase, label=label, choices=["yes", "no"])


def caption_of(case: Case) -> str:
    """The caption of the case, or a sentence made of plane, modality and site."""
    if case.caption:
        return case.caption
    plane = f"{case.plane} " if case.plane else ""
    text = f"{plane}{case.modality} of {_with_article(case.site)}." if case.site else f"{plane}{case.modality} image."
    return text[0].upper() + text[1:]


def _text_origin(case: Case) -> str:
    return case.details.get("caption_origin", "text is a template")


def report_of(asker: Asker) -> Answer | None:
    """A short report whose phrases point at masks and whose numbers are measured on them; None if nothing is known."""
    case, masks = asker.case, asker.masks
    by_phrase = {s.phrase: s for s in case.structures}
    answer = Answer().say(caption_of(case).rstrip(".") + ". ")
    if "nuclei" in by_phrase:
        structure = by_phrase["nuclei"]
        answer.say(f"There are {len(structure.objects)} ").point("nuclei", masks["nuclei"])
        return answer.say(f", covering {_percent(structure.mask)} of the image.")
    if {"brain", "grey matter", "white matter"} <= by_phrase.keys():
        brain = by_phrase["brain"].mask
        answer.say("Within the ").point("brain", masks["brain"]).say(", ")
        answer.point("grey matter", masks["grey matter"])
        answer.say(f" takes {_percent(by_phrase['grey matter'].mask, brain)} and ")
        answer.point("white matter", masks["white matter"])
        return answer.say(f" {_percent(by_phrase['white matter'].mask, brain)}.")
    if "lesion" in by_phrase:
        mask = by_phrase["lesion"].mask
        x1, y1, x2, y2 = box_of(mask)
        answer.say("A ").point("lesion", masks["lesion"])
        if case.pixel_mm:
            height_mm, width_mm = (y2 - y1) * case.pixel_mm[0], (x2 - x1) * case.pixel_mm[1]
            answer.say(f" of {width_mm:.0f} x {height_mm:.0f} mm")
        return answer.say(f" lies {_place(mask)}.")
    if case.details.get("finding_asked"):
        return answer.say("No lesion is seen.").deny("lesion")
    return None


def _listing(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _with_article(site: str) -> str:
    return site if site.endswith("s") or site.startswith("the ") else f"the {site}"


def _percent(mask: np.ndarray, within: np.ndarray | None = None) -> str:
    total = within.sum() if within is not None else mask.size
    fraction = (mask & within).sum() if within is not None else mask.sum()
    percent = 100 * float(fraction) / float(total)
    return "less than 1 percent" if percent < 1 else f"{percent:.0f} percent"


def _place(mask: np.ndarray) -> str:
    """Where the centre of mass lies, in thirds of the picture; sides are those of the picture, not of the patient."""
    rows, columns = np.nonzero(mask)
    vertical = ("at the top", "in the middle", "at the bottom")[min(2, int(3 * rows.mean() / mask.shape[0]))]
    sideways = ("on the left", "", "on the right")[min(2, int(3 * columns.mean() / mask.shape[1]))]
    return f"{vertical} {sideways}".strip()
