import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimed.chat import TEMPLATES, as_plain_text
from unimed.tokens import GROUNDING_TOKENS


def test_phi3_chat_is_the_string_checkpoints_were_trained_with():
    assert TEMPLATES["phi3_chat"].prompt([("user", "hi")]) == "<|user|>\nhi<|end|>\n<|assistant|>\n"


def test_turns_alternate():
    with pytest.raises(ValueError, match="alternate"):
        TEMPLATES["phi3_chat"].prompt([("assistant", "hi")])


@given(
    st.lists(
        st.sampled_from([*GROUNDING_TOKENS, "<|end|>", "<|im_end|>", "</s>", "<image>", "x", " ", "["]), max_size=12
    )
)
def test_no_control_string_survives(pieces):
    text = as_plain_text("".join(pieces))
    assert not any(token in text for token in (*GROUNDING_TOKENS, "<|end|>", "<|im_end|>", "</s>", "<image>"))


def test_ordinary_text_is_untouched():
    text = "Is the area < 3 mm and p > 0.05? [see figure]"
    assert as_plain_text(text) == text
