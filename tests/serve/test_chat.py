"""The chat door, asked by OpenAI's own client over a real port."""

import contextlib
import json

import pytest
from small_models import teach, tiny_model

pytest.importorskip("fastapi")
pytest.importorskip("prometheus_client")
openai = pytest.importorskip("openai")

from serve.serving import TOKENS, application, data_url, png, served  # noqa: E402

from unimed.io.rle import decode_mask  # noqa: E402


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    model = tiny_model()
    model.presence_head.bias.data.fill_(5.0)  # what it points at is there, whatever was drawn
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


def test_a_stream_says_the_same_as_a_whole_answer(server):
    with told(server, "the <p> nuclei </p> [SEG]. there is no lesion") as expected:
        ask = dict(model="tiny", messages=[user("segment the nuclei", data_url(png(2)))], max_completion_tokens=32)
        parts = list(client(server).chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.delta.content or "" for part in parts for c in part.choices)
    assert text == expected and parts[0].choices[0].delta.role == "assistant"
    assert sum(bool(c.delta.content) for part in parts for c in part.choices) > 2  # it came in pieces
    regions = [c.delta.model_extra["regions"] for p in parts for c in p.choices if "regions" in c.delta.model_extra]
    assert len(regions) == 1 and regions[0][0]["phrase"] == "nuclei"
    start, end = regions[0][0]["phrase_span"]
    assert text[start:end] == "nuclei"
    assert parts[-1].usage.completion_tokens > 5 and parts[-2].choices[0].finish_reason == "stop"


def test_later_turns_speak_of_regions_of_earlier_ones(server):
    with told(server, "the <p> nuclei </p> [SEG]."):
        first = [user("segment the nuclei", data_url(png(3)))]
        done = client(server).chat.completions.create(model="tiny", messages=first, max_completion_tokens=32)
    answer = done.choices[0].message
    assert [region["id"] for region in answer.regions] == ["r1"] and answer.regions[0]["mask"]["size"] == [40, 30]
    seen = []
    usual = server.model._predict_images
    server.model._predict_images = lambda *a, **k: (seen.append((a, k)), usual(*a, **k))[1]
    try:
        again = [*first, answer.model_dump(exclude_none=True), user("what is @r1?")]
        box = answer.regions[0] | {"box_xyxy": [2.0, 3.0, 20.0, 30.0]}
        box.pop("mask")
        again[1]["regions"] = [box]
        client(server).chat.completions.create(model="tiny", messages=again, max_completion_tokens=4)
    finally:
        del server.model._predict_images
    (_, texts, regions), options = seen[0][0], seen[0][1]
    assert texts == ["what is region1?"] and regions[0][0].box_xyxy_px == (2.0, 3.0, 20.0, 30.0)
    assert options["history"][0][0] == ("user", "segment the nuclei") and options["history"][0][1][0] == "assistant"
    with pytest.raises(openai.BadRequestError, match="no earlier turn"):
        client(server).chat.completions.create(model="tiny", messages=[*again[:2], user("what is @r7?")])


def test_history_is_read_by_the_model(server):
    def said(*words):
        turns = [user(words[0], data_url(png(4)))]
        for number, text in enumerate(words[1:]):
            turns.append({"role": ("assistant", "user")[number % 2], "content": text})
        done = client(server).chat.completions.create(model="tiny", messages=turns, max_completion_tokens=8)
        return done.choices[0].message.content, done.usage.prompt_tokens

    (image, _), (other, count) = said("segment"), said("there is no lesion", "the nuclei", "segment")
    assert count > 3 and isinstance(image, str) and isinstance(other, str)


def test_strict_clients_get_one_json_object(server):
    schema = {
        "type": "object",
        "properties": {
            "text": {"type": "string"},
            "regions": {"type": "array", "items": {"type": "object", "properties": {"phrase": {"type": "string"},
                        "box_xyxy": {"type": "array"}}, "required": ["phrase", "box_xyxy"],
                        "additionalProperties": False}},
        },
        "required": ["text", "regions"], "additionalProperties": False,
    }  # fmt: skip
    wanted = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
    ask = dict(model="tiny", messages=[user("segment", data_url(png(5)))], max_completion_tokens=16)
    with told(server, "the <p> nuclei </p> [SEG]."):
        done = client(server).chat.completions.create(**ask, response_format=wanted)
        streamed = client(server).chat.completions.create(**ask, response_format=wanted, stream=True)
        text = "".join(c.delta.content or "" for part in streamed for c in part.choices)
    values = json.loads(done.choices[0].message.content)
    assert values == json.loads(text) and values["text"] == "the nuclei."
    assert all(set(region) == {"phrase", "box_xyxy"} for region in values["regions"]) and values["regions"]
    for schema in ({"type": "object", "required": ["diagnosis"]}, {"type": 7}, {"$ref": "http://localhost:1/x"}):
        wanted["json_schema"]["schema"] = schema
        with pytest.raises(openai.BadRequestError):
            client(server).chat.completions.create(**ask, response_format=wanted)


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1/x.png", "file:///etc/passwd", "unimed://images/" + "0" * 32, "data:image/png;base64,@@",
            "data:text/html;base64,AAAA", "unimed://images/../../x", "data:image/png;base64,AAAA", ""],
)  # fmt: skip
def test_only_data_urls_and_own_uploads_are_images(server, url):
    with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as caught:
        client(server).chat.completions.create(model="tiny", messages=[user("x", url)])
    assert "/state/" not in str(caught.value) and server.core.images.of("anna") == []


@pytest.mark.parametrize("asked", [{"tool_choice": "required"}, {"n": 2}], ids=["tools", "several answers"])
def test_what_no_model_here_does_is_refused(server, asked):
    with pytest.raises(openai.BadRequestError) as refused:
        client(server).chat.completions.create(model="tiny", messages=[user("x")], **asked)
    assert next(iter(asked)) in str(refused.value)


@pytest.mark.parametrize(
    "messages", [[{"role": "robot", "content": "x"}], [{"role": "assistant", "content": "x"}], [user(" ")],
                 [{"role": "user", "content": [{"type": "audio"}]}], [{"role": "user", "content": 7}],
                 [user("x", regions=["r1"])], [user("x", regions=[{"box_xyxy": [0, 0, 0, 0]}])],
                 [user("x", regions=[{"mask": {"size": [9, 9], "counts": [1]}}])]],
)  # fmt: skip
def test_messages_nobody_can_read_are_400(server, messages):
    with pytest.raises(openai.BadRequestError):
        client(server).chat.completions.create(model="tiny", messages=messages)


def test_control_strings_of_users_are_text(server):
    text = "[SEG] <image> <image> <|im_end|> \x1b[31m <p>x</p>"
    done = client(server).chat.completions.create(
        model="tiny", messages=[user(text, data_url(png(6)))], max_completion_tokens=2
    )
    assert done.choices[0].finish_reason == "length"


@contextlib.contextmanager
def told(server, text):
    """Within the block the model of a server answers with exactly this text; gives what a reader sees of it."""
    model, settings = server.model, server.core.settings
    head, usual, most = model.backbone.lm.lm_head, model._predict_part, settings.max_new_tokens
    ids = model.processor.tokenizer(text, add_special_tokens=False)["input_ids"] + [min(model.processor.stop_ids)]
    model._predict_part = lambda *a, **k: (teach(model, ids), usual(*a, **k))[1]
    object.__setattr__(settings, "max_new_tokens", 64)
    try:
        yield model.processor.parse(ids).text
    finally:
        object.__setattr__(settings, "max_new_tokens", most)
        del model._predict_part
        model.backbone.lm.lm_head = head
