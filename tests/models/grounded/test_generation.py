"""Decoding that reads a shared beginning once gives what decoding row by row gives."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.closeness import assert_close
from unimed.models.grounded import generation
from unimed.models.grounded.drafts import NO_WORD, Drafts, EarlierAnswers
from unimed.models.grounded.generation import generate, read, read_answers, shared_prefixes


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, bos_token_id=None, eos_token_id=None, pad_token_id=0, initializer_range=0.3,
        )  # fmt: skip
        self.lm = LlamaForCausalLM(config).eval()
        self.language_model, self.lm_head = self.lm.model, self.lm.lm_head

    def embed_tokens(self, ids):
        return self.lm.model.embed_tokens(ids)


@pytest.fixture(scope="module")
def model():
    return Language()


def batch(model, rows):
    width = max(map(len, rows))
    ids, mask = torch.zeros(len(rows), width, dtype=torch.long), torch.zeros(len(rows), width, dtype=torch.long)
    for number, row in enumerate(rows):
        ids[number, width - len(row) :] = torch.tensor(row)
        mask[number, width - len(row) :] = 1
    return model.embed_tokens(ids), mask


def drawn(seed, length):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 40, (length,), generator=generator).tolist()


IMAGE, OTHER = drawn(1, 30), drawn(2, 25)
BATCHES = {
    "one image": [IMAGE + drawn(n, 2 + n) for n in range(3, 8)],
    "two images, mixed": [IMAGE + drawn(3, 4), OTHER + drawn(4, 3), IMAGE + drawn(5, 2), OTHER + drawn(6, 9)],
    "one image and a stranger": [IMAGE + drawn(3, 4), drawn(9, 12), IMAGE + drawn(5, 2)],
    "the same question twice": [IMAGE + drawn(3, 4), IMAGE + drawn(3, 4)],
    "one is the beginning of the other": [IMAGE, IMAGE + drawn(3, 5)],
    "one token": [[5], [5]],
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("state_before", [False, True])
def test_a_shared_beginning_changes_nothing(model, name, state_before, monkeypatch):
    embeds, mask = batch(model, BATCHES[name])
    options = dict(keep_states_of=[7, 8, 9], stop_ids=[3], max_new_tokens=12, state_before=state_before)
    found = generate(model, embeds, mask, **options)
    monkeypatch.setattr(generation, "shared_prefixes", lambda *_: None)
    for one, other in zip(found, generate(model, embeds, mask, **options), strict=True):
        assert one.ids == other.ids and one.state_ids == other.state_ids and one.finished == other.finished
        for state, expected in zip(one.states, other.states, strict=True):
            assert_close(state, expected, relative=1e-4)


def test_positions_of_several_axes_are_kept(model, monkeypatch):
    """As Qwen-VL has them: [3, B, L]; here a model that reads the first axis."""

    class Axes(nn.Module):
        def __init__(self):
            super().__init__()
            held = Language()
            self.inner, self.lm_head, self.embed_tokens = held.language_model, held.lm_head, held.embed_tokens

        def language_model(self, position_ids, **options):
            return self.inner(position_ids=position_ids[0], **options)

    model = Axes()
    embeds, mask = batch(model, BATCHES["two images, mixed"])
    positions = ((mask.cumsum(1) - 1).clamp(min=0) * 2)[None].expand(3, -1, -1)
    options = dict(keep_states_of=[7], max_new_tokens=6, position_ids=positions)
    found = generate(model, embeds, mask, **options)
    monkeypatch.setattr(generation, "shared_prefixes", lambda *_: None)
    assert [r.ids for r in found] == [r.ids for r in generate(model, embeds, mask, **options)]


def test_which_rows_belong_together(model):
    groups, shared = shared_prefixes(*batch(model, BATCHES["two images, mixed"]))
    assert groups == [0, 1, 0, 1] and shared[0] >= 30 and shared[1] >= 25
    groups, shared = shared_prefixes(*batch(model, BATCHES["the same question twice"]))
    assert groups == [0, 0] and shared == [33]
    assert shared_prefixes(*batch(model, [drawn(1, 9), drawn(2, 9)])) is None
    assert shared_prefixes(*batch(model, [IMAGE])) is None


def test_the_beginning_is_read_once(model, monkeypatch):
    read = []
    forward = generation.read

    def counting(model, embeds, *rest):
        read.append(embeds.shape[0] * embeds.shape[1])
        return forward(model, embeds, *rest)

    monkeypatch.setattr(generation, "read", counting)
    rows = BATCHES["one image"]
    generate(model, *batch(model, rows), keep_states_of=[], max_new_tokens=1, keep_last=False)
    assert sum(read) <= len(IMAGE) + len(rows) * max(len(row) - len(IMAGE) for row in rows) + len(rows)


class Guessing:
    """Guesses the true answer, wrong at every `wrong`-th token; a row that guesses nothing where `wrong` is 1."""

    def __init__(self, answer, wrong, most):
        self.answer, self.wrong, self.most, self.judged = answer, wrong, most, []

    def guess(self, said, room):
        begin = len(said)
        part = self.answer[begin : begin + min(self.most, room)] if self.wrong > 1 else []
        return [39 - token if (begin + n + 1) % self.wrong == 0 else token for n, token in enumerate(part)]

    def judge(self, guessed, right):
        self.judged.append((guessed, right))

    def extend(self, new):
        pass


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.ids == other.ids and one.state_ids == other.state_ids and one.finished == other.finished
        assert_close(torch.tensor(one.probabilities), torch.tensor(other.probabilities), 1e-4)
        for state, wanted in zip(one.states, other.states, strict=True):
            assert_close(state, wanted, relative=1e-4)


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("state_before", [False, True])
@pytest.mark.parametrize("wrong", [2, 3, 100])
def test_guessed_tokens_change_nothing(model, name, state_before, wrong):
    embeds, mask = batch(model, BATCHES[name])
    special = sorted(
        {token for row in generate(model, embeds, mask, keep_states_of=[], max_new_tokens=24) for token in row.ids}
    )[::3]
    for most, stop, keep_last in ((12, [3], True), (13, special[:1], True), (5, [], False)):
        options = dict(keep_states_of=special, stop_ids=stop, max_new_tokens=most, state_before=state_before)
        options |= dict(keep_last=keep_last)
        expected = generate(model, embeds, mask, **options)
        # Rows guess differently well, and one of them nothing at all.
        drafts = [Guessing(row.ids + [5, 6], wrong + n if n != 1 else 1, 4) for n, row in enumerate(expected)]
        same(generate(model, embeds, mask, drafts=drafts, **options), expected)
        if wrong == 100:
            assert all(right for guessed, right in drafts[0].judged if guessed)


def test_fewer_passes_where_the_answer_is_known(model, monkeypatch):
    passes = []
    forward = generation.read
    monkeypatch.setattr(generation, "read", lambda *rest: passes.append(1) or forward(*rest))
    embeds, mask = batch(model, [IMAGE])
    (row,) = generate(model, embeds, mask, keep_states_of=[], max_new_tokens=20)
    alone, before = len(passes), EarlierAnswers()
    before.add(row.ids)
    passes.clear()
    drafts = [Drafts(IMAGE, 10, before.answers)]
    assert generate(model, embeds, mask, keep_states_of=[], max_new_tokens=20, drafts=drafts)[0].ids == row.ids
    assert len(passes) == 2 and alone == 20


def test_what_is_guessed():
    prompt = [1, 2, 3, 4, 5, 6, 7, 8]
    drafts = Drafts(prompt, 3)
    assert drafts.guess([], 9) == []  # nothing was answered before
    drafts.extend([2, 3])
    assert drafts.guess([2, 3], 9) == [4, 5, 6] and drafts.guess([2, 3], 2) == [4, 5]
    drafts.judge(3, 3)
    drafts.extend([4, 5, 6, 20, 7])
    assert drafts.guess([2, 3, 4, 5, 6, 20, 7], 9) == [8]  # goes on near where it was, and not beyond the question
    drafts.extend([30])
    assert drafts.guess([30], 9) == []
    pictured = Drafts([1, NO_WORD, NO_WORD, 2, 3, NO_WORD, 4], 5)
    pictured.extend([2, 3])
    assert pictured.guess([2, 3], 9) == [] and not any(NO_WORD in words for words in pictured.places)
    before = EarlierAnswers(most=2)
    for answer in ([1], [9, 9], [8, 8, 8], [9, 9]):
        before.add(answer)
    assert before.answers == [(8, 8, 8), (9, 9)]
    assert Drafts(prompt, 3, before.answers).guess([], 9) == [9, 9]


@pytest.mark.parametrize("state_before", [False, True])
def test_answers_of_another_engine_are_read_in_one_pass(model, state_before):
    for rows in BATCHES.values():
        embeds, mask = batch(model, rows)
        options = dict(keep_states_of=[7, 8, 9, 10, 11, 12, 13], state_before=state_before)
        expected = generate(model, embeds, mask, stop_ids=[3], max_new_tokens=12, **options)
        for row in expected:
            row.finished = True
        whole = batch(model, [asked + row.ids for asked, row in zip(rows, expected, strict=True)])
        positions = (whole[1].cumsum(1) - 1).clamp(min=0)
        hidden = read(model, *whole, positions)
        same(read_answers(model, hidden, [row.ids for row in expected], **options), expected)
