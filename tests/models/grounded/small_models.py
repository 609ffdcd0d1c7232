"""Models of a few thousand parameters, for tests of everything around the numbers."""

from unimed.models.heads.medsam_lite import MedSamLiteConfig
from unimed.models.starting.grounded_small import build_small

TEXTS = ["question: segment the nuclei answer: <p> nuclei </p> [SEG].", "there is no lesion", "a box [BOX]"]


def tiny_mask_config():
    return MedSamLiteConfig(
        image_size=32, embed_dims=(16, 16, 32, 32), depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1),
        window_sizes=(4, 4, 4, 4), hidden_dim=32, decoder_mlp=32, text_width=16,
    )  # fmt: skip


def tiny_model(box_head=None, **options):
    return build_small(
        TEXTS,
        hidden_dim=32,
        layers=2,
        heads=2,
        vision_grid=2,
        mask_config=tiny_mask_config(),
        box_head=box_head,
        **options,
    ).eval()


def teach(model, ids_after_prompt):
    """Make a model say exactly these ids: the output layer answers by position in the sequence of given tokens."""
    import torch
    from torch import nn

    class Scripted(nn.Module):
        def __init__(self, head, script):
            super().__init__()
            self.weight = head.weight
            self.script, self.step = script, 0

        def forward(self, hidden):
            logits = torch.zeros(len(hidden), self.weight.shape[0], device=hidden.device)
            logits[:, self.script[min(self.step, len(self.script) - 1)]] = 1
            self.step += 1
            return logits

    model.prompt_lookup_num_tokens = 0  # a token for every pass
    model.backbone.lm.lm_head = Scripted(model.backbone.lm.lm_head, ids_after_prompt)
    return model
