"""The chat door, asked by OpenAI's own client over a real port."""

import pytest
from small_models import teach, tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
openai = pytest.importorskip("openai")

from serve.serving import TOKENS, application, data_url, png, served  # noqa: E402

from unimed.io.rle import decode_mask  # noqa: E402


def saying(text):
    """A tiny model that answers with exactly this text."""
    model = tiny_model()
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
    return teach(model, [*ids, model.processor.tokenizer.eos_token_id or 0])


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = tiny_model()
    app = application(tmp_path_factory.mktemp("chat"), model)
    with served(app) as one:
        one.model = model
        yield one


def client(server, owner="anna"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=TOKENS[owner], max_retries=0)


def user(text, *urls, **more):
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": "user", "content": [{"type": "text", "text": text}, *parts], **more}


def test_an_answer_is_what_predict_says(server, tmp_path):
    (tmp_path / "a.png").write_bytes(png(1))
    expected = server.model.predict(str(tmp_path / "a.png"), "segment the nuclei", max_new_tokens=8)
    done = client(server).chat.completions.create(
        model="tiny", messages=[user("segment the nuclei", data_url(png(1)))], max_completion_tokens=8
    )
    message = done.choices[0].message
    assert message.content == expected.text and len(message.regions) == len(expected.regions)
    assert done.usage.completion_tokens == 8 and done.choices[0].finish_reason == "length"
    for region, known in zip(message.regions, expected.regions, strict=True):
        assert (decode_mask(region["mask"]) == known.mask).all()
    assert server.core.images.of("anna") == []  # the file of a data URL is gone


def test_models_are_listed_and_unknown_ones_refused(server):
    assert [model.id for model in client(server).models.list()] == ["tiny"]
    with pytest.raises(openai.NotFoundError):
        client(server).chat.completions.create(model="other", messages=[user("x")])
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0).models.list()
