"""Opens exported graphs with the engine of their form, without torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np


def open_graph(path: Path, threads: int = 0, providers=("CPUExecutionProvider",)) -> Callable[[dict], list[np.ndarray]]:
    """What runs a graph, {input: array} -> outputs in order: `.onnx` by onnxruntime, `.xml` by OpenVINO on the CPU.

    Raises:
        ImportError: the engine is missing.
    """
    if path.suffix == ".xml":
        try:
            import openvino
        except ImportError as error:
            raise ImportError("this form needs pip install 'unimed[openvino]'") from error
        # In float32: what the CPU would choose itself may be bfloat16.
        told = {"INFERENCE_PRECISION_HINT": "f32"} | ({"INFERENCE_NUM_THREADS": threads} if threads else {})
        compiled = openvino.Core().compile_model(str(path), "CPU", told)
        return lambda given: _outputs(compiled, given)
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("running an exported mask stage needs pip install 'unimed[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=list(providers))
    return lambda given: session.run(None, given)


def _outputs(compiled, given: dict) -> list[np.ndarray]:
    found = compiled(given)
    return [np.array(found[port]) for port in compiled.outputs]
