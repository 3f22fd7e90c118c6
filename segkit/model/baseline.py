"""The baseline: the starting recipe's network, and its .pth files."""

import pickle
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..data.tiff import DAMAGE
from ..errors import SegkitError
from .unet import WIDTHS, ModelInfo, UNet, UpConv

BASELINE = ModelInfo(outputs=1, upsampling="corners aligned", normalisation="minmax", min_area=1)
# the recipe's names of the network's parts -> ours
PARTS = ({"inc.double_conv.": "down.0.", "outc.": "out."}
         | {f"down{level}.1.double_conv.": f"down.{level}." for level in range(1, len(WIDTHS))}
         | {f"conv_up{level}.double_conv.": f"up.{level - 1}." for level in range(1, len(WIDTHS))})


class AlignedUpConv(UpConv):
    """UpConv that upsamples with aligned corners, then convolves."""

    def convolve_upsampled(self, x: Tensor, weight: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)  # (B, in, 2 h, 2 w)
        return F.conv2d(x, weight, padding=1)


class BaselineUNet(UNet):
    """The starting recipe's network: one output map, the foreground logits (B, 1, H, W)."""

    up_block = AlignedUpConv


def read_baseline(path: Path) -> BaselineUNet:
    """Load a state dict that the starting recipe saved. No code in the file runs."""
    model = BaselineUNet(BASELINE)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for name in list(weights):
            part = next(part for part in PARTS if name.startswith(part))
            weights[PARTS[part] + name.removeprefix(part)] = weights.pop(name)
        model.load_state_dict(weights)
    except (*DAMAGE, pickle.UnpicklingError, StopIteration):
        raise SegkitError(f"{path}: a complete state dict of the starting recipe's U-Net was needed") from None
    return model
