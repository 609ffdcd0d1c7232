"""CPU seconds of several questions on one image beside transformers' `generate`; run it as a script.

Random weights in the shape of SmolLM2-135M; every answer has the given number of tokens. Runs are interleaved, the
smallest of three counts.
"""

import time

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unimed.models.grounded.generation import generate

#: (tokens of system prompt and image, of a question, questions, of an answer)
CASES = ((300, 20, 8, 48), (300, 20, 8, 16), (300, 20, 4, 24), (1000, 20, 8, 16))


class Model(nn.Module):
    def __init__(self, lm):
        super().__init__()
        self.language_model, self.lm_head = lm.model, lm.lm_head
        self.embed_tokens = lm.get_input_embeddings()


def main() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=2000, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    lm = LlamaForCausalLM(config).eval()
    model = Model(lm)
    print(f"{torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}")
    print("| shared | question | questions | answer | ours s | generate, one batch | generate, one by one |")
    print("|---" * 7 + "|")
    for shared, asked, count, new in CASES:
        begin = torch.randint(1, 2000, (shared,))
        ids = torch.stack([torch.cat([begin, torch.randint(1, 2000, (asked,))]) for _ in range(count)])
        embeds, mask = model.embed_tokens(ids).detach(), torch.ones_like(ids)
        stock = dict(max_new_tokens=new, do_sample=False)

        def ours(embeds=embeds, mask=mask, new=new):
            return generate(model, embeds, mask, keep_states_of=[], max_new_tokens=new, keep_last=False)

        @torch.no_grad()
        def together(embeds=embeds, mask=mask, stock=stock):
            return lm.generate(inputs_embeds=embeds, attention_mask=mask, **stock)

        @torch.no_grad()
        def each(embeds=embeds, mask=mask, stock=stock):
            return [
                lm.generate(inputs_embeds=embeds[i : i + 1], attention_mask=mask[i : i + 1], **stock)
                for i in range(len(embeds))
            ]

        best = {}
        for _ in range(3):
            for way in (ours, together, each):
                start = time.process_time()
                way()
                best[way] = min(best.get(way, float("inf")), time.process_time() - start)
        ratios = " | ".join(f"{best[way] / best[ours]:.2f} x" for way in (together, each))
        print(f"| {shared} | {asked} | {count} | {new} | {best[ours]:.2f} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
