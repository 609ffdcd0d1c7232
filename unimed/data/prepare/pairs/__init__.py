"""Image-text pairs of the training sources of UniMed-CLIP: who has them, how they are read, what their captions are."""
