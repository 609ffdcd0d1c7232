"""The special tokens of grounded answers. A published checkpoint depends on their spelling."""

from __future__ import annotations

#: The hidden state at this token prompts the mask decoder.
SEG_TOKEN = "[SEG]"
#: The hidden state at this token is read by the box head.
BOX_TOKEN = "[BOX]"
#: Around a phrase that the next [SEG] or [BOX] points at.
PHRASE_START, PHRASE_END = "<p>", "</p>"
#: Around the pooled image tokens of a region given by the user.
REGION_START, REGION_END = "<vp>", "</vp>"
#: Where the image stands in a question; the processor replaces it by the tokens of the backbone.
IMAGE_PLACEHOLDER = "<image>"

#: In the order in which UniBiomed and Sa2VA append them; [BOX] is ours and comes last.
GROUNDING_TOKENS = (SEG_TOKEN, PHRASE_START, PHRASE_END, REGION_START, REGION_END, BOX_TOKEN)
