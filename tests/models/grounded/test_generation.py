"""Decoding that reads a shared beginning once gives what decoding row by row gives."""

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tests.closeness import assert_close
from unimed.models.grounded import generation
from unimed.models.grounded.generation import generate, shared_prefixes


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
            assert_close(state, expected, 1e-4)


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
    forward = generation._forward

    def counting(model, embeds, *rest):
        read.append(embeds.shape[0] * embeds.shape[1])
        return forward(model, embeds, *rest)

    monkeypatch.setattr(generation, "_forward", counting)
    rows = BATCHES["one image"]
    generate(model, *batch(model, rows), keep_states_of=[], max_new_tokens=1, keep_last=False)
    assert sum(read) <= len(IMAGE) + len(rows) * max(len(row) - len(IMAGE) for row in rows) + len(rows)
