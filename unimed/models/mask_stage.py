"""The mask stage of a grounded model as ONNX or OpenVINO files: encoder, decoders of boxes and language vectors, heads.

`unimed.inference.mask_stage.MaskStage` runs them without torch. Every graph is compared with the model it was traced
from before the folder appears.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from unimed.files import atomic_folder, write_report
from unimed.io.graphs import open_graph
from unimed.models.heads.mask import MaskFeatures

#: What `unimed.inference.mask_stage` looks for.
_STAGE = "mask_stage.json"
#: Most objects of one call.
MOST = 64
_OPSET = 18


class ParityError(ValueError):
    """An exported graph gives other numbers than the model."""


class _Encoder(nn.Module):
    """Pixels [1, 3, S, S] -> features, as `MaskFeatures` holds them."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, pixels):
        features = self.head.encode(pixels)
        extra = () if features.pixels is None else (features.pixels,)
        return (features.embedding, *features.high_resolution, *extra)


class _Decoder(nn.Module):
    """Features and N boxes or vectors -> logits [N, h, w], quality [N], presence logits [N]."""

    def __init__(self, head, kind: str, levels: int):
        super().__init__()
        self.head, self.kind, self.levels = head, kind, levels

    def forward(self, prompts, first, second=None, third=None, fourth=None):
        # No `*features`: the tracer wants arguments that it can count.
        rest = [one for one in (second, third, fourth) if one is not None]
        given = MaskFeatures(first, tuple(rest[: self.levels]), *rest[self.levels :])
        decode = self.head.decode_boxes if self.kind == "boxes" else self.head.decode
        output = decode(given, prompts.new_zeros(prompts.shape[0], dtype=torch.long), prompts)
        return output.logits, output.iou, output.object_logits


class _Heads(nn.Module):
    """States [N, D] of `[SEG]` tokens -> vectors [N, C] for the decoder, presence [N] in [0, 1]."""

    def __init__(self, model):
        super().__init__()
        self.projection, self.presence = model.seg_projection, model.presence_head

    def forward(self, states):
        vectors = self.projection(states)
        if self.presence is None:
            return (vectors,)
        return vectors, torch.sigmoid(self.presence(states)[:, 0])


@torch.no_grad()
def export_mask_stage(
    model, folder: str | Path, *, tolerance: float = 1e-3, int8: bool = False, openvino: bool = False
) -> list[dict]:
    """Write the graphs, compare each with the model by the engine that will run it, and describe them.

    Args:
        model: a grounded model with a mask head; on the CPU in float32.
        folder: must not exist, or be empty.
        tolerance: largest difference, relative to the largest value, that is let pass.
        int8: also write the encoder with weights of eight bits, `encoder.int8.onnx`; its difference is told, not
            judged. Decoders and heads break with eight bits and stay as they are.
        openvino: also write every graph in OpenVINO's form, `NAME.xml` and `NAME.bin`, in float32.

    Returns:
        a row per graph: name, inputs, outputs, objects compared, largest relative difference, bytes.

    Raises:
        ValueError: a model without a mask head. ParityError: a graph gives other numbers; nothing is written then.
        ImportError: onnx, onnxscript, onnxruntime or openvino is missing.
    """
    if getattr(model, "mask_head", None) is None:
        raise ValueError(f"a {type(model).__name__} has no mask stage to export")
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError("the export needs pip install 'unimed[onnx]'") from error
    if openvino:
        try:
            import openvino as _  # noqa: F401
        except ImportError as error:
            raise ImportError("OpenVINO's form needs pip install 'unimed[openvino]'") from error
    model = model.eval()
    head, side = model.mask_head, model.mask_head.image_size
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, side, side)
    encoder = _Encoder(head)
    features = encoder(pixels)
    levels = len(head.encode(pixels).high_resolution)
    names = [f"features_{number}" for number in range(len(features))]
    corners = torch.rand(MOST, 2, 2).sort(dim=1).values.flatten(1) * side
    vectors, states = torch.randn(MOST, head.prompt_dim), torch.randn(MOST, model.backbone.hidden_dim)
    graphs = {"encoder": (encoder, (pixels,), ["pixels"], names, False)}
    outputs = ["logits", "quality", "presence_logits"]
    for kind, prompts in (("boxes", corners), ("vectors", vectors)):
        graphs[kind] = (_Decoder(head, kind, levels), (prompts, *features), [kind, *names], outputs, True)
    heads = _Heads(model)
    graphs["heads"] = (heads, (states,), ["states"], ["vectors", "presence"][: len(heads(states))], True)
    rows = []
    with atomic_folder(folder) as out:
        for name, (module, given, inputs, told, dynamic) in graphs.items():
            try:
                module(*given)
            except NotImplementedError:  # a decoder that takes no boxes
                continue
            made = _write(out, name, module, given, inputs, told, dynamic, int8 and name == "encoder", openvino)
            for row in made:
                if not row["int8"] and not row["difference"] <= tolerance:
                    raise ParityError(f"{row['file']} differs by {row['difference']:.1e} of the largest value")
            rows += made
        processor = model.processor
        described = {
            "image_size": side, "fit": processor.mask_fit, "content": processor.mask_content,
            "mean": processor.mask_mean, "std": processor.mask_std,
            "box_zoom": getattr(head.config, "box_zoom", None), "most": MOST, "graphs": rows,
        }  # fmt: skip
        write_report(out / _STAGE, described)
    return rows


def _write(out: Path, name: str, module, given, inputs, told, dynamic: bool, int8: bool, openvino: bool) -> list[dict]:
    example = tuple(one[:2] for one in given[:1]) + given[1:] if dynamic else given
    shapes = None
    if dynamic:
        objects = {0: torch.export.Dim("objects", min=1, max=MOST)}
        shapes = (objects, *(None for _ in given[1:]))
    program = torch.onnx.export(
        module.eval(), example, dynamo=True, opset_version=_OPSET, input_names=inputs, output_names=told,
        dynamic_shapes=shapes, verbose=False,
    )  # fmt: skip
    program.save(str(out / f"{name}.onnx"), external_data=False)
    counts = (1, 3, MOST) if dynamic else (1,)
    rows = [_compared(out / f"{name}.onnx", module, given, inputs, told, counts) | {"int8": False}]
    if int8:
        from onnxruntime.quantization import QuantType, quantize_dynamic

        small = out / f"{name}.int8.onnx"
        quantize_dynamic(str(out / f"{name}.onnx"), str(small), weight_type=QuantType.QInt8)
        rows.append(_compared(small, module, given, inputs, told, counts) | {"int8": True})
    if openvino:
        import openvino as ov

        converted = ov.convert_model(str(out / f"{name}.onnx"))
        ov.save_model(converted, str(out / f"{name}.xml"), compress_to_fp16=False)
        rows.append(_compared(out / f"{name}.xml", module, given, inputs, told, counts) | {"int8": False})
    return rows


def _compared(path: Path, module, given, inputs, told, counts) -> dict:
    """How far the engine of a file is from torch, for several numbers of objects."""
    run, worst = open_graph(path), 0.0
    for count in counts:
        part = (given[0][:count], *given[1:])
        ours = module(*part)
        theirs = run({k: v.numpy() for k, v in zip(inputs, part, strict=True)})
        for one, other in zip(ours, theirs, strict=True):
            largest = max(float(one.abs().max()), 1e-6)
            worst = max(worst, float(np.abs(one.numpy() - other).max()) / largest)
    size = sum(part.stat().st_size for part in (path, path.with_suffix(".bin")) if part.is_file())
    return {"graph": path.stem, "file": path.name, "inputs": inputs, "outputs": list(told),
            "objects": list(counts), "difference": worst, "bytes": size}  # fmt: skip
