"""Augmentation: sample crops, and turn, mirror, zoom and shade them."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .frames import Store

BLUR_RADIUS = 3  # pixels
TURNED, ZOOM = 0.5, (0.65, 1.55)  # share of the crops that are rotated by any angle, and the range of their zoom
LIGHT = {  # share of the crops that are changed, and the range of the change; of its logarithm for contrast and gamma
    "contrast": (0.5, -0.5, 0.5), "offset": (0.5, -0.15, 0.15), "gamma": (0.5, -0.5, 0.5), "slope_y": (0.3, -0.3, 0.3),
    "slope_x": (0.3, -0.3, 0.3), "blur": (0.4, 0.15, 1.2), "noise": (0.5, 0.0, 0.08)}


def sample_crops(store: Store, count: int, size: tuple[int, int], generator: torch.Generator,
                 strength: float = 1.0) -> dict[str, Tensor]:
    """Place `count` crops of size (height, width) and draw their augmentation: small tensors on the CPU.

    Where cells are rare, up to half of the crops are centred near one, so that nearly empty frames are of use; where
    cells cover a tenth of the frames or more, crops lie anywhere. All are brought to the median width of the cells,
    then mirrored and zoomed; a half is rotated by any angle, the others by quarter turns (half turns where they are not
    square; measured: benchmarks/README.md). strength: of the augmentation, 0 to 1.
    """
    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(count, generator=generator) * (high - low) + low

    def sometimes(share: float) -> Tensor:
        return torch.rand(count, generator=generator) < share

    # Place: anywhere in the frame, or near a pixel of a cell; always inside the frame where the crop fits
    frame = torch.randint(len(store.frames), (count,), generator=generator)
    extent = torch.stack([store.height, store.width], 1)[frame].float()
    point = store.points[frame, torch.randint(store.points.shape[1], (count,), generator=generator)].float()
    half = torch.tensor(size) / 2
    anywhere = half + torch.rand(count, 2, generator=generator) * (extent - 2 * half).clamp(min=0)
    near = point + (torch.rand(count, 2, generator=generator) - 0.5) * half
    seek = sometimes(max(0.0, 0.5 - store.foreground / 0.2)) & (point[:, 0] >= 0)
    centre = torch.where(seek[:, None], near, anywhere)
    centre = torch.minimum(torch.maximum(centre, half), (extent - half).clamp(min=0)).floor()
    # Rotation, zoom and mirroring
    quarter = torch.randint(4, (count,), generator=generator) * (math.pi / 2)
    quarter = quarter if size[0] == size[1] else 2 * quarter
    angle = torch.where(sometimes(TURNED * strength), uniform(0, 2 * math.pi), quarter)
    zoom = store.scale[frame] * (strength * uniform(math.log(ZOOM[0]), math.log(ZOOM[1]))).exp()
    centre = centre + torch.rand(count, 2, generator=generator)
    mirror = torch.where(sometimes(0.5), -1.0, 1.0)
    plan = {"frame": frame, "centre": centre, "angle": angle, "zoom": zoom, "mirror": mirror}
    # Brightness, blur and noise: each for some of the crops only
    for name, (share, low, high) in LIGHT.items():
        plan[name] = torch.where(sometimes(share), strength * uniform(low, high), 0.0)
    plan["contrast"], plan["gamma"] = plan["contrast"].exp(), plan["gamma"].exp()
    return plan | {"noise_seed": torch.randint(2**31, (1,), generator=generator)}


def gather_crops(store: Store, plan: dict[str, Tensor], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The crops that `sample_crops` chose, augmented.

    Returns images (B, 1, h, w) and targets (B, 2, h, w), float32; see `losses.student_loss`.
    """
    # From (row, column) about the crop's centre to (row, column) about the same point of the frame: (B, 2, 2)
    cos, sin = plan["angle"].cos() / plan["zoom"], plan["angle"].sin() / plan["zoom"]
    matrix = torch.stack([torch.stack([cos, -sin * plan["mirror"]], 1), torch.stack([sin, cos * plan["mirror"]], 1)], 1)
    # Windows of one size, about the pixel nearest to each centre, that hold all pixels of every crop
    half = (torch.tensor(size) - 1) / 2
    reach = [math.ceil(extent) + 1 for extent in (matrix.abs() @ half).amax(0).tolist()]  # pixels, rows and columns
    centre = plan["centre"] - torch.tensor([0.5 if n % 2 == 0 else 0.0 for n in size])  # even: between two pixels
    nearest = centre.round()
    rows, columns = (nearest[:, k, None].long() + torch.arange(-reach[k], reach[k] + 1) for k in (0, 1))
    window, target_window = store.window(plan["frame"], rows, columns)  # (B, 1 and 2, 2 * reach + 1, ...)
    # The same map in the coordinates of grid_sample: (x, y), -1 to 1 over the window and over the crop
    scaled = torch.cat([matrix * half, (centre - nearest)[:, :, None]], 2) / torch.tensor(reach)[:, None]  # (B, 2, 3)
    theta = scaled[:, [1, 0]][:, :, [1, 0, 2]].to(window.device, non_blocking=True)
    grid = F.affine_grid(theta, [len(theta), 1, *size], align_corners=True)
    image = F.grid_sample(window, grid, mode="bilinear", padding_mode="border", align_corners=True)
    target = F.grid_sample(target_window, grid, mode="nearest", padding_mode="border", align_corners=True)
    return augment_light(image, plan), target


def augment_light(image: Tensor, plan: dict[str, Tensor]) -> Tensor:
    """Augment contrast, offset, gamma, a slope of light, blur and noise of each image (B, 1, h, w)."""
    def per_image(name: str) -> Tensor:
        return plan[name].to(image.device, non_blocking=True)[:, None, None, None]

    # Gamma between black and white only; contrast about the middle
    inside = (image > 0) & (image < 1)
    image = torch.where(inside, image.clamp(1e-6, 1).pow(per_image("gamma")), image)
    image = (image - 0.5) * per_image("contrast") + 0.5 + per_image("offset")
    # A slope of light over the crop
    ramp_y = torch.linspace(-0.5, 0.5, image.shape[-2], device=image.device)[:, None]
    ramp_x = torch.linspace(-0.5, 0.5, image.shape[-1], device=image.device)
    image = image + per_image("slope_y") * ramp_y + per_image("slope_x") * ramp_x
    # Blur comes before noise, as in a microscope
    blurred = _blur(image, plan["blur"])
    noise_source = torch.Generator(image.device).manual_seed(int(plan["noise_seed"]))
    noise = torch.randn(image.shape, generator=noise_source, device=image.device)
    return blurred + noise * per_image("noise")


def _blur(image: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur, each image by its own sigma (B,), pixels, on the CPU; sigma 0 leaves the image as it is."""
    sigma = sigma.to(image.device, non_blocking=True)[:, None]
    steps = torch.arange(-BLUR_RADIUS, BLUR_RADIUS + 1, device=image.device).float()
    kernel = torch.exp(-0.5 * (steps / sigma.clamp(min=0.01)) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None]  # (B, 1, 2r + 1)
    padded = F.pad(image.transpose(0, 1), (BLUR_RADIUS,) * 4, mode="replicate")  # (1, B, ...): one group per image
    rows = F.conv2d(padded, kernel[:, :, :, None], groups=len(image))
    blurred = F.conv2d(rows, kernel[:, :, None, :], groups=len(image))
    return torch.where(sigma[:, :, None, None] > 0, blurred.transpose(0, 1), image)
