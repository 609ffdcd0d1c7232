"""The blocks of the sample set, one module per source; each has `PACKAGES` and `cases(archives, folder)`."""

#: Block -> module. A block whose packages cannot be had is left out, and `dataset.json` says so.
BLOCKS = {
    "nuclei": "unimed.data.prepare.blocks.nuclei",
    "brain": "unimed.data.prepare.blocks.brain",
    "lesions": "unimed.data.prepare.blocks.lesions",
    "dicoms": "unimed.data.prepare.blocks.dicoms",
    "images": "unimed.data.prepare.blocks.images",
    "microscopy": "unimed.data.prepare.blocks.microscopy",
}
