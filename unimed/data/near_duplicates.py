"""What many images are recognized by, in arrays: equal digests, and looks of 64 bits that differ in a few of them.

Looks that differ in at most k bits agree in at least one of k + 1 parts of their bits. So each part is sorted by
itself, and only looks that agree in one are compared. (Norouzi, Punjani, Fleet: Fast search in Hamming space with
multi-index hashing, CVPR 2012.)
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import numpy as np

#: Pairs compared at a time: 16 bytes each.
_PAIRS = 1 << 21


class Names:
    """Many texts in one run of bytes: 8 bytes each besides their own."""

    def __init__(self):
        self._bytes, self._ends = bytearray(), array("q", [0])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def add(self, text: str) -> int:
        """Keep a text; returns its place."""
        self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))
        return len(self) - 1

    def __getitem__(self, place: int) -> str:
        return self._bytes[self._ends[place] : self._ends[place + 1]].decode("utf-8", "surrogatepass")


class DigestTable:
    """Digests of 32 bytes and the place of each; 48 bytes an entry while it is filled, 40 once it is asked."""

    def __init__(self):
        self._filled, self._places = bytearray(), array("q")
        self._sorted: np.ndarray | None = None

    def add(self, digest: bytes, place: int) -> None:
        """Keep the place of a digest; of several the last counts."""
        if len(digest) != 32:
            raise ValueError(f"a digest has 32 bytes, got {len(digest)}")
        self._filled += digest
        self._places.append(place)

    def find(self, digests: list[bytes]) -> np.ndarray:
        """The place of each digest, int64; -1 where it is not there."""
        if self._sorted is None:
            table = np.frombuffer(bytes(self._filled), dtype="S32")
            order = np.argsort(table, kind="stable")
            self._sorted, self._order = table[order], np.frombuffer(self._places, dtype=np.int64)[order]
            self._filled, self._places = bytearray(), array("q")
        wanted = np.array(digests, dtype="S32")
        if not len(self._sorted):
            return np.full(len(wanted), -1, dtype=np.int64)
        found = np.searchsorted(self._sorted, wanted, side="right") - 1
        hits = (found >= 0) & (self._sorted[found] == wanted)
        return np.where(hits, self._order[found], -1)


class LookIndex:
    """The nearest of many looks, among those that differ in at most `bits` of 64.

    Memory: 16 bytes a different look, and 12 for each of the `bits` + 1 parts; a look that many images share is kept
    once, for the first of them.

    Args:
        looks: uint64 [N].
        bits: from 0 to 64.
    """

    def __init__(self, looks: np.ndarray, bits: int):
        if not 0 <= bits <= 64:
            raise ValueError(f"bits must lie in 0 to 64, got {bits}")
        self.bits = bits
        self.looks, self.places = np.unique(np.asarray(looks, dtype=np.uint64), return_index=True)
        count = bits + 1
        #: Every count-th bit: bits side by side are alike in images, and parts of them would be alike in too many.
        self.masks = [np.uint64(sum(1 << bit for bit in range(part, 64, count))) for part in range(min(count, 64))]
        self.parts: list[tuple[np.ndarray, np.ndarray]] = []
        # With parts of few bits, nearly all looks agree in one of them, and sorting saves nothing.
        self.all_pairs = count / 2 ** (64 // count) > 0.25
        for mask in () if self.all_pairs else self.masks:
            keys = self.looks & mask
            order = np.argsort(keys, kind="stable").astype(np.int32 if len(keys) < 2**31 else np.int64)
            self.parts.append((keys[order], order))

    def nearest(self, looks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Place of the nearest look (of the first of several equally near), -1 without one, and the bits that differ.

        Args:
            looks: uint64 [M].

        Returns:
            int64 [M], int64 [M] (65 without one).
        """
        asked, back = np.unique(np.asarray(looks, dtype=np.uint64), return_inverse=True)
        best = np.full(len(asked), 65 << 48, dtype=np.int64)  # bits that differ, then the place
        for numbers, candidates in self._candidates(asked):
            distance = np.bitwise_count(asked[numbers] ^ self.looks[candidates]).astype(np.int64)
            near = distance <= self.bits
            numbers, score = numbers[near], (distance[near] << 48) | self.places[candidates[near]]
            np.minimum.at(best, numbers, score)
        distance, place = best >> 48, best & ((1 << 48) - 1)
        place = np.where(distance > self.bits, -1, place)
        return place[back.ravel()], np.where(place < 0, 65, distance)[back.ravel()]

    def _candidates(self, asked: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Pairs worth comparing as (numbers of what is asked, numbers of looks), a bounded number at a time."""
        if self.all_pairs:
            everyone = [(np.zeros(len(asked), dtype=np.int64), np.full(len(asked), len(self.looks)), None)]
            spans = everyone if len(self.looks) else []
        else:
            spans = []
            for mask, (keys, order) in zip(self.masks, self.parts, strict=True):
                wanted = asked & mask
                first = np.searchsorted(keys, wanted, side="left")
                spans.append((first, np.searchsorted(keys, wanted, side="right") - first, order))
        for first, counts, order in spans:
            (numbers,) = np.nonzero(counts)
            ends = np.cumsum(counts[numbers])
            total = int(ends[-1]) if len(ends) else 0
            for start in range(0, total, _PAIRS):
                pairs = np.arange(start, min(start + _PAIRS, total))
                owner = np.searchsorted(ends, pairs, side="right")
                number = numbers[owner]
                place = first[number] + pairs - (ends[owner] - counts[number])
                yield number, place if order is None else order[place]
