"""Near duplicates among many looks are those that comparing each with each finds."""

import hashlib

import numpy as np
import pytest
from PIL import Image

from unimed.data.near_duplicates import DigestTable, LookIndex, Names
from unimed.data.overlap import Fingerprint, find_overlap, fingerprints_of


def drawn_looks(rng, count):
    """Looks as images have them: some the same, some alike, and parts of their bits in common."""
    looks = rng.integers(0, 2**63, count, dtype=np.uint64)
    looks[count // 4 : count // 2] &= np.uint64(0xFFFF00FF000000FF)
    kept = rng.integers(0, count, count // 4)
    looks[-(count // 4) :] = looks[kept]
    for _ in range(3):
        flipped = rng.integers(0, 64, count // 8, dtype=np.uint64)
        looks[-(count // 8) :] ^= np.left_shift(np.uint64(1), flipped)
    return looks


@pytest.mark.parametrize("bits", [0, 1, 2, 3, 5, 8, 20, 64])
def test_the_nearest_is_that_of_comparing_each_with_each(bits):
    rng = np.random.default_rng(bits)
    looks, asked = drawn_looks(rng, 400), drawn_looks(rng, 300)
    asked[:100] = looks[::4]
    asked[::3] ^= np.uint64(1 << 40)
    place, distance = LookIndex(looks, bits).nearest(asked)
    for number, one in enumerate(asked):
        distances = np.bitwise_count(looks ^ one)
        first = int(distances.argmin())
        if distances[first] <= bits:
            assert (place[number], distance[number]) == (first, distances[first])
        else:
            assert (place[number], distance[number]) == (-1, 65)


def test_a_bounded_number_of_pairs_is_compared_at_a_time(monkeypatch):
    monkeypatch.setattr("unimed.data.near_duplicates._PAIRS", 7)
    looks = drawn_looks(np.random.default_rng(3), 100)
    place, _ = LookIndex(looks, 2).nearest(looks)
    assert (looks[place] == looks).all()
    index = LookIndex(np.zeros(0, np.uint64), 2)
    assert index.nearest(looks[:3])[0].tolist() == [-1, -1, -1]
    with pytest.raises(ValueError, match="0 to 64"):
        LookIndex(looks, 65)


def test_digests_and_names_are_found_whatever_their_bytes():
    table, names = DigestTable(), Names()
    digests = [b"\0" * 32, b"a" * 31 + b"\0", b"a" * 32, b"a" * 32, bytes(range(32))]
    for number, digest in enumerate(digests):
        assert names.add(f"näme {number}\ud800") == number
        table.add(digest, number)
    assert table.find([*digests, b"z" * 32, b"\0" * 31 + b"\1"]).tolist() == [0, 1, 3, 3, 4, -1, -1]
    assert names[2] == "näme 2\ud800" and len(names) == 5
    assert DigestTable().find([b"a" * 32]).tolist() == [-1]
    with pytest.raises(ValueError, match="32 bytes"):
        table.add(b"a", 0)


def test_equal_bytes_come_before_looks_and_flat_images_look_like_nothing():
    def print_of(name, content, look):
        return Fingerprint(name, hashlib.sha256(content).hexdigest(), look)

    first = [print_of("flat", b"f", None), print_of("a", b"a", 0b1111), print_of("b", b"b", 0), print_of("c", b"c", 0)]
    second = [print_of("1", b"b", 0b1111), print_of("2", b"x", 0b11), print_of("3", b"y", None), print_of("4", b"z", 1)]
    assert find_overlap(first, second) == [
        {"image": "1", "found_as": "b", "kind": "equal bytes", "bits": 0},
        {"image": "2", "found_as": "a", "kind": "looks alike", "bits": 2},
        {"image": "4", "found_as": "b", "kind": "looks alike", "bits": 1},
    ]


def test_processes_read_the_same_fingerprints(tmp_path):
    rng = np.random.default_rng(0)
    for number in range(40):
        Image.fromarray(rng.integers(0, 255, (9, 9), dtype=np.uint8)).save(tmp_path / f"{number:02d}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    one, two = [], []
    assert list(fingerprints_of(str(tmp_path), one)) == list(fingerprints_of(str(tmp_path), two, workers=2))
    assert one == two and len(one) == 1
