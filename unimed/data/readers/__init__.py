"""One reader per on-disk format; each yields `unimed.structures.Sample`."""
