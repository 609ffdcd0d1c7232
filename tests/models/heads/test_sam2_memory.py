"""What a frame looks back at: which memories with which time code, and which pointers."""

import torch

from unimed.models.checkpoints.sam2 import sam2_video_config
from unimed.models.heads.sam2 import Sam2MaskHead
from unimed.models.heads.sam2_memory import MaskPropagation


@torch.no_grad()
def test_a_frame_attends_to_prompted_frames_the_newest_others_and_all_their_pointers(monkeypatch):
    torch.manual_seed(0)
    config = sam2_video_config(
        8, [1, 1, 2, 1], 1, [3], [8, 4, 4, 4], [7, 7],
        hidden_dim=128, image_size=128, memory_layers=1, memory_feed_forward=32, decoder_mlp=32, iou_hidden=32,
    )  # fmt: skip
    head = Sam2MaskHead(config).eval()
    features = [head.encode(torch.randn(1, 3, 128, 128)) for _ in range(6)]
    tracker, seen = MaskPropagation(head, 6), {}
    for frame in (0, 1):
        tracker.prompted(frame, features[frame], torch.randn(2, head.prompt_dim))
    for frame in (2, 3, 4):
        tracker.propagated(frame, features[frame])
    attend = head.sam.memory_attention.forward
    monkeypatch.setattr(head.sam.memory_attention, "forward", lambda **given: seen.update(given) or attend(**given))
    before = dict(tracker.recent)
    tracker.propagated(5, features[5])
    # Two prompted frames, then the others from the oldest to the newest; each lies there whole.
    kept = [tracker.conditioning[0], tracker.conditioning[1], before[2], before[3], before[4]]
    cells = len(kept[0].features)
    assert torch.equal(seen["memory"][: 5 * cells], torch.cat([one.features for one in kept]))
    codes = head.sam.memory_temporal_positional_encoding
    for place, code in enumerate((6, 6, 2, 1, 0)):
        found = seen["memory_posision_embeddings"][place * cells : (place + 1) * cells]
        torch.testing.assert_close(found, kept[place].positions + codes[code])
    # A pointer of 128 numbers is two pieces as wide as the memory; the newest frame comes first behind the prompted.
    assert seen["num_object_pointer_tokens"] == 10 == len(seen["memory"]) - 5 * cells
    pointers = [kept[place].pointer for place in (0, 1, 4, 3, 2)]
    pieces = torch.stack(pointers).reshape(5, 2, 2, 64).transpose(1, 2).flatten(0, 1)
    assert torch.equal(seen["memory"][5 * cells :], pieces)
