"""The mask stage of a model as ONNX or OpenVINO: `unimed export-masks MODEL OUT`.

Writes the image encoder, the decoder of boxes, the decoder of language vectors and the heads, each compared with the
model by onnxruntime (`difference`: largest, relative to the largest value), and `mask_stage.json`. They run without
torch: `unimed.inference.mask_stage.MaskStage("OUT").segment_boxes("image.png", [(40, 60, 120, 150)])`.
"""

from __future__ import annotations

from unimed import progress
from unimed.commands.common import DONE, NOTICE, Parser, guarded, load_model


def export_masks(arguments=None, prog: str | None = None) -> int:
    """Export and compare."""
    parser = Parser(__doc__, prog=prog)
    parser.add_argument("model", help="folder that unimed.load opens")
    parser.add_argument("out", writes="folder", help="folder to write; must not hold anything")
    parser.add_argument("--int8", action="store_true", help="also the encoder with weights of eight bits")
    parser.add_argument(
        "--openvino", action="store_true", help="also every graph in OpenVINO's form (unimed[openvino])"
    )
    return guarded(_export_masks, parser.parse_args(arguments))


def _export_masks(args) -> int:
    from unimed.evaluation.tables import markdown_table, this_command
    from unimed.models.mask_stage import export_mask_stage

    model = load_model(args.model, able="mask_head", to="point at anything", device="cpu", dtype="float32")
    with progress.stage("exporting and comparing"):
        rows = export_mask_stage(model, args.out, int8=args.int8, openvino=args.openvino)
    shown = [
        {"graph": row["file"], "objects": " ".join(map(str, row["objects"])),
         "difference": f"{row['difference']:.1e}", "MB": row["bytes"] / 1e6}
        for row in rows
    ]  # fmt: skip
    print(markdown_table(shown, command=this_command(), digits=2))
    print(NOTICE)
    return DONE
