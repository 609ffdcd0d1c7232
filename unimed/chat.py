"""Chat templates as facts, and the rule that what a user types is never read as a control token."""

from __future__ import annotations

import re
from dataclasses import dataclass

from unimed.tokens import GROUNDING_TOKENS


@dataclass(frozen=True)
class ChatTemplate:
    """How one turn is written. `user` and `system` hold `{text}`; the answer follows `user` and ends with `stop`.

    `between` stands between the end of an answer and the next user turn. With `system_inside` the system text is part
    of the first user turn.
    """

    name: str
    user: str
    stop: str
    system: str = ""
    between: str = ""
    system_inside: bool = False

    def prompt(self, turns: list[tuple[str, str]], system: str = "") -> str:
        """Text up to where the model goes on. `turns` are (role, text); the last one is the user's.

        Raises:
            ValueError: a role other than "user" and "assistant", or turns that do not alternate from the user on.
        """
        opening = self.system.replace("{text}", system) if system else ""
        text = "" if self.system_inside else opening
        for index, (role, words) in enumerate(turns):
            if index == 0 and self.system_inside:
                words = opening + words
            if role != ("user", "assistant")[index % 2]:
                raise ValueError(f"turn {index} is of {role!r}; turns alternate user, assistant, user, ...")
            text += self.user.replace("{text}", words) if role == "user" else words + self.stop + self.between
        return text


TEMPLATES = {
    template.name: template
    for template in (
        # Of UniBiomed and Sa2VA on InternVL 2.5, whatever the language model.
        ChatTemplate("phi3_chat", "<|user|>\n{text}<|end|>\n<|assistant|>\n", "<|end|>", "<|system|>\n{text}<|end|>\n"),
        ChatTemplate(
            "qwen_chat",
            "<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n",
            "<|im_end|>",
            "<|im_start|>system\n{text}<|im_end|>\n",
            "\n",
        ),
        # Of LLaVA, LISA and uMedGround. The blank before the answer is the one SentencePiece puts before every text.
        ChatTemplate("llava_v1", "USER: {text} ASSISTANT:", "</s>", "{text} "),
        ChatTemplate(
            "llava_llama_2", "[INST] {text} [/INST]", "</s>", "<<SYS>>\n{text}\n<</SYS>>\n\n", system_inside=True
        ),
        # Of Uni-Med on Llama 2, and without a template; the blank at the end of a question is the dialect's.
        ChatTemplate("llama_2", "[INST] {text} [/INST]", "</s>"),
        ChatTemplate("plain", "{text}", "</s>"),
        ChatTemplate(
            "gemma", "<start_of_turn>user\n{text}<end_of_turn>\n<start_of_turn>model\n", "<end_of_turn>", between="\n"
        ),
        # PaliGemma: a command, no turns. Its processor sets the line end behind the question.
        ChatTemplate("paligemma", "{text}", "<eos>"),
        ChatTemplate(
            "smolvlm", "<|im_start|>User:{text}<end_of_utterance>\nAssistant:", "<end_of_utterance>", between="\n"
        ),
        ChatTemplate("question_answer", "question: {text} answer: ", "<|end|>"),
    )
}

_CONTROL = re.compile(
    "|".join(re.escape(token) for token in GROUNDING_TOKENS)
    + r"|<\|[^|<>]{1,40}\|>|</?(?:s|img|IMG_CONTEXT|image|im_start|im_end|quad|ref|box|unk|pad)>"
)


def as_plain_text(text: str) -> str:
    """What a user typed, with every control string broken by a space so that no tokenizer reads it as one.

    "[SEG]" becomes "[ SEG]": the words stay readable, no region and no turn of the chat can be forged.
    """
    return _CONTROL.sub(lambda match: match[0][0] + " " + match[0][1:], text)
