"""The student: a U-Net of 4.4 million parameters, and what its model file says about it."""

import copy
from dataclasses import dataclass, field
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data.images import SPECK

WIDTHS = (24, 48, 96, 192, 384)  # channels per level (Visuna et al. 2025, doi 10.1016/j.engappai.2025.112503)
STRIDE = 2 ** (len(WIDTHS) - 1)  # height and width of the input must be multiples of this
PAIRS = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0), (2, 2), (2, -2))  # (y, x) to either pixel of a pair, pixels
FIELD_OF_VIEW = 200  # pixels, about: what one output pixel can depend on (five levels of two 3 x 3 convolutions)


@dataclass(frozen=True)
class ModelInfo:
    """What a model file holds besides the weights: how to build the network and how to use it."""

    outputs: int = 2 + len(PAIRS)  # foreground logits, distance to the cell's edge, logits of pairs; 2 in version 1.1
    upsampling: str = "smoothed"  # of UpConv; the baseline's is "corners aligned"
    normalisation: str = "percentile"  # see segkit.data.images.normalise
    threshold: float = 0.5  # a pixel with a higher foreground probability belongs to a cell
    prominence: float = 0.05  # how far the distance falls between two fragments; in version 1.1 between two cells
    min_area: int = SPECK  # pixels; smaller cells are specks
    cell_width: float = 0.0  # median of the training cells, pixels; 0: unknown
    scores: dict[str, Any] = field(default_factory=dict)
    trained_on: dict[str, list[str]] = field(default_factory=dict)  # EXPERIMENT/position -> hashes of its images
    validated_on: dict[str, list[str]] = field(default_factory=dict)  # the same (images.hash_pixels)
    fully_recorded: bool = False  # whether trained_on is complete; before 1.2 nothing was recorded
    settings: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)


class DoubleConv(nn.Sequential):
    """Twice: 3 x 3 convolution, batch norm, ReLU. (B, in, H, W) -> (B, out, H, W)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        layers: list[nn.Module] = []
        for channels in (channels_in, channels_out):
            convolution = nn.Conv2d(channels, channels_out, 3, padding=1)
            cast(Tensor, convolution.bias).requires_grad_(False)  # batch norm subtracts it: its gradient is 0
            layers += [convolution, nn.BatchNorm2d(channels_out), nn.ReLU(inplace=True)]
        super().__init__(*layers)


class UpConv(DoubleConv):
    """DoubleConv of a skip connection and the upsampled map of the level below.

    skip (B, out, H, W), x (B, in - out, H / 2, W / 2) -> (B, out, H, W). The first convolution is applied to each of
    the two and the results are added. The sum equals the convolution of their concatenation, without the copy.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out)
        sides = torch.tensor([0.5, 1.0, 0.5])  # (1, 2, 1) / 4, times 2 along each axis: the kernel lacks a factor of 4
        self.register_buffer("smoothing", (sides[:, None] * sides)[None, None], persistent=False)  # (1, 1, 3, 3)
        meet = torch.tensor([[0.0, 0, 1], [0, 1, 1], [1, 1, 0], [1, 0, 0]])  # a kernel's four rows from three weights
        self.register_buffer("sums", torch.kron(meet, meet).T / 4, persistent=False)  # (9, 16)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        # the weights of the first convolution, channels of the skip connection first
        first, *rest = (cast(nn.Conv2d, layer) for layer in self)
        skip_weight, x_weight = first.weight.split([skip.shape[1], x.shape[1]], dim=1)
        x = F.conv2d(skip, skip_weight, first.bias, padding=1) + self.convolve_upsampled(x, x_weight)
        for layer in rest:
            x = layer(x)
        return x  # (B, out, H, W)

    def convolve_upsampled(self, x: Tensor, weight: Tensor) -> Tensor:
        """conv2d(x upsampled twofold, weight): (B, in, h, w), (out, in, 3, 3) -> (B, out, 2 h, 2 w).

        Bilinear upsampling repeats every pixel, then smooths by (1, 2, 1) / 4 along both axes. Convolution and
        smoothing commute. The convolution of repeated pixels is a transposed convolution whose 4 x 4 kernel sums the
        weights that meet the same pixel. It takes 16 instead of 36 multiplications per pixel of x, and fewer channels
        are smoothed (benchmarks/README.md has the gain). Zero padding.
        """
        kernel = weight.transpose(0, 1).flatten(2) @ cast(Tensor, self.sums)  # (in, out, 16), a quarter of the sums
        kernel = kernel.unflatten(2, (4, 4))  # (in, out, 4, 4)
        x = F.conv_transpose2d(x, kernel, stride=2)  # (B, out, 2 h + 2, 2 w + 2)
        return F.conv2d(x, cast(Tensor, self.smoothing).repeat(x.shape[1], 1, 1, 1), groups=x.shape[1])


class UNet(nn.Module):
    """U-Net with five levels, (B, 1, H, W) -> (B, outputs, H, W).

    Map 0 holds the foreground logits. Map 1 holds the distance to the cell's edge: 1 at the cell's core, 0 outside. The
    others hold, for each of PAIRS, the logits that the pixels on either side of a pixel belong to the same cell.

    Parameters
    ----------
    info : ModelInfo, optional
        How the network is built and used; saved with the weights.

    Raises
    ------
    ValueError
        In `forward`, if height or width is not a multiple of 16.

    Notes
    -----
    Ronneberger et al. 2015 (doi 10.1007/978-3-319-24574-4_28), with the widths of Visuna et al. 2025
    (doi 10.1016/j.engappai.2025.112503), batch norm, and bilinear upsampling.
    """

    up_block: type[UpConv] = UpConv

    def __init__(self, info: ModelInfo | None = None) -> None:
        super().__init__()
        self.info = info or ModelInfo()
        self.precision = "auto"  # of the forward pass: see devices.computes_in_bf16
        self.down = nn.ModuleList(DoubleConv(a, b) for a, b in zip((1, *WIDTHS[:-1]), WIDTHS, strict=True))
        self.up = nn.ModuleList(self.up_block(a + b, b) for a, b in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True))
        self.out = nn.Conv2d(WIDTHS[0], self.info.outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        if height % STRIDE or width % STRIDE:
            raise ValueError(f"input of {height} x {width} pixels: multiples of {STRIDE} were needed; "
                             f"pad it to {height + -height % STRIDE} x {width + -width % STRIDE}")
        # encoder: each level halves height and width; its map is kept for the decoder
        skips = []
        for level, block in enumerate(self.down):
            x = block(x if level == 0 else F.max_pool2d(x, 2))  # (B, WIDTHS[level], H / 2^level, W / 2^level)
            skips.append(x)
        # decoder, from the deepest level up, which is x itself
        skips.pop()
        for block in self.up:
            x = block(x, skips.pop())
        return self.out(x)  # (B, outputs, H, W)

    def count_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())


def copy_on_cpu(model: UNet) -> UNet:
    """A copy of the student on the CPU, in the default memory format."""
    return copy.deepcopy(model).cpu().to(memory_format=torch.contiguous_format).eval()
