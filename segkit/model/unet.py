"""The student: a U-Net of 4.4 million parameters."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import SPECK

WIDTHS = (24, 48, 96, 192, 384)  # channels per level (Visuna et al. 2025, doi 10.1016/j.engappai.2025.112503)
STRIDE = 2 ** (len(WIDTHS) - 1)  # height and width of the input must be multiples of this
FIELD_OF_VIEW = 200  # pixels, about: what one output pixel can depend on (five levels of two 3 x 3 convolutions)
norm: Callable[[int], nn.Module] = nn.BatchNorm2d  # chosen by measurement (benchmarks/norms.py puts others here)


@dataclass(frozen=True)
class ModelInfo:
    """What a model's file says besides its weights: how to build it and how to use it."""

    outputs: int = 2  # foreground logits, and the normalised distance to the cell's edge
    upsampling: str = "smoothed"  # see UpConv; older files "bilinear", the starting recipe's "corners aligned"
    normalisation: str = "percentile"  # see segkit.data.images.normalise
    threshold: float = 0.5  # foreground probability above which a pixel belongs to a cell
    prominence: float = 0.2  # how far the distance falls between two cells that touch
    min_area: int = SPECK  # pixels; smaller cells are specks
    cell_width: float = 0.0  # median of the training cells, pixels; 0: unknown
    scores: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, list[str]] = field(default_factory=dict)  # hashes of images (images.hash_pixels) by
    validated_on: dict[str, list[str]] = field(default_factory=dict)  # EXPERIMENT/position
    fully_recorded: bool = False  # whether trained_on holds all; before 1.2 nothing was recorded
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, batch norm, ReLU. (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            convolution = nn.Conv2d(channels, channels_out, 3, padding=1)
            layers += [convolution, norm(channels_out), nn.ReLU(inplace=True)]
            if isinstance(layers[-2], nn.BatchNorm2d):  # takes off whatever the bias adds: no gradient to compute
                cast(Tensor, convolution.bias).requires_grad_(False)
        super().__init__(*layers)


class UpConv(DoubleConv):
    """DoubleConv of a skip connection joined by a map of half its size, upsampled.

    skip (B, out, H, W), x (B, in - out, H / 2, W / 2) -> (B, out, H, W). Each is convolved for itself, which gives
    the same sum as their concatenation without the copy.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        sides = torch.tensor([0.5, 1.0, 0.5])  # twice (1, 2, 1) / 4, and the 4 that is missing from the kernel
        self.register_buffer("smoothing", (sides[:, None] * sides)[None, None], persistent=False)  # (1, 1, 3, 3)

    def forward(self, x: Tensor, skip: Tensor, upsampling: str) -> Tensor:  # type: ignore[override]
        first, *rest = (cast(nn.Conv2d, layer) for layer in self)
        of_skip, of_x = first.weight.split([skip.shape[1], x.shape[1]], dim=1)
        x = F.conv2d(skip, of_skip, first.bias, padding=1) + self.convolve_upsampled(x, of_x, upsampling)
        for layer in rest:
            x = layer(x)
        return x

    def convolve_upsampled(self, x: Tensor, weight: Tensor, upsampling: str) -> Tensor:
        """conv2d(x upsampled twofold, weight): (B, in, h, w), (out, in, 3, 3) -> (B, out, 2 h, 2 w).

        Bilinear upsampling is repeating every pixel, then smoothing by (1, 2, 1) / 4 along both axes. Convolution and
        smoothing may change places; and what is left, convolving repeated pixels, is a transposed convolution whose
        4 x 4 kernel sums the weights that meet the same pixel. That is 16 instead of 36 multiplications a pixel of
        x, and smooths fewer channels (benchmarks/README.md has what it gains). Beyond the rim x counts as 0.
        """
        if upsampling != "smoothed":
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=upsampling == "corners aligned")
            return F.conv2d(x, weight, padding=1)
        kernel = F.avg_pool2d(F.pad(weight.transpose(0, 1).flip(-1, -2), (1, 1, 1, 1)), 2, 1)  # a quarter of the sums
        x = F.conv_transpose2d(x, kernel, stride=2)  # (B, out, 2 h + 2, 2 w + 2)
        channels = x.shape[1]
        return F.conv2d(x, cast(Tensor, self.smoothing).repeat(channels, 1, 1, 1), groups=channels)


class UNet(nn.Module):
    """U-Net with five levels and two output maps, (B, 1, H, W) -> (B, 2, H, W), H and W multiples of 16.

    Map 0: foreground logits. Map 1: distance to the cell's edge, 1 at the cell's core, 0 outside.
    info: how the network is built and used (ModelInfo); kept with the weights in the model's file.
    """

    def __init__(self, info: ModelInfo | None = None) -> None:
        super().__init__()
        self.info = info or ModelInfo()
        self.precision = "auto"  # of its forward pass: see devices.computes_in_bf16
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        self.up = nn.ModuleList(UpConv(a + b, b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
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
            x = block(x, skips.pop(), self.info.upsampling)
        return self.out(x)

    def count_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


def copy_on_cpu(model: UNet) -> UNet:
    """The same student for use elsewhere: on the CPU, its memory in the plain order."""
    copy = UNet(model.info).eval()
    copy.precision = model.precision
    copy.load_state_dict({name: tensor.cpu() for name, tensor in model.state_dict().items()})
    return copy
