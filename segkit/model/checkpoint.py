"""Model files: save, load, and export to other programs. Loading runs no code."""

import json
import os
import warnings
from dataclasses import asdict, fields
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ..devices import pick_device
from ..errors import SegkitError
from ..files import replacing
from ..settings import PRECISIONS, STARTER
from .baseline import BASELINE, BaselineUNet, read_baseline
from .unet import STRIDE, ModelInfo, UNet, copy_on_cpu

FORMAT = 2  # of a model file's metadata


def save_model(model: UNet, path: str | Path, half: bool = False) -> None:
    """Write weights and info as safetensors; half: the weights in half precision, for a file of half the size."""
    metadata = {"segkit": json.dumps({"format": FORMAT, **asdict(model.info)})}
    state = (copy_on_cpu(model).half() if half else copy_on_cpu(model)).state_dict()
    with replacing(path) as temporary:
        temporary.write_bytes(save(state, metadata))


def load_model(path: str | Path, device: str = "auto", precision: str = "auto") -> UNet:
    """Load a trained student, ready for `segment`.

    Parameters
    ----------
    path : str or Path
        A run folder, its model.safetensors, or the .pth file of the starting recipe; "starter": the student that
        comes with segkit ("./starter" is a file or folder of that name).
    device : {"auto", "cpu", "cuda", "mps"}
        Where the network runs; "auto" prefers a GPU.
    precision : {"auto", "bf16", "float32"}
        "auto" is bf16 where the hardware has it.

    Returns
    -------
    UNet
        In evaluation mode. With a .pth file the cells are connected components.

    Raises
    ------
    SegkitError
        If there is no model, the file is damaged or not of segkit, or the device does not exist.

    Notes
    -----
    Loading runs no code of the file. The weights are float32, also where the file has half precision. Model files of
    version 1.0 are not read.
    """
    if precision not in PRECISIONS:
        raise SegkitError(f"precision is {precision}: one of {', '.join(PRECISIONS)} was needed")
    # os.path, since Path raises an error of its own in a folder that may not be read
    path = STARTER if path == "starter" else Path(path).expanduser()
    file = path / "model.safetensors" if os.path.isdir(path) else path
    if not (os.path.isfile(file) and os.access(file, os.R_OK)):
        raise SegkitError(f"no trained model at {file} that you may read: train first, or set MODEL to a run's folder")
    # the suffix tells a state dict of PyTorch from a model file of segkit
    model = read_baseline(file) if file.suffix in (".pth", ".pt") else _read_model(file)
    model.precision = precision
    return model.to(pick_device(device)).to(memory_format=torch.channels_last).eval()


def _read_model(file: Path) -> UNet:
    """Build the network that a model file describes, and load its weights."""
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = json.loads((archive.metadata() or {}).get("segkit", "{}"))
            weights = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SegkitError(f"{file} is no valid model file ({error}): copy it again or train again") from None

    # 1.1 could save a network of 1.0 again; it still upsamples bilinearly
    if metadata.get("format") == 1 or metadata.get("upsampling") == "bilinear":
        raise SegkitError(f"{file} is a model of version 1.0, which is no longer read: train again, or use segkit 1.1")
    if metadata.get("format") != FORMAT:
        raise SegkitError(f"{file} was not written by this version of segkit: open it with the version that wrote it")

    # a later version may have added fields
    known = {f.name for f in fields(ModelInfo)}
    info = ModelInfo(**{name: value for name, value in metadata.items() if name in known})
    model = BaselineUNet(info) if info.upsampling == BASELINE.upsampling else UNet(info)
    try:
        model.load_state_dict(weights)
    except RuntimeError:
        raise SegkitError(f"{file} holds weights of another network: a segkit U-Net was needed") from None
    return model


class _WithProbability(nn.Sequential):
    """The network with foreground probabilities instead of logits: other programs expect them."""

    def forward(self, image: Tensor) -> Tensor:
        output = super().forward(image)
        return torch.cat([output[:, :1].sigmoid(), output[:, 1:2], output[:, 2:].sigmoid()], dim=1)


def export_onnx(model: UNet, path: str | Path) -> Path:
    """Write the student as ONNX, for ONNX Runtime, OpenVINO, Fiji's DeepImageJ and others.

    Parameters
    ----------
    model : UNet
    path : str or Path
        The file to write.

    Returns
    -------
    Path
        The file that was written.

    Raises
    ------
    SegkitError
        If the packages of the extra are missing (pip install 'segkit[onnx]') or the file cannot be written.

    Notes
    -----
    Input "image": float32 (B, 1, H, W), normalised as the model card says; B, H and W are free, H and W multiples of
    16. Output "maps": float32 (B, outputs, H, W), foreground probability, distance, and the affinities of `unet.PAIRS`.
    The metadata entry "segkit" holds the model's info (thresholds and so on).
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  (torch's exporter needs it)
    except ImportError as error:
        raise SegkitError(f"exporting needs the package {error.name}: pip install 'segkit[onnx]'") from None
    # on the CPU, so that every machine exports the same graph
    batch, rows, columns = (torch.export.Dim(name) for name in ("batch", "rows", "columns"))
    shapes = {"image": {0: batch, 2: STRIDE * rows, 3: STRIDE * columns}}
    example = torch.zeros(2, 1, 4 * STRIDE, 5 * STRIDE)
    graph = torch.export.export(_WithProbability(copy_on_cpu(model)).eval(), (example,), dynamic_shapes=shapes)
    with warnings.catch_warnings(action="ignore"), replacing(path) as temporary:
        program = torch.onnx.export(graph, dynamo=True, input_names=["image"], output_names=["maps"], verbose=False)
        assert program is not None
        exported = program.model_proto
        onnx.helper.set_model_props(exported, {"segkit": json.dumps(asdict(model.info))})
        onnx.save(exported, str(temporary))
    return Path(path)
