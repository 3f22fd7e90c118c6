"""Read images and labels from TIFF and PNG files; normalisation."""

import errno
import hashlib
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image
from scipy import ndimage
from skimage.segmentation import expand_labels, relabel_sequential

from ..errors import SegkitError
from .tiff import DAMAGE, Header, decode_tiff, find_planes

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")
CROPPABLE = 2  # pixels by which an image and its masks file may differ in height or width
SPECK = 12  # pixels; nothing smaller is a cell
OUTLIER = 8  # normalised intensities are clipped this many intensity ranges below 0 and above 1
EIGHT = np.ones((3, 3), bool)  # 8-neighbourhood
PERCENTILES = (0.5, 99.5)
MIN_SEEN = 0.1  # share of the pixels; where fewer differ from black and white, these are the picture
MAX_SLOPE = 0.12  # beside something drawn, as a share of its contrast (drawn: up to 0.08, saturated: mostly above 0.17)
UNREACHABLE = {  # by what the system says
    errno.EACCES: "may not be read: change its permissions", errno.EISDIR: "is a folder: an image file was needed",
    errno.ENOENT: "is not there: it was moved or deleted, or its disk is not connected"}
FULL_SCALE = (255, 1023, 4095, 8191, 16383, 65535)  # the largest values of common cameras and files
BT601 = np.array([0.299, 0.587, 0.114], np.float32)  # luminance of red, green and blue


def read_header(path: str | Path, *, labels: bool = False) -> Header:
    """Read page count and size (pixels) of an image file without decoding it; labels: of a masks file.

    Raises SegkitError where the file is empty, damaged, cut short or of a kind segkit does not read.
    """
    path = Path(path)
    with _damage_named(path, "read"):
        if path.stat().st_size == 0:
            raise SegkitError(f"{path.name} is empty (0 bytes): copy it again from its source")
        if path.suffix.lower() == ".png":
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                return Header(1, image.height, image.width)
        header = find_planes(path)
        if header.planar and not labels:
            decode_tiff(path, 0, image=True)  # only its pixels tell grey saved in colour from frames saved as colours
        return header


@contextmanager
def _damage_named(path: Path, action: str) -> Iterator[None]:
    """Turn every error that a decoder raises for a damaged file into a SegkitError that names the file."""
    try:
        yield
    except DAMAGE as error:
        # a decoder gives no number for damaged content, or that of a place before the file's beginning
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            why = UNREACHABLE.get(error.errno, f"cannot be read ({error.strerror}): check the disk or the connection")
        else:
            why = f"cannot be {action} ({type(error).__name__}): it is damaged or of another kind; export it again"
        raise SegkitError(f"{path.name} {why}") from None


def _read_plane(path: Path, page: int, *, image: bool = False) -> np.ndarray:
    """Decode one plane: (H, W), also where grey is saved in colour, else (H, W, 3); alpha is dropped; any dtype.

    image: see `decode_tiff`.
    """
    with _damage_named(path, "decoded"):
        if path.suffix.lower() == ".png":
            if page:
                raise SegkitError(f"{path.name} has 1 page, page {page} was asked for")
            plane = _decode_png(path, image)
        else:
            plane = decode_tiff(path, page, image=image)
    if plane.ndim == 2:
        return plane

    # samples come last: planar RGB has them first
    if plane.ndim == 3 and plane.shape[0] in (3, 4) and plane.shape[-1] not in (3, 4):
        plane = np.moveaxis(plane, 0, -1)
    if plane.ndim != 3 or plane.shape[-1] not in (2, 3, 4):
        raise SegkitError(f"{path.name} has shape {plane.shape}: an image of height x width was needed")
    colours = plane[..., :1] if plane.shape[-1] == 2 else plane[..., :3]  # without alpha
    is_grey = (colours == colours[..., :1]).all()
    return colours[..., 0] if is_grey else colours


def _decode_png(path: Path, image: bool) -> np.ndarray:
    """The pixels of a PNG; Pillow, which checks size and kind, reduces 16 bits of several channels to 8.

    image: a palette's colours; labels are its indices.
    """
    import imagecodecs  # for PNGs only: reading TIFFs without compression does without it

    with Image.open(path) as png:
        if png.format != "PNG" or (png.mode == "P" and not image):
            return np.asarray(png)
        return imagecodecs.png_decode(path.read_bytes())


def read_image(path: str | Path, page: int = 0) -> np.ndarray:
    """Read one image as raw intensities.

    Parameters
    ----------
    path : str or Path
        TIFF (8-, 16-bit or float, any common compression) or PNG.
    page : int
        The plane of a stack, from 0.

    Returns
    -------
    ndarray, float32 (H, W)
        Raw intensities, bright is high. Colour images become their luminance; alpha is dropped.

    Raises
    ------
    SegkitError
        Where the file cannot be decoded or has no such page.

    Notes
    -----
    Luminance by ITU-R BT.601.
    """
    plane = _read_plane(Path(path), page, image=True)
    if plane.ndim == 3:
        plane = plane.astype(np.float32) @ BT601  # (H, W, 3) -> (H, W)
    return np.ascontiguousarray(plane, dtype=np.float32)


def check_sizes(name: str, image: tuple[int, ...], masks: tuple[int, ...]) -> None:
    """Raise SegkitError where an image's and its masks file's sizes differ by more than 2 pixels."""
    if max(abs(a - b) for a, b in zip(image, masks, strict=True)) > CROPPABLE:
        raise SegkitError(f"{name} is {image[0]} x {image[1]} pixels, its masks file {masks[0]} x {masks[1]}: the same "
                          f"size (to {CROPPABLE} pixels) was needed; are they of the same frame and uncropped?")


def hash_pixels(image: np.ndarray) -> str:
    """A short name of an image's pixels (H, W), the same however the file stores them; "" for an image of one value.

    Images of one value, such as black ones, may occur in any position and so identify none.
    """
    finite = image[np.isfinite(image)]
    if not finite.size or finite.min() == finite.max():
        return ""
    return hashlib.sha256(f"{image.shape}".encode() + np.asarray(image, np.float32).tobytes()).hexdigest()[:16]


def read_labels(path: str | Path, page: int = 0) -> np.ndarray:
    """Read one masks file as instance labels.

    Parameters
    ----------
    path : str or Path
        TIFF or PNG with whole numbers of any type, with one colour per cell, or with a binary mask (one value beside
        0), whose connected components become the cells; cells that touch at a corner only are two.
    page : int
        The plane of a stack, from 0.

    Returns
    -------
    ndarray, int32 (H, W)
        Labels, 0 = background. Numbers larger than the count of pixels are renumbered in order.

    Raises
    ------
    SegkitError
        Where the file cannot be decoded, or its values are not whole or are negative.
    """
    path = Path(path)
    plane = _read_plane(path, page)
    if plane.ndim == 3:
        plane = _labels_from_colours(path.name, plane)

    # refuse what is no label before the cast, which would hide it
    if plane.dtype.kind not in "biu":
        if not np.isfinite(plane).all() or (plane != np.round(plane)).any():
            raise SegkitError(f"{path.name} holds values that are not whole numbers: instance labels were needed; "
                              "is it a probability map?")
        plane = plane.astype(np.int64)
    if plane.size and (plane.min() < 0 or plane.max() > np.iinfo(np.int32).max):
        raise SegkitError(f"{path.name} holds values from {plane.min()} to {plane.max()}: "
                          "labels from 0 (background) to 2147483647 were needed")
    labels = plane.astype(np.int32)

    # a binary mask has no instances yet; huge numbers would slow down what loops up to the largest label
    if labels.any() and np.all((labels == 0) | (labels == labels.max())):
        labels = _cells_of_mask(labels > 0)
    if labels.size and labels.max() > labels.size:
        labels = relabel_sequential(labels)[0].astype(np.int32)
    return np.ascontiguousarray(labels)


def _cells_of_mask(mask: np.ndarray) -> np.ndarray:
    """The connected components of a binary mask (H, W), int32; specks that touch a larger one's corner belong to it."""
    pieces = ndimage.label(mask)[0]  # pixels that share an edge
    areas = np.bincount(pieces.ravel())
    large = np.where(areas[pieces] >= SPECK, pieces, 0)
    joined = np.where(mask, expand_labels(large, 2), 0)
    rest, _ = ndimage.label(mask & (joined == 0), structure=EIGHT)
    return relabel_sequential(np.where(rest > 0, rest + len(areas), joined))[0].astype(np.int32)


def _labels_from_colours(name: str, colours: np.ndarray) -> np.ndarray:
    """One label per colour of (H, W, 3), in order of the colour's value; black is background."""
    if not np.isfinite(colours).all() or colours.min() < 0:
        raise SegkitError(f"{name} holds colours that are negative or not numbers: numbers from 0 were needed")
    pixels = pd.DataFrame(colours.reshape(-1, 3))  # (H * W, 3)
    index = pixels.groupby([0, 1, 2]).ngroup().to_numpy().reshape(colours.shape[:2])  # (H, W), sorted by colour
    has_background = (colours == 0).all(axis=-1).any()
    return index if has_background else index + 1


def blank_pixels(image: np.ndarray) -> np.ndarray:
    """Pixels (bool, H, W) that hold no picture: not finite, or drawn over it, as borders, scale bars and text are.

    Such are connected pixels of the largest value that a camera can give, or of exactly 0 where they touch the border
    or form a bar. Their edge is sharp and does not depend on what lies beside it: the pixels one further are nearer to
    the image's median, and those two further have the same mean. Optics blur the edges of what is seen in a microscope.
    """
    with np.errstate(over="ignore"):
        image = np.asarray(image).astype(np.float32)
    blank = ~np.isfinite(image)
    if blank.all():
        return blank
    largest = image[~blank].max()
    extremes = [0, largest] if largest in FULL_SCALE else [0]
    seen = ~blank & ~np.isin(image, extremes)
    usual = np.median(image[seen if seen.mean() > MIN_SEEN else ~blank])
    for value in extremes:
        equal = image == value
        if value == usual or np.count_nonzero(equal) < SPECK:
            continue
        regions, count = ndimage.label(equal, structure=EIGHT)
        areas = np.bincount(regions.ravel())
        # the pixels around each region, one and two pixels further
        near = ndimage.maximum_filter(regions, 3)
        further = np.where(near == 0, ndimage.maximum_filter(near, 3), 0)
        with np.errstate(invalid="ignore"):  # a region without a pixel around it has no mean
            mean_near, mean_further = (ndimage.mean(image, np.where(seen, ring, 0), np.arange(count + 1))
                                       for ring in (np.where(regions == 0, near, 0), further))
        contrast = abs(usual - value)
        sharp = (abs(mean_near - value) > contrast / 2) & ~(abs(mean_near - mean_further) > MAX_SLOPE * contrast)
        drawn = (areas >= SPECK) & (sharp | np.isnan(mean_near))  # without a pixel around it: inside what is blank
        drawn[0] = False
        if value == 0:  # a cell may be as dark: black is a border or a bar
            rim = np.concatenate([regions[0], regions[-1], regions[:, 0], regions[:, -1]])
            sizes = [math.prod(side.stop - side.start for side in box) for box in ndimage.find_objects(regions)]
            drawn &= np.isin(np.arange(count + 1), rim) | (areas == [0, *sizes]) | np.isnan(mean_near)
        blank |= drawn[regions]
    return blank


def _filled(image: np.ndarray, blank: np.ndarray) -> np.ndarray:
    """An image (H, W) of any dtype as float32, with the median of the other pixels in place of the blank ones."""
    filled = np.array(image, np.float32)
    if blank.any():
        filled[blank] = 0 if blank.all() else np.median(filled[~blank])
    return filled


def has_contrast(image: np.ndarray, blank: np.ndarray) -> bool:
    """Whether an image (H, W) shows more than one constant and some single pixels; blank: its `blank_pixels`.

    A camera's image has noise everywhere. Where most pixels are equal (to float32's rounding), a connected piece of
    the others must be as large as the smallest cell, SPECK pixels.
    """
    with np.errstate(over="ignore"):
        image = _filled(image, blank)
        usual = np.median(image)
        other = np.abs(image - usual) > 4 * np.spacing(np.abs(usual))
    if other.mean() > 0.5:
        return True
    # few pixels differ: noise of single pixels is no cell
    pieces = ndimage.label(other, structure=EIGHT)[0]
    return bool(np.bincount(pieces.ravel())[1:].max(initial=0) >= SPECK)


def intensity_range(image: np.ndarray, normalisation: str = "percentile") -> tuple[float, float]:
    """The intensities (low, high) of an image's pixels that normalise to 0 and 1: the 0.5 and 99.5 percentiles.

    Training crops and inference use the range of the whole frame. "minmax" is the starting recipe's (Visuna et al.
    2025, Eq. 1). Non-finite pixels are passed over; a constant image gives (value, value + 1).
    """
    finite = image[np.isfinite(image)]
    if finite.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(finite, PERCENTILES if normalisation == "percentile" else (0, 100))
    if high <= low:  # more than 99 % of the pixels are equal
        low, high = finite.min(), finite.max()
    low, high = float(low), float(high)
    return low, high if high > low else low + max(1.0, float(np.spacing(abs(low))))


def normalise(image: np.ndarray, normalisation: str = "percentile", blank: np.ndarray | None = None) -> np.ndarray:
    """Map an image (H, W) of any dtype to float32 with its intensity range at 0..1; outliers are cut off.

    blank: its `blank_pixels`, where they are known already; they have no part in the range, and become the median of
    the others.
    """
    blank = blank_pixels(image) if blank is None else blank
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        image = _filled(image, blank)
        low, high = intensity_range(image[~blank], normalisation)
        scaled = (image - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(scaled, -OUTLIER, 1 + OUTLIER)
