"""Model files: save, load, and export to other programs. Loading runs no code."""

import json
import os
import pickle
import re
import warnings
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..devices import pick_device
from ..errors import SegkitError
from ..files import replacing
from ..settings import PRECISIONS
from .unet import STRIDE, ModelInfo, UNet, copy_on_cpu

FORMAT = 2
_PLAIN_PARTS = ((r"inc\.double_conv\.", "down.0."), (r"down(\d)\.1\.double_conv\.", r"down.\1."),
                (r"conv_up(\d)\.double_conv\.", lambda m: f"up.{int(m[1]) - 1}."), (r"outc\.", "out."))


def save_model(model: UNet, path: str | Path) -> None:
    """Write weights and info as safetensors: a file that runs no code when it is loaded."""
    metadata = {"segkit": json.dumps({"format": FORMAT, **asdict(model.info)})}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(state, metadata))


def load_model(path: str | Path, device: str = "auto", precision: str = "auto") -> UNet:
    """Load a trained student, ready for `segment`.

    path: a run's folder, its model.safetensors, or the .pth file of the starting recipe (its cells are connected
    components; `save_model` makes a model file of it). device: "auto", "cpu", "cuda", "mps".
    precision: "auto" (bf16 where the hardware has it), "bf16" or "float32".
    Raises SegkitError where there is no model, or the file is damaged or not of segkit.
    """
    if precision not in PRECISIONS:
        raise SegkitError(f"precision is {precision}: one of {', '.join(PRECISIONS)} was needed")
    path = Path(path).expanduser()
    file = path / "model.safetensors" if os.path.isdir(path) else path
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):
        raise SegkitError(f"no trained model at {file}, or none that you may read: train first (03_training, make "
                          "run), or set MODEL to a run's folder")
    model = _read_plain_weights(file) if file.suffix in (".pth", ".pt") else _read_model(file)
    model.precision = precision
    return model.to(pick_device(device)).to(memory_format=torch.channels_last).eval()


def _read_model(file: Path) -> UNet:
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = json.loads((archive.metadata() or {}).get("segkit", "{}"))
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SegkitError(f"{file} is no sound model file ({error}): copy it again or train anew") from None
    written_as = metadata.pop("format", None)
    if written_as == 1:
        metadata["upsampling"] = "corners aligned" if metadata.get("align_corners") else "bilinear"
    elif written_as != FORMAT:
        raise SegkitError(f"{file} was not written by this version of segkit: format {FORMAT} was needed; "
                          "open it with the version that wrote it")
    known = {f.name for f in fields(ModelInfo)}
    model = UNet(replace(ModelInfo(), **{k: v for k, v in metadata.items() if k in known}))
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise SegkitError(f"{file} holds weights of another network: a segkit U-Net was needed") from None
    return model


def _read_plain_weights(path: Path) -> UNet:
    """A student from the starting recipe's .pth file: same weights, its normalisation and its upsampling."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        renamed = {}
        for name, tensor in state.items():
            for pattern, ours in _PLAIN_PARTS:
                name = re.sub(f"^{pattern}", ours, name)
            renamed[name] = tensor
        model = UNet(ModelInfo(outputs=1, upsampling="corners aligned", normalisation="minmax", min_area=1))
        model.load_state_dict(renamed)
    except (OSError, RuntimeError, EOFError, ValueError, AttributeError, LookupError, TypeError,
            pickle.UnpicklingError):
        raise SegkitError(f"{path} does not hold the weights of the starting recipe's U-Net: a state dict saved by "
                          "torch.save was needed; is the file whole?") from None
    return model


class _WithProbability(nn.Module):
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
        program = torch.onnx.export(_traced(_WithProbability(copy_on_cpu(model)), "image"), dynamo=True,
                                    input_names=["image"], output_names=["maps"], verbose=False)
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
