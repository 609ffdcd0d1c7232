"""Counts on the zoo page are those of the recorded names and shapes, and every layout stands there."""

import json
import math
import re
from pathlib import Path

from unimed.layouts import LAYOUTS

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
PAGE = (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")


def recorded():
    """{words of a row of the page: (tensors, parameters)}."""

    def shapes(path, *keys):
        values = json.loads((GOLDEN / path).read_text())
        for key in keys:
            values = values[key]
        return values

    found = {
        "Sa2VA 1B": shapes("unibiomed/hf_sa2va_1b_qwen2_keys.json"),
        "Sa2VA 8B": shapes("unibiomed/hf_sa2va_8b_internlm2_keys.json"),
        "BiomedParse v2": shapes("biomedparse/state_dict_shapes.json", "v2_full"),
        "BiomedParse v1": shapes("biomedparse/state_dict_shapes.json", "v1_full_without_biomed_encoder"),
        "box decoder": shapes("umedground/sam_box_decoder_fullsize_keys.json"),
    }
    for words, stem in (
        ("B/16", "b16"),
        ("l14_base", "l14_base_text_encoder"),
        ("l14_large", "l14_large_text_encoder"),
    ):
        found[words] = shapes(f"unimed_clip/manifests/unimed_clip_vit_{stem}.json", "keys")
    return {words: (len(one), sum(math.prod(shape) for shape in one.values())) for words, one in found.items()}


def test_counts_are_the_recorded_ones():
    rows = re.findall(r"^\| (.+?) \| `\w+` \| ([\d,]+) \| ([\d,]+) \|$", PAGE, flags=re.MULTILINE)
    expected = recorded()
    assert len(rows) == len(expected)
    for words, counts in expected.items():
        (row,) = [row for row in rows if words in row[0]]
        assert tuple(int(number.replace(",", "")) for number in row[1:]) == counts, words


def test_every_layout_that_is_a_system_is_named():
    for layout in set(LAYOUTS) - {"llava-v1", "internvl", "sam", "sam2", "lisa", "medsam_lite", "uni_med", "open_clip"}:
        assert f"`{layout}`" in PAGE, layout
    for words in ("LISA", "LLaVA v1", "InternVL2_5", "sam_vit_", "sam2_hiera_", "LiteMedSAM", "open_clip"):
        assert words in PAGE, words
