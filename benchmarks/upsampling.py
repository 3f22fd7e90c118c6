"""What the decoder's upsampling costs: `python benchmarks/upsampling.py [DEVICE=... CROP=128x128 BATCH_SIZE=16]`.

A training step on one batch and a frame of 768 x 448 in use, in turns, for a student that upsamples before it convolves
(version 1.0's), for one that does both at once (segkit.model.unet.UpConv), and for that without the gradients of biases
that batch norm takes off again (as it is now). The starting recipe's network takes a turn, too: its step without its
pipeline, and its frame, in float32. Beside them, what a crop of 768 x 448 keeps for its gradients in bf16: on a GPU the
most of what a training takes (counted on small crops: it is so much a pixel).
"""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent))
from inference import seconds
from plain_recipe import PlainUNet

import segkit
from segkit.devices import autocast, describe_device, pick_device
from segkit.model.unet import UpConv
from segkit.settings import Settings, parse_settings
from segkit.training.distributed import ProcessGroup
from segkit.training.losses import student_loss
from segkit.training.trainer import Trainer

ROUNDS = 9


class BilinearUpConv(UpConv):
    """UpConv that upsamples bilinearly, then convolves."""

    def convolve_upsampled(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return F.conv2d(x, weight, padding=1)


class BilinearUNet(segkit.UNet):
    """The network of version 1.0."""

    up_block = BilinearUpConv


def student(settings: Settings, network: type[segkit.UNet], biases: bool) -> tuple[Trainer, Callable[[], object]]:
    """A student in training, and a frame through it as `segment` asks for it."""
    model = network()
    if biases:
        model.requires_grad_()
    trainer = Trainer(model, settings, ProcessGroup(settings.device))
    trainer.initialise(0.3)
    trainer.model.train()
    judged = trainer.ema_model.eval()
    frame = torch.rand(1, 1, 768, 448).to(trainer.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def answer() -> None:
        with autocast(trainer.device):
            judged(frame).cpu()

    return trainer, answer


def kept(network: type[segkit.UNet]) -> float:
    """MB that the forward pass of a crop of 768 x 448 keeps for the backward pass, in bf16."""
    model = network().to(memory_format=torch.channels_last).train()
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    sums = []
    for width in (64, 128):
        held: dict[int, torch.Tensor] = {}

        def hold(tensor: torch.Tensor, held: dict[int, torch.Tensor] = held) -> torch.Tensor:
            held[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(hold, lambda tensor: tensor):
            with torch.autocast("cpu", torch.bfloat16):
                output = model(torch.rand(1, 1, 64, width).contiguous(memory_format=torch.channels_last))
            student_loss(output, torch.ones(1, 2, 64, width))
        sums.append(sum(t.untyped_storage().nbytes() for place, t in held.items() if place not in own))
    return (sums[1] - sums[0]) / 64 ** 2 * 768 * 448 / 1e6


def main(arguments: list[str]) -> None:
    values = {"CROP": "128x128", "START_FROM": "", **dict(a.split("=", 1) for a in arguments)}
    settings = parse_settings(values, Settings())
    device, size = pick_device(settings.device), (settings.batch_size, 1, *settings.crop_size())
    images, targets = torch.rand(size, device=device), (torch.rand(size, device=device) - 0.5).clamp(min=0)
    plain, frame = PlainUNet().to(device), torch.rand(1, 1, 768, 448, device=device)
    optimiser = torch.optim.AdamW(plain.parameters())
    judged = PlainUNet().to(device).eval()

    def plain_step() -> None:
        optimiser.zero_grad()
        F.binary_cross_entropy(plain(images).sigmoid(), (targets > 0).float()).backward()
        optimiser.step()
        next(plain.parameters()).sum().item()  # waits for the device

    def taught(trainer: Trainer) -> None:
        trainer.train_step(images, torch.cat([targets, (targets > 0).float()], 1)).tolist()

    @torch.inference_mode()
    def plain_answer() -> None:
        judged(frame).cpu()

    ways: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
        "the starting recipe's network": (plain_step, plain_answer)}
    for name, network, biases in (("upsampled, then convolved", BilinearUNet, True),
                                  ("both at once", segkit.UNet, True),
                                  ("both at once, fewer biases to learn", segkit.UNet, False)):
        trainer, answer = student(settings, network, biases)
        ways[name] = partial(taught, trainer), answer
    for actions in ways.values():
        for action in actions:
            action()
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in ways}
    for _ in range(ROUNDS):
        for name, actions in ways.items():
            for action, spent in zip(actions, times[name], strict=True):
                spent.append(seconds(action))
    print(f"{size[0]} crops of {size[2]} x {size[3]}; {describe_device(device)}; torch {torch.__version__}; median and "
          f"least of {ROUNDS}\n")
    print("| way | s a step | least | s a frame | least |\n| --- | --- | --- | --- | --- |")
    for name, (steps, frames) in times.items():
        print(f"| {name} | {median(steps):.3f} | {min(steps):.3f} | {median(frames):.3f} | {min(frames):.3f} |")
    print(f"\nkept for a crop: {kept(BilinearUNet):.0f} MB (bilinear), {kept(segkit.UNet):.0f} MB (smoothed)")


if __name__ == "__main__":
    main(sys.argv[1:])
