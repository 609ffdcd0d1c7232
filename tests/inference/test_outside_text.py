"""Text of a server and regions of our weights are the answer of one process; the server runs the same model."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "models" / "grounded"))

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
pytest.importorskip("openai")

from serve.serving import application, served  # noqa: E402
from small_models import tiny_model  # noqa: E402

from unimed.inference.outside_text import OutsideText, TextError  # noqa: E402
from unimed.models.grounded.regions import PromptError  # noqa: E402

BOX = {"kind": "point"}


def images(count=3):
    rng = np.random.default_rng(1)
    return [rng.integers(0, 255, (40 + 4 * n, 60, 3), dtype=np.uint8) for n in range(count)]


def lively():
    """A small model whose answers hold [SEG] among other words."""
    import torch

    model = tiny_model(BOX)
    torch.manual_seed(4)
    with torch.no_grad():
        weight = model.lm_head.weight
        weight.normal_(std=0.4)
        weight[model.config.seg_token_id] *= 3
        weight[model.config.box_token_id] *= 3
    return model


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.text == other.text and len(one.regions) == len(other.regions)
        for region, wanted in zip(one.regions, other.regions, strict=True):
            assert region.phrase == wanted.phrase and abs(region.confidence - wanted.confidence) < 1e-4
            if wanted.mask is not None:
                assert (region.mask == wanted.mask).all()
            if wanted.box_xyxy_px is not None:
                assert np.allclose(region.box_xyxy_px, wanted.box_xyxy_px, atol=1e-2)


def test_one_pass_over_known_answers_points_as_decoding_does():
    model = lively()
    texts = ["segment the nuclei", "where is it", "is there a lesion"]
    kept = []
    watch = lambda number, row: kept.append((number, row))  # noqa: E731
    expected = model.predict_batch(images(), texts, max_new_tokens=12, watch=watch)
    assert sum(len(one.regions) for one in expected) > 2
    ids = {number: list(row.ids) for number, row in kept}
    same(model.predict_batch(images(), texts, answers=[ids[n] for n in range(3)]), expected)
    # One image after the other, and with answers of very different length in one batch.
    same(model.predict_batch(images(), texts, answers=[ids[n] for n in range(3)], batch_size=1), expected)
    short = model.predict_batch(images(), texts, answers=[ids[0][:1], ids[1], ids[2]])
    same(short[1:], expected[1:])


def test_an_answer_given_as_text():
    model = lively()
    image = images()[0]
    found = model.predict(image, "segment the nuclei", answers=["<p> nuclei </p> [SEG]."])
    assert found.text == "nuclei." and [region.phrase for region in found.regions] == ["nuclei"]
    with pytest.raises(PromptError, match="tokens of images"):
        model.predict(image, "segment the nuclei", answers=[[model.processor.image_token_id]])
    with pytest.raises(PromptError, match="tokenizer does not have"):
        model.predict(image, "segment the nuclei", answers=[[10**6]])


def test_a_server_writes_and_this_process_points(tmp_path):
    model = lively()
    texts = ["segment the nuclei", "where is it", "is there a lesion"]
    expected = model.predict_batch(images(), texts, max_new_tokens=8)
    assert any(one.regions for one in expected)
    with served(application(tmp_path, model, tokens=False)) as server:
        here = lively()
        decoded = []
        usual = here.processor.stopped
        here.processor.stopped = lambda ids: decoded.append(1) or usual(ids)
        here.text_from = OutsideText(f"{server.url}/v1")
        found = here.predict_batch(images(), texts, max_new_tokens=8)
        with pytest.raises(PromptError, match="without them"):
            here.predict(images()[0], "what is region1", [(1, 1, 20, 20)])
    assert not decoded, "the text was decoded here"
    same(found, expected)


def test_what_no_server_is(tmp_path):
    for url in ("localhost:8000", "ftp://host/v1", "http://me:secret@host/v1"):
        with pytest.raises(TextError, match="must be http"):
            OutsideText(url)
    with pytest.raises(TextError, match="http://127.0.0.1:9"):
        OutsideText("http://127.0.0.1:9/v1", timeout_s=2)
