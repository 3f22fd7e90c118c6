"""The student's file: weights and what is needed to use them; loading runs no code."""

import json
import os
import pickle
import re
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .devices import pick_device
from .errors import SegkitError
from .files import replacing
from .model import ModelInfo, UNet
from .settings import PRECISIONS

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
