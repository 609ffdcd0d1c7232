"""Every verb of the command line; `demo/` and `tools/` call these functions.

A verb is a function `(arguments, prog) -> exit code`, in a module that is imported only when the verb is typed.
"""

#: Verb -> (module below `unimed.commands`, function, one line for the table of verbs).
VERBS: dict[str, tuple[str, str, str]] = {
    "demo": ("demo", "demo", "a result within a minute: what lies in given boxes, by published weights"),
    "predict": ("predict", "predict", "answer questions about images and volumes, and point at what is said"),
    "train": ("training", "train", "train as a config says"),
    "test": ("training", "test", "test a checkpoint on the test data of a config"),
    "export": ("training", "export", "write a trained run as a Hugging Face folder"),
    "export-masks": (
        "export_masks",
        "export_masks",
        "write the mask stage of a model as ONNX, compared with the model",
    ),
    "convert": ("convert", "convert", "convert a published checkpoint or configuration"),
    "check-weights": ("check_weights", "check_weights", "which code legacy weight files name, without running it"),
    "cache": ("cache", "cache", "list and prune the cache of converted checkpoints"),
    "new-model": ("new_model", "new_model", "start a model: small from your records, or large from published parts"),
    "prepare": ("prepare", "prepare", "fetch or convert data sets"),
    "check-data": ("prepare", "check_data", "find what is wrong with a data set before training"),
    "calibrate": ("calibrate", "calibrate", "learn calibrated confidence and box bands from evaluated cases"),
    "score": ("unibiomed", "score", "published and own numbers of a folder of answers"),
    "score-volumes": ("biomedparse", "score_volumes", "score label maps of volumes"),
    "clip": ("clip", "clip", "evaluate and average contrastive models"),
    "list-tasks": ("biomedparse", "list_tasks", "what BiomedParse can be asked for, by modality and anatomy"),
    "codes": ("clinic", "codes", "how phrases are coded in DICOM and FHIR, word by word"),
    "check-seg": ("clinic", "check_seg", "what OHIF, Slicer, MITK and dcmqi would miss in a DICOM SEG or SR"),
    "compare": (
        "follow_up",
        "compare",
        "two studies of a patient: lesion by lesion, RECIST 1.1",
    ),
    "benchmark": ("benchmark", "benchmark", "any model on any declared benchmark, frozen, scored and repeatable"),
    "compare-runs": ("compare_runs", "compare_runs", "which of several models is better, with tests and a page"),
    "grid": ("grid", "grid", "train, test and compare every combination of some choices"),
    "serve": ("serve", "serve", "chat with regions, uploads and jobs over HTTP"),
    "mcp": ("mcp", "mcp", "tools for agents: describe, segment, measure, compare, report"),
    "demo-seg2d": ("unibiomed", "segment_2d", "segment a 2D test set, or one image"),
    "demo-seg3d": ("unibiomed", "segment_3d", "segment a 3D test set, or one volume"),
    "demo-disease": ("unibiomed", "disease", "name and point at abnormalities"),
    "demo-grg": ("unibiomed", "grg", "report chest CT slices and point at what is reported"),
    "demo-gvqa": ("unibiomed", "gvqa", "answer questions about chest CT slices and point at the finding"),
    "demo-medtrinity": ("unibiomed", "medtrinity", "describe images"),
    "demo-regioncap": ("unibiomed", "regioncap", "say what a region is"),
    "demo-mrg": ("umedground", "ground_reports", "ground the phrases of reports as boxes with their spread"),
    "demo-parse2d": ("biomedparse", "parse_2d", "segment what prompts name in images"),
    "demo-parse3d": ("biomedparse", "parse_3d", "segment what prompts name in volumes"),
    "demo-zeroshot": ("zero_shot", "zero_shot", "which of the labels fits each image"),
    "quickstart-images": ("quickstart", "quickstart_images", "images of held-out answers of the sample model"),
    "card": ("card", "card", "model card of a folder: parts, licenses, intended use, measured tables"),
    "doctor": ("doctor", "doctor", "what is installed, on what machine, and what is missing"),
    "speed": ("speed", "speed", "speed of prediction, and beside what one would run instead"),
    "speed-volumes": ("speed_volumes", "speed_volumes", "speed and memory of volumes by prompts"),
}

#: Former name of a verb -> its name today; both are understood, the former one with one warning.
RENAMED_VERBS = {"quickstart-pictures": "quickstart-images"}
