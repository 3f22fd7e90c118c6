"""Phase-contrast images by a wave model: specimen to light wave, through the microscope, to the camera."""

from dataclasses import dataclass

import numpy as np
from scipy import fft, ndimage

PAD = 32  # pixels mirrored around the specimen: a Fourier transform takes its edges for neighbours


@dataclass(frozen=True)
class Microscope:
    """A phase-contrast microscope and its camera. Lengths in pixels, intensities relative to an empty field."""

    phase: float  # radians, in the middle of a cell
    ring: float  # amplitude that the phase ring lets through
    leak: float  # sigma of the blurred copy of the wave that passes through the ring: halo and shade-off
    blur: float  # sigma of the point spread
    defocus: float = 0.0  # phase of the spatial frequency f: pi * defocus * f^2, pixels squared
    light: tuple[float, float, float] = (0.0, 0.0, 0.0)  # slope along y and x, curvature: change over half the frame
    blotches: float = 0.0  # slow changes of light, standard deviation
    dirt: float = 0.0  # slow changes of phase in the medium, standard deviation, radians
    specks: float = 0.0  # per 10,000 pixels
    noise: float = 0.0  # standard deviation
    grain: float = 0.0  # sigma of the noise's blur


def draw_microscope(rng: np.random.Generator, radius: float) -> Microscope:
    """A random microscope for cells of this half width (pixels); ranges measured on real images (FACTS.md)."""
    phase = rng.uniform(0.25, 1.0)
    ring = max(0.3, phase * np.exp(rng.uniform(np.log(0.62), np.log(2))))  # below 0.8 the middle of cells turns bright
    return Microscope(
        phase=phase, ring=ring, leak=radius * np.exp(rng.uniform(np.log(1.2), np.log(6))),
        blur=rng.uniform(0.5, 1.6) * max(0.6, radius / 5), defocus=rng.normal(0, 5) * max(1, radius / 5) ** 2,
        light=tuple(rng.uniform(-0.15, 0.15, 3)), blotches=rng.uniform(0, 0.05) * rng.integers(2),
        dirt=rng.uniform(0, 0.06) * ring * rng.integers(2), specks=rng.exponential(0.6) * rng.integers(2),
        noise=np.exp(rng.uniform(np.log(0.003), np.log(0.05))), grain=rng.uniform(0, 1) * rng.integers(2))


def smooth_noise(shape: tuple[int, int], scale: float, rng: np.random.Generator) -> np.ndarray:
    """Random hills float64 (H, W) of about `scale` pixels, mean 0, standard deviation 1."""
    coarse = rng.normal(size=[max(3, round(n / scale) + 1) for n in shape])
    hills = ndimage.zoom(coarse, [n / m for n, m in zip(shape, coarse.shape, strict=True)], mode="reflect",
                         grid_mode=True)
    return (hills - hills.mean()) / hills.std()


def field(shape: tuple[int, int], microscope: Microscope, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """What stays in place over a film: phase of dirt and specks in the medium, radians, and light; (H, W) each."""
    y, x = (np.linspace(-1, 1, n) for n in shape)
    slope_y, slope_x, curve = microscope.light
    light = 1 + slope_y * y[:, None] + slope_x * x + curve * (y[:, None] ** 2 + x ** 2 - 2 / 3)
    light *= 1 + microscope.blotches * smooth_noise(shape, min(shape) * rng.uniform(0.1, 0.5), rng)

    phase = microscope.dirt * smooth_noise(shape, rng.uniform(4, 30), rng)
    yy, xx = np.ogrid[:shape[0], :shape[1]]
    for _ in range(rng.poisson(microscope.specks * shape[0] * shape[1] / 1e4)):
        (top, left), size = rng.uniform(0, shape), rng.uniform(0.4, 0.9)  # narrower than a cell
        phase += rng.uniform(-1, 1) * np.exp(-((yy - top) ** 2 + (xx - left) ** 2) / (2 * size ** 2))
    return phase, light


def intensity(phase: np.ndarray, microscope: Microscope) -> np.ndarray:
    """The image of a phase object (H, W), radians: float64 (H, W), 1 where there is nothing.

    Notes
    -----
    Zernike's phase contrast. The wave behind the object is u = exp(i phase). A blurred copy of it, D, passes through
    the ring, which lets an amplitude of `ring` through and delays it by a quarter of a wave; S, the rest of what the
    lens collects, passes beside it. The intensity is |S - i ring D|^2.
    """
    u = fft.fft2(np.exp(1j * np.pad(phase, PAD, mode="reflect")))
    squared = fft.fftfreq(u.shape[0])[:, None] ** 2 + fft.fftfreq(u.shape[1]) ** 2
    lens = np.exp((-2 * np.pi * microscope.blur ** 2 + 1j * microscope.defocus) * np.pi * squared)
    ring = np.exp(-2 * (np.pi * microscope.leak) ** 2 * squared)
    return np.abs(fft.ifft2(u * (lens - (1 + 1j * microscope.ring) * ring))[PAD:-PAD, PAD:-PAD] / microscope.ring) ** 2


def outline_level(radius: float) -> float:
    """The share of its rise from a cell to its halo that the intensity has reached at the outline, as Omnipose has it.

    Measured on labels of Omnipose: about 0.85 for half widths of 3 to 4.5 pixels, 0.6 for those of 5 to 8.
    """
    return min(max(1.2 - 0.08 * radius, 0.65), 0.9)


def outline_shift(microscope: Microscope, radius: float) -> float:
    """How far outside a long cell of this half width its outline lies (see `outline_level`), pixels."""
    across = np.arange(-64, 65)
    thickness = np.sqrt(np.maximum(1 - (across / radius) ** 2, 0))
    profile = intensity(np.broadcast_to(microscope.phase * thickness, (PAD + 1, len(across))), microscope)[0, 64:]
    peak = int(profile[:round(2 * radius) + 4].argmax())
    lowest = int(profile[:peak + 1].argmin())
    rise = profile[lowest:peak + 1]
    level = rise[0] + outline_level(radius) * (rise[-1] - rise[0])
    found = lowest + float(np.interp(level, np.maximum.accumulate(rise), np.arange(len(rise))))
    return min(found - radius, radius / 3)


def render(thickness: np.ndarray, obstacles: np.ndarray, light: np.ndarray, microscope: Microscope,
           rng: np.random.Generator) -> np.ndarray:
    """A phase-contrast image with the camera's noise.

    Parameters
    ----------
    thickness : (H, W) float
        Of the cells; 1 in the middle of a typical one, 0 outside.
    obstacles : (H, W) float
        Phase of everything else, radians; counts where there is no cell.
    light : (H, W) float
        Illumination, about 1.
    microscope : Microscope
    rng : numpy.random.Generator
        Of the noise.

    Returns
    -------
    (H, W) float32
        Intensity, 1 in an empty field.

    Notes
    -----
    See `intensity`. Noise grows with the square root of the light, as photons do.
    """
    phase = microscope.phase * thickness + obstacles * (1 - np.minimum(thickness / 0.3, 1))
    image = light * intensity(phase, microscope)
    noise = ndimage.gaussian_filter(rng.normal(size=image.shape), microscope.grain)
    return (image + microscope.noise * np.sqrt(np.maximum(image, 0)) * noise / noise.std()).astype(np.float32)
