"""Features of a frozen encoder are computed once per image, in a run and beyond it."""

import torch

from unimed.models.heads.mask import FeatureCache
from unimed.models.weights import weights_digest


class Counting:
    """An encoder that counts the images it sees."""

    seen = 0

    def __call__(self, pixels):
        self.seen += len(pixels)
        return pixels.mean(dim=1, keepdim=True)


def test_images_are_encoded_once_also_by_the_next_run(tmp_path):
    pixels = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    twice = pixels[[0, 1, 0]]
    first, encoder = FeatureCache(10, tmp_path), Counting()
    made = first(twice, encoder)
    assert encoder.seen == 2 and len(list(tmp_path.glob("*.npy"))) == 2
    assert torch.allclose(made, twice.mean(dim=1, keepdim=True), atol=1e-3)
    later = FeatureCache(10, tmp_path)
    assert torch.equal(later(twice, encoder), made) and encoder.seen == 2
    later(pixels, encoder)
    assert encoder.seen == 3

    # What cannot be read is computed again; without a folder nothing is written.
    next(tmp_path.glob("*.npy")).write_bytes(b"half a file")
    assert torch.equal(FeatureCache(10, tmp_path)(twice, encoder), made)
    fresh = FeatureCache(1)
    fresh(pixels, encoder)
    assert len(fresh._kept) == 1 and encoder.seen >= 6


def test_digest_knows_the_weights():
    torch.manual_seed(0)
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    before = weights_digest(one)
    assert before == weights_digest(one) != weights_digest(other)
    other.load_state_dict(one.state_dict())
    assert weights_digest(other) == before
