"""Read images and labels from TIFF and PNG files, pixel size and frame interval from TIFF tags; normalisation."""

import hashlib
import logging
import math
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NamedTuple
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from ..errors import SegkitError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")
MAX_EXPANSION = 50_000  # pixel bytes per stored byte; compressed images without any cell stay below it
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, ArithmeticError,
          SyntaxError, MemoryError, AttributeError, struct.error, tifffile.TiffFileError, Image.DecompressionBombError)
CROPPABLE = 2  # pixels by which an image and its masks file may differ in height or width
SPECK = 12  # pixels; nothing smaller is a cell
OUTLIER = 8  # normalised intensities are clipped this many intensity ranges below 0 and above 1
EIGHT = np.ones((3, 3), bool)  # 8-neighbourhood
PERCENTILES = (0.5, 99.5)
BT601 = np.array([0.299, 0.587, 0.114], np.float32)  # luminance of red, green and blue
UM_PER_UNIT = {"um": 1.0, "µm": 1.0, "\\u00B5m": 1.0, "micron": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25400.0,
               2: 25400.0, 3: 1e4}  # units as ImageJ writes them, and the codes of the tag ResolutionUnit
PLAUSIBLE = {"PIXEL_SIZE_UM": (0.005, 20), "MINUTES_PER_FRAME": (1e-3, 1e4)}  # 72 dots per inch is no pixel size


class Header(NamedTuple):
    """Page count and size of an image file, known before its pixels are decoded."""

    pages: int
    height: int
    width: int
    axis: str = ""  # of the pages, by the file's metadata: T, Z, or I and Q (unknown)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


def read_header(path: str | Path) -> Header:
    """Read page count and size (pixels) of an image file without decoding it.

    Raises SegkitError where the file is empty, damaged, cut short or of a kind segkit does not read.
    """
    path = Path(path)
    is_png = path.suffix.lower() == ".png"
    with _damage_named(path, "read as PNG" if is_png else "read as TIFF", "it is damaged or of another kind"):
        file_size = path.stat().st_size
        if file_size == 0:
            raise SegkitError(f"{path.name} is empty (0 bytes): copy it again from its source")
        if is_png:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                return Header(1, image.height, image.width)
        with open_tiff(path) as tif:
            series = tif.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            # a file cut short keeps its header: compare where the pixel data should end with where the file ends
            pages = [page.aspage() for page in tif.pages]
            end = max((offset + count for page in pages
                       for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
            if end > file_size:
                raise SegkitError(f"{path.name} is cut short: {file_size} of {end} bytes are there; copy it again from "
                                  "its source")
            planes, axis = _stack(path, series)
            return Header(planes, sizes["Y"], sizes["X"], axis)


@contextmanager
def _damage_named(path: Path, action: str, cause: str) -> Iterator[None]:
    """Turn every error that a decoder raises for a damaged file into a SegkitError that names the file."""
    try:
        yield
    except PermissionError:
        raise SegkitError(f"{path.name} may not be read: give yourself the right to read it") from None
    except DAMAGE as error:
        raise SegkitError(f"{path.name} cannot be {action} ({type(error).__name__}): {cause}; copy or export it "
                          "again") from None


@contextmanager
def open_tiff(path: str | Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF, checked for what would take all memory: a circle of pages, or a size far beyond what is stored.

    Raises one of DAMAGE where the file is damaged.
    """
    # what tifffile logs about a damaged file becomes an error of segkit; nothing is dropped while segkit does not read
    logger, silence = logging.getLogger("tifffile"), logging.Filter("segkit")
    logger.addFilter(silence)
    try:
        with tifffile.TiffFile(path) as tif:
            # a damaged size would be allocated before decoding fails
            page = tif.pages.first
            stored = sum(page.databytecounts)
            expansion = MAX_EXPANSION if page.compression > 1 else 8  # 8: a bit becomes a byte
            if page.nbytes > stored * expansion or math.prod(page.chunked) > len(page.dataoffsets):
                raise ValueError(f"{page.shape} pixels in the header, {stored} bytes stored")
            _check_page_chain(tif)
            yield tif
    finally:
        logger.removeFilter(silence)


def _check_page_chain(tif: tifffile.TiffFile) -> None:
    """Raise ValueError where a page is followed by an earlier one; tifffile looks for that in 100 pages only."""
    layout, file, offset = tif.tiff, tif.filehandle, tif.pages.first.offset
    endian: Literal["little", "big"] = "little" if tif.byteorder == "<" else "big"
    seen: set[int] = set()
    while 0 < offset < file.size:
        if offset in seen:
            raise ValueError("the chain of pages leads back into itself")
        seen.add(offset)
        file.seek(offset)
        tags = int.from_bytes(file.read(layout.tagnosize), endian)
        file.seek(tags * layout.tagsize, os.SEEK_CUR)
        offset = int.from_bytes(file.read(layout.offsetsize), endian)


def _stack(path: Path, series: tifffile.TiffPageSeries) -> tuple[int, str]:
    """Number of (H, W) planes in a series, and the one axis that they form; RGB samples are not planes."""
    stacks = [(axis, size) for axis, size in zip(series.axes, series.shape, strict=True)
              if axis not in "YXS" and size > 1]  # an axis of unknown kind, Q, may be there twice
    axes = {axis for axis, _ in stacks}
    if len(stacks) > 1 or "C" in axes:
        what = ("several z and several times: export one z plane of every time, or a projection along z"
                if "Z" in axes and "C" not in axes else "a stack of which segkit needs one channel with time as its "
                "only stack axis: export the phase-contrast channel alone")
        raise SegkitError(f"{path.name} (axes {series.axes} {series.shape}) holds {what}")
    return (stacks[0][1], stacks[0][0]) if stacks else (1, "")


def _read_plane(path: Path, page: int, *, white_is_zero: bool = False) -> np.ndarray:
    """Decode one plane: (H, W), also where grey is saved in colour, else (H, W, 3); alpha is dropped; any dtype.

    white_is_zero: see `_decode_tiff`.
    """
    with _damage_named(path, "decoded", "it is damaged"):
        if path.suffix.lower() == ".png":
            with Image.open(path) as image:
                if page:
                    raise SegkitError(f"{path.name} has 1 page, page {page} was asked for")
                plane = np.asarray(image.convert("RGBA") if image.mode == "P" else image)
        else:
            plane = _decode_tiff(path, page, white_is_zero)
        plane = np.squeeze(plane)
        if plane.ndim < 2:  # an image of one row or one column lost an axis
            height, width = read_header(path).size
            if plane.size != height * width:
                raise SegkitError(f"{path.name} holds {plane.size} of {height * width} pixels: it is damaged; copy or "
                                  "export it again")
            plane = plane.reshape(height, width)
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


def _decode_tiff(path: Path, page: int, white_is_zero: bool) -> np.ndarray:
    """One plane of a TIFF as stored.

    white_is_zero: obey a TIFF that stores bright as low (MINISWHITE). ImageJ marks an inverting display so and keeps
    the values, so its files are left as they are.
    """
    with open_tiff(path) as tif:
        series = tif.series[0]
        planes, _ = _stack(path, series)
        if not 0 <= page < planes:
            raise SegkitError(f"{path.name} has {planes} page(s), page {page} was asked for")
        single = series.pages[page] if len(series.pages) == planes else None
        if single is not None:
            plane = single.asarray()
        else:  # ImageJ writes large stacks as one page followed by raw planes
            stack = series.asarray(out="memmap")
            plane = np.asarray(stack.reshape(planes, *stack.shape[-2:])[page])
        tags = series.keyframe
        if white_is_zero and tags.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not tags.is_imagej:
            plane = (1 << tags.bitspersample) - 1 - plane if plane.dtype.kind in "bu" else -plane
    return plane


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
    plane = _read_plane(Path(path), page, white_is_zero=True)
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
        0), whose connected components (8-neighbourhood) become the cells.
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
        labels = ndimage.label(labels, structure=EIGHT)[0].astype(np.int32)
    if labels.size and labels.max() > labels.size:
        labels = relabel_sequential(labels)[0].astype(np.int32)
    return np.ascontiguousarray(labels)


def _labels_from_colours(name: str, colours: np.ndarray) -> np.ndarray:
    """One label per colour of (H, W, 3), in order of the colour's value; black is background."""
    if not np.isfinite(colours).all() or colours.min() < 0:
        raise SegkitError(f"{name} holds colours that are negative or no numbers: one colour a cell was needed, and "
                          "black for the background")
    pixels = pd.DataFrame(colours.reshape(-1, 3))  # (H * W, 3)
    index = pixels.groupby([0, 1, 2]).ngroup().to_numpy().reshape(colours.shape[:2])  # (H, W), sorted by colour
    has_background = (colours == 0).all(axis=-1).any()
    return index if has_background else index + 1


def read_metadata(path: str | Path) -> dict[str, float]:
    """Pixel size and frame interval from TIFF tags: PIXEL_SIZE_UM and MINUTES_PER_FRAME, where plausible.

    Read from ImageJ's and OME's metadata, else from the resolution tags. Empty for other or damaged files.
    """
    found: dict[str, float] = {}
    try:
        with open_tiff(path) as tif:
            tags, imagej = tif.pages.first.tags, tif.imagej_metadata or {}
            # ImageJ names the unit of length itself, other files by a tag
            unit = str(imagej.get("unit", "")) if imagej else int(tags.valueof("ResolutionUnit", default=1))
            pixels, units = tags.valueof("XResolution", default=(0, 1))
            if pixels:
                found["PIXEL_SIZE_UM"] = UM_PER_UNIT.get(unit, 0.0) * max(units, 1) / pixels
            if "finterval" in imagej:
                found["MINUTES_PER_FRAME"] = float(imagej["finterval"]) / 60
            # OME goes before the resolution tags
            if tif.is_ome and tif.ome_metadata:
                node = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
                ome = node.attrib if node is not None else {}
                if ome.get("PhysicalSizeXUnit", "µm") in ("µm", "um") and "PhysicalSizeX" in ome:
                    found["PIXEL_SIZE_UM"] = float(ome["PhysicalSizeX"])
                if ome.get("TimeIncrementUnit", "s") == "s" and "TimeIncrement" in ome:
                    found["MINUTES_PER_FRAME"] = float(ome["TimeIncrement"]) / 60
    except (*DAMAGE, ElementTree.ParseError):
        return {}
    return {name: value for name, value in found.items() if PLAUSIBLE[name][0] <= value <= PLAUSIBLE[name][1]}


def fill_gaps(image: np.ndarray) -> np.ndarray:
    """An image (H, W), float32, with the median of its finite pixels in place of the others (NaN, infinite)."""
    finite = np.isfinite(image)
    if finite.all():
        return image
    return np.where(finite, image, np.median(image[finite]) if finite.any() else 0).astype(np.float32)


def has_contrast(image: np.ndarray) -> bool:
    """Whether an image (H, W) shows more than one constant and some single pixels.

    A camera's image has noise everywhere. Where most pixels are equal (to float32's rounding), a connected piece of
    the others must be as large as the smallest cell, SPECK pixels.
    """
    with np.errstate(over="ignore"):
        image = fill_gaps(np.asarray(image).astype(np.float32))
        usual = np.median(image)
        other = np.abs(image - usual) > 4 * np.spacing(np.abs(usual))
    if other.mean() > 0.5:
        return True
    # few pixels differ: noise of single pixels is no cell
    pieces = ndimage.label(other, structure=EIGHT)[0]
    return bool(np.bincount(pieces.ravel())[1:].max(initial=0) >= SPECK)


def intensity_range(image: np.ndarray, normalisation: str = "percentile") -> tuple[float, float]:
    """The intensities (low, high) of an image (H, W) that normalise to 0 and 1: its 0.5 and 99.5 percentiles.

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


def normalise(image: np.ndarray, normalisation: str = "percentile") -> np.ndarray:
    """Map an image (H, W) of any dtype to float32 with its intensity range at 0..1; outliers are cut off."""
    with np.errstate(over="ignore"):  # beyond float32 is infinite
        image = np.asarray(image).astype(np.float32)
        low, high = intensity_range(image, normalisation)
        scaled = (fill_gaps(image) - np.float32(low)) * np.float32(1 / (high - low))
    return np.clip(scaled, -OUTLIER, 1 + OUTLIER)
