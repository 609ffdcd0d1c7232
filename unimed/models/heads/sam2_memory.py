"""A mask carried through the frames of a video, or the slices of a volume, by SAM2's memory."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from unimed.models.heads.mask import MaskFeatures, MaskOutput
from unimed.models.heads.sam2 import Sam2MaskHead

#: SAM2 was trained with memories of this many frames at most, and object pointers of this many.
MEMORY_FRAMES, POINTER_FRAMES = 7, 16


@dataclass
class FrameMemory:
    """What one frame leaves behind for N objects: `features` and `positions` [h*w, N, M], `pointer` [N, C]."""

    features: torch.Tensor
    positions: torch.Tensor
    pointer: torch.Tensor


class MaskPropagation:
    """Follow N objects through frames that come one after the other.

    Frames that carry a prompt are segmented from it alone and become conditioning frames; every later frame is
    segmented from memory. As in Sa2VA and UniBiomed all conditioning frames stay in memory, besides the six newest
    other frames and the object pointers of the newest fifteen: memory does not grow with the number of frames. Masks
    are not erased where the object score is negative; the score only decides which pointer is kept.

    Args:
        head: a SAM2 mask head.
        frame_count: frames that will come, which bounds how many pointers are looked at.
    """

    def __init__(self, head: Sam2MaskHead, frame_count: int):
        self.head, self.sam = head, head.sam
        self.frame_count = frame_count
        self.conditioning: OrderedDict[int, FrameMemory] = OrderedDict()
        self.recent: OrderedDict[int, FrameMemory] = OrderedDict()
        self.conditioned_embedding: torch.Tensor | None = None

    def prompted(self, frame: int, features: MaskFeatures, prompts: torch.Tensor) -> MaskOutput:
        """Masks of N language vectors [N, C] on a frame whose features are given (one image)."""
        image_index = torch.zeros(len(prompts), dtype=torch.long, device=prompts.device)
        output = self.head.decode(features, image_index, prompts)
        self.conditioning[frame] = self._remember(features, output)
        return output

    def propagated(self, frame: int, features: MaskFeatures) -> MaskOutput:
        """Masks of the same objects on a later frame, from memory.

        Raises:
            RuntimeError: no frame has been prompted yet.
        """
        if not self.conditioning:
            raise RuntimeError("no frame has been prompted yet; call prompted() first")
        embedding = self._attend(frame, features.embedding)
        self.conditioned_embedding = embedding
        output = self.head.decode_conditioned(embedding, features)
        self.recent[frame] = self._remember(features, output)
        while len(self.recent) > POINTER_FRAMES - 1:
            self.recent.popitem(last=False)
        return output

    def _remember(self, features: MaskFeatures, output: MaskOutput) -> FrameMemory:
        side = self.head.image_size
        count = len(output.logits)
        masks = F.interpolate(output.logits[:, None].float(), (side, side), mode="bilinear", align_corners=False)
        config = self.sam.config
        masks = torch.sigmoid(masks) * config.sigmoid_scale_for_mem_enc + config.sigmoid_bias_for_mem_enc
        raw = features.embedding.expand(count, -1, -1, -1)
        memory, positions = self.sam.memory_encoder(raw, masks.to(raw.dtype))
        pointer = self.sam.object_pointer_proj(output.pointers)
        there = (output.object_logits > 0)[:, None]
        pointer = torch.where(there, pointer, self.sam.no_object_pointer.to(pointer.dtype))
        occluded = self.sam.occlusion_spatial_embedding_parameter  # SAM 2.1 alone has one
        if occluded is not None:
            memory = memory + (~there)[..., None, None] * occluded[..., None, None].to(memory.dtype)
        positions = positions.expand(count, -1, -1, -1)
        return FrameMemory(_flat(memory), _flat(positions).to(memory.dtype), pointer)

    def _attend(self, frame: int, embedding: torch.Tensor) -> torch.Tensor:
        count = next(iter(self.conditioning.values())).pointer.shape[0]
        time_codes = self.sam.memory_temporal_positional_encoding  # [7, 1, 1, M], the last is for conditioning frames
        kept = [(memory, MEMORY_FRAMES - 1) for memory in self.conditioning.values()]
        for distance in range(MEMORY_FRAMES - 1, 0, -1):
            if frame - distance in self.recent:
                kept.append((self.recent[frame - distance], distance - 1))
        memory = [one.features for one, _ in kept]
        positions = [one.positions + time_codes[code].to(one.positions.dtype) for one, code in kept]

        pointers = [(frame - index, one.pointer) for index, one in self.conditioning.items() if index <= frame]
        most = min(self.frame_count, POINTER_FRAMES)
        for distance in range(1, most):
            if frame - distance in self.recent:
                pointers.append((distance, self.recent[frame - distance].pointer))
        # Cut into pieces as wide as the memory; SAM 2.1 alone gives them a code of their distance.
        tokens, token_positions = self.sam._process_object_pointers(
            [distance for distance, _ in pointers], [pointer for _, pointer in pointers],
            max(most, 2), count, pointers[0][1].shape[-1], embedding.device,
        )  # fmt: skip
        memory.append(tokens.to(memory[0].dtype))
        positions.append(token_positions.to(memory[0].dtype))

        current = _flat(embedding.expand(count, -1, -1, -1))
        code = self.sam.vision_encoder.neck.position_encoding(embedding.shape, embedding.device, embedding.dtype)
        attended = self.sam.memory_attention(
            current_vision_features=current,
            memory=torch.cat(memory),
            current_vision_position_embeddings=_flat(code.expand(count, -1, -1, -1)),
            memory_posision_embeddings=torch.cat(positions),
            num_object_pointer_tokens=len(tokens),
        )
        height, width = embedding.shape[-2:]
        return attended.reshape(count, height * width, -1).transpose(1, 2).reshape(count, -1, height, width)


def _flat(maps: torch.Tensor) -> torch.Tensor:
    """[N, C, h, w] -> [h*w, N, C]."""
    return maps.flatten(2).permute(2, 0, 1)
