"""The student in other programs."""

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .errors import SegkitError
from .files import replacing
from .model import STRIDE, UNet, copy_on_cpu


class _Answer(nn.Module):
    """The network with its probabilities, as other programs want it."""

    def __init__(self, model: UNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> Tensor:
        output = self.model(image)
        return torch.cat([output[:, :1].sigmoid(), output[:, 1:]], dim=1)


def export_onnx(model: UNet, path: str | Path) -> Path:
    """Write the student as ONNX, for ONNX Runtime, OpenVINO, Fiji's DeepImageJ and others.

    Input "image": float32 (B, 1, H, W), normalised as the model card says; B, H and W free, H and W multiples of 16.
    Output "maps": float32 (B, 2, H, W): foreground probability and distance. The model's info (thresholds and so on)
    is in the file's metadata under "segkit". Returns path.
    Raises SegkitError where the packages of the extra are missing: pip install 'segkit[onnx]'.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise SegkitError(f"exporting needs the package {error.name}: pip install 'segkit[onnx]'") from None
    with warnings.catch_warnings(action="ignore"), replacing(path) as temporary:
        program = torch.onnx.export(_traced(_Answer(copy_on_cpu(model)), "image"), dynamo=True, input_names=["image"],
                                    output_names=["maps"], verbose=False)
        assert program is not None
        exported = program.model_proto
        onnx.helper.set_model_props(exported, {"segkit": json.dumps(asdict(model.info))})
        onnx.save(exported, str(temporary))
    return Path(path)


class _OnOpenVINO(UNet):
    """A student whose forward pass is OpenVINO's: for use, not for training."""

    def __init__(self, model: UNet, compiled: Callable[[np.ndarray], Any]) -> None:
        super().__init__(model.info)
        self.precision = model.precision
        self.load_state_dict(model.state_dict())
        self.compiled = compiled

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(self.compiled(x.contiguous().numpy())[0])


def with_openvino(model: UNet) -> UNet:
    """The same student, answering through OpenVINO on the CPU: faster there, in bf16 where the processor has it.

    Takes about 10 s once; `segment` and `segment_dataset` use the result as any other model.
    Raises SegkitError where the package is missing: pip install 'segkit[openvino]'.
    """
    try:
        import openvino
    except ImportError:
        raise SegkitError("OPENVINO needs the package openvino: pip install 'segkit[openvino]'") from None
    network = copy_on_cpu(model)
    with warnings.catch_warnings(action="ignore"):
        converted = openvino.convert_model(_traced(network, "x"))
    options = {"PERFORMANCE_HINT": "LATENCY"}
    if model.precision != "auto":
        options["INFERENCE_PRECISION_HINT"] = {"bf16": "bf16", "float32": "f32"}[model.precision]
    return _OnOpenVINO(network, openvino.Core().compile_model(converted, "CPU", options)).eval()


def _traced(network: nn.Module, argument: str) -> torch.export.ExportedProgram:
    """The network as a graph, for any batch, height and width (multiples of 16)."""
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    shapes = {argument: {0: batch, 2: STRIDE * rows, 3: STRIDE * columns}}
    return torch.export.export(network.eval(), (torch.zeros(2, 1, 4 * STRIDE, 5 * STRIDE),), dynamic_shapes=shapes)
