"""The student in other programs."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from .errors import SegkitError
from .files import replacing
from .model import STRIDE, UNet


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
    answer = _Answer(UNet(model.info)).eval()
    answer.model.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    example = torch.zeros(2, 1, 4 * STRIDE, 5 * STRIDE)
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    with warnings.catch_warnings(action="ignore"), replacing(path) as temporary:
        program = torch.onnx.export(answer, (example,), dynamo=True, input_names=["image"], output_names=["maps"],
                                    dynamic_shapes={"image": {0: batch, 2: STRIDE * rows, 3: STRIDE * columns}},
                                    verbose=False)
        assert program is not None
        exported = program.model_proto
        onnx.helper.set_model_props(exported, {"segkit": json.dumps(asdict(model.info))})
        onnx.save(exported, str(temporary))
    return Path(path)
