"""`tools/prepare_data.py VERB`: each verb is a module with `add_arguments(parser)` and `run(args) -> int`."""

#: Verb -> module. Modules are imported only when their verb is typed.
COMMANDS = {
    "sample": "unimed.data.prepare.sample",
    "biomed-shapes": "unimed.data.prepare.biomed_shapes",
    "biomed-volumes": "unimed.data.prepare.biomed_volumes",
    "biomedparse": "unimed.data.prepare.biomedparse",
    "unimed-clip": "unimed.data.prepare.unimed_clip",
    "repack": "unimed.data.prepare.repack",
}
