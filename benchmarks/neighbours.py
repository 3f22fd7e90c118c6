"""Side by side with neighbours: `python benchmarks/neighbours.py [DATASET_PATH=... EPOCHS=... PLAIN_BATCHES=...]`.

segkit, the starting recipe, and the U-Nets of segmentation_models.pytorch and MONAI in a plain loop, each for as many
seconds as segkit took; then the speed of Omnipose's network class (random weights) beside `segment`. The neighbours are
installed by this script into an environment of their own, artefacts/neighbours, which sees this one's torch.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1]))
from convergence import compare
from inference import ROUNDS, seconds, synthetic_frames
from plain_recipe import PlainTraining, plain_crop

import segkit
from segkit.data.dataset import Frame, read_pair
from segkit.data.images import normalise
from segkit.devices import describe_device
from segkit.model.unet import WIDTHS, ModelInfo

PACKAGES = ("segmentation-models-pytorch", "monai", "omnipose", "ncolor<2")
HOME = Path(__file__).parents[1] / "artefacts" / "neighbours"
MULTIPLE = 32  # what the neighbours' networks need height and width to be multiples of


def in_own_environment() -> bool:
    """Whether this is the neighbours' environment; makes it where it is not there."""
    if Path(sys.prefix) == HOME:
        return True
    if not (HOME / "ready").is_file():
        venv.create(HOME, with_pip=True)
        (packages,) = HOME.glob("lib/python*/site-packages")
        (packages / "segkit_environment.pth").write_text("\n".join(p for p in sys.path if "site-packages" in p))
        subprocess.run([HOME / "bin" / "pip", "install", "--quiet", *PACKAGES], check=True)
        (HOME / "ready").touch()
    return False


class Neighbour(nn.Module):
    """A neighbour's network, so that `segkit.segment` can use it: cells are connected components of its mask."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.info = network, ModelInfo(outputs=1, min_area=1)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        return self.network(F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE)))[..., :height, :width]


class NeighbourTraining(PlainTraining):
    """A plain loop: frames decoded once and normalised whole, flips, turns and zoom, cross-entropy and Dice, AdamW."""

    def __init__(self, make: Callable[[], nn.Module], frames: Sequence[Frame], crop: tuple[int, int], batch: int,
                 device: torch.device, seed: int = 0) -> None:
        super().__init__(frames, crop, batch, device, seed)
        torch.manual_seed(seed)
        self.network = Neighbour(make()).to(device)
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=1e-3)
        self.pairs = [(normalise(image), labels) for image, labels in map(read_pair, frames)]

    def draw(self) -> tuple[np.ndarray, np.ndarray]:
        return plain_crop(*self.pairs[self.rng.integers(len(self.pairs))], self.crop, self.rng, normalise_crop=False)

    def loss(self, output: Tensor, masks: Tensor) -> Tensor:
        probability = output.sigmoid()
        overlap = 2 * (probability * masks).sum() / (probability.sum() + masks.sum() + 1)
        return F.binary_cross_entropy_with_logits(output, masks) + 1 - overlap


def smp_unet() -> nn.Module:
    import segmentation_models_pytorch as smp
    return smp.Unet("resnet18", encoder_weights=None, in_channels=1, classes=1)


def monai_unet() -> nn.Module:
    from monai.networks.nets import BasicUNet
    return BasicUNet(spatial_dims=2, in_channels=1, out_channels=1, features=(*WIDTHS, WIDTHS[0]))


def segmenting_speed(model: segkit.UNet) -> None:
    """Omnipose's network alone, as its bact_phase_omni model is built, against `segment` with labels."""
    from cellpose_omni.resnet_torch import CPnet
    teacher, x = CPnet([2, 32, 64, 128, 256], nout=4, sz=3).eval(), torch.rand(1, 2, 768, 448)
    with tempfile.TemporaryDirectory() as folder:
        image = segkit.read_image(synthetic_frames(Path(folder), 1)[0].image)

    @torch.inference_mode()
    def forward() -> None:
        teacher(x)

    actions: tuple[Callable[[], object], ...] = (lambda: segkit.segment(model, image), forward)
    ours, theirs = (min(seconds(action) for _ in range(ROUNDS + 1)) for action in actions)
    count = sum(p.numel() for p in teacher.parameters()) / 1e6
    print(f"\n768 x 448, {describe_device(torch.device('cpu'))}: Omnipose's network alone ({count:.1f} M parameters, "
          f"random weights) {theirs:.2f} s, `segkit.segment` {ours:.2f} s: {theirs / ours:.1f} times as fast.")


def main(arguments: list[str]) -> None:
    print(", ".join(f"{name} {version(name)}" for name in ("segmentation-models-pytorch", "monai", "omnipose")))
    model = compare(arguments, {
        "segmentation_models.pytorch U-Net (ResNet-18)": lambda *how: NeighbourTraining(smp_unet, *how),
        "MONAI BasicUNet": lambda *how: NeighbourTraining(monai_unet, *how)})
    segmenting_speed(model.cpu())


if __name__ == "__main__":
    if in_own_environment():
        main(sys.argv[1:])
    else:
        sys.exit(subprocess.run([HOME / "bin" / "python", __file__, *sys.argv[1:]]).returncode)
