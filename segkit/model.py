"""The student: a U-Net of 4.4 million parameters, and its file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .devices import pick_device
from .errors import SegkitError
from .files import replacing

WIDTHS = (24, 48, 96, 192, 384)  # channels per level (Visuna et al. 2025, doi 10.1016/j.engappai.2025.112503)
STRIDE = 2 ** (len(WIDTHS) - 1)  # height and width of the input must be multiples of this
FORMAT = 1


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says besides its weights: how to build it and how to use it."""

    norm: str = "group"  # group | batch | instance
    outputs: int = 2  # foreground logits, and the normalised distance to the cell's edge
    align_corners: bool = False
    normalisation: str = "percentile"  # see segkit.normalise
    threshold: float = 0.5  # foreground probability above which a pixel belongs to a cell
    marker: float = 0.5  # distance above which a pixel is a cell's core
    min_area: int = 12  # pixels; smaller cells are specks
    cell_width: float = 0.0  # median of the training cells, pixels; 0: unknown
    scores: dict[str, Any] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "group":
        return nn.GroupNorm(8, channels)
    if kind == "instance":
        return nn.GroupNorm(channels, channels)
    return nn.BatchNorm2d(channels)


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, normalisation, ReLU. (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int, norm: str) -> None:
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            layers += [nn.Conv2d(channels, channels_out, 3, padding=1), _norm(norm, channels_out),
                       nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UNet(nn.Module):
    """U-Net with five levels and two output maps, (B, 1, H, W) -> (B, 2, H, W), H and W multiples of 16.

    Map 0: foreground logits. Map 1: distance to the cell's edge, 1 at the cell's core, 0 outside.
    info: how the network is built and used (ModelInfo); kept with the weights in the model's file.
    """

    def __init__(self, info: ModelInfo | None = None) -> None:
        super().__init__()
        self.info = info or ModelInfo()
        self.down = nn.ModuleList(DoubleConv(a, b, self.info.norm)
                                  for a, b in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        self.up = nn.ModuleList(DoubleConv(a + b, b, self.info.norm)
                                for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.out = nn.Conv2d(WIDTHS[0], self.info.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2] % STRIDE or x.shape[-1] % STRIDE:
            padded = tuple(-(-n // STRIDE) * STRIDE for n in x.shape[-2:])
            raise ValueError(f"input of {x.shape[-2]} x {x.shape[-1]} pixels: multiples of {STRIDE} were needed; "
                             f"pad it to {padded[0]} x {padded[1]}")
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))
            skips.append(x)
        skips.pop()  # the deepest level is x itself
        for block in self.up:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=self.info.align_corners)
            x = block(torch.cat([skips.pop(), x], dim=1))
        return self.out(x)

    def count_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


def save_model(model: UNet, path: str | Path) -> None:
    """Write weights and info as safetensors: a file that runs no code when it is loaded."""
    metadata = {"segkit": json.dumps({"format": FORMAT, **asdict(model.info)})}
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    with replacing(path) as temporary:
        save_file(state, temporary, metadata)


def load_model(path: str | Path, device: str = "auto") -> UNet:
    """Load a trained student, ready for `segment`.

    path: a run's folder or its model.safetensors; device: "auto", "cpu", "cuda", "mps".
    Raises SegkitError where there is no model, or the file is damaged or not of segkit.
    """
    path = Path(path).expanduser()
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise SegkitError(f"no trained model at {file}: run 03_training first, or set MODEL to a run's folder")
    try:
        with safe_open(file, framework="pt") as archive:
            metadata = json.loads((archive.metadata() or {}).get("segkit", "{}"))
            state = {name: archive.get_tensor(name) for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise SegkitError(f"{file} is no sound model file ({error}): copy it again or train anew") from None
    if metadata.pop("format", None) != FORMAT:
        raise SegkitError(f"{file} was not written by this version of segkit: format {FORMAT} was needed; "
                          "open it with the version that wrote it")
    known = {f.name for f in fields(ModelInfo)}
    model = UNet(replace(ModelInfo(), **{k: v for k, v in metadata.items() if k in known}))
    try:
        model.load_state_dict(state)
    except RuntimeError:
        raise SegkitError(f"{file} holds weights of another network: a segkit U-Net was needed") from None
    return model.to(pick_device(device)).to(memory_format=torch.channels_last).eval()
