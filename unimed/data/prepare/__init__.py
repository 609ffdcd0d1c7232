"""Kinds of data that `unimed prepare KIND` makes: modules with `add_arguments(parser)` and `run(args) -> int`."""

#: Kind -> (module, what it makes). A module is imported only when its kind is typed.
COMMANDS = {
    "folder": ("unimed.data.prepare.folder", "your own images with masks, classes or a table, as records"),
    "sample": ("unimed.data.prepare.sample", "the small set of the quickstart, out of packages"),
    "biomed-shapes": ("unimed.data.prepare.biomed_shapes", "drawn shapes in the layout of UniBiomed's sets, for tests"),
    "biomed-volumes": ("unimed.data.prepare.biomed_volumes", "volumes as the slices that UniBiomed's 3D demo reads"),
    "biomedparse": (
        "unimed.data.prepare.biomedparse",
        "images and masks by BiomedParse file names as its training set",
    ),
    "unimed-clip": ("unimed.data.prepare.unimed_clip", "image-text shards of UniMed-CLIP's sources"),
    "croissant": ("unimed.data.prepare.croissant", "a prepared set described in Croissant (JSON-LD)"),
    "card": ("unimed.data.prepare.card", "a prepared set described for people: counts, labels, licenses (README.md)"),
    "repack": ("unimed.data.prepare.repack", "records and their files as tar shards or Parquet"),
}
