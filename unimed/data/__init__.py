"""Files on disk to samples, samples to batches. One class per on-disk format."""
