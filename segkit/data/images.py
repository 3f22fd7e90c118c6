"""Read images and labels from TIFF and PNG files, what TIFFs say about themselves, and normalisation."""

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
import tifffile
from PIL import Image
from scipy import ndimage
from skimage.segmentation import relabel_sequential

from ..errors import SegkitError

IMAGE_SUFFIXES = (".tif", ".tiff", ".png")
UNPACKED = 50_000  # at most so many bytes come out of one, in pictures without any cell
_ENDIAN: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, ArithmeticError,
          SyntaxError, MemoryError, AttributeError, struct.error, tifffile.TiffFileError, Image.DecompressionBombError)
logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it warns of becomes our own error
SPECK = 12  # pixels; nothing smaller is a cell
OUTLIER = 8  # ranges beyond the range that an image is normalised by
EIGHT = np.ones((3, 3), bool)  # neighbourhood
PERCENTILES = (0.5, 99.5)


class Header(NamedTuple):
    """What a file says of itself before its pixels are decoded."""

    pages: int
    height: int
    width: int
    axis: str = ""  # along which the pages lie, as the file says: T, Z, or I and Q (unknown)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


def read_header(path: str | Path) -> Header:
    """Read page count and size (pixels) of an image file without decoding it.

    Raises SegkitError where the file is empty, damaged, cut short or of a kind segkit does not read.
    """
    path = Path(path)
    png = path.suffix.lower() == ".png"
    try:
        there = path.stat().st_size
        if there == 0:
            raise SegkitError(f"{path.name} is empty (0 bytes): copy it again from its source")
        if png:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as picture:
                return Header(1, picture.height, picture.width)
        with open_tiff(path) as tif:
            series = tif.series[0]
            sizes = dict(zip(series.axes, series.shape, strict=True))
            end = max((start + size for page in tif.pages for start, size
                       in zip(page.aspage().dataoffsets, page.aspage().databytecounts, strict=False)), default=0)
            if end > there:
                raise SegkitError(f"{path.name} is cut short: {there} of {end} bytes are there; copy it again from its "
                                  "source")
            pages, axis = _stack(path, series)
            return Header(pages, sizes["Y"], sizes["X"], axis)
    except SegkitError:
        raise
    except PermissionError:
        raise SegkitError(f"{path.name} may not be read: give yourself the right to read it") from None
    except DAMAGE as error:
        raise SegkitError(f"{path.name} cannot be read as {'PNG' if png else 'TIFF'} ({type(error).__name__}): "
                          "it is damaged or of another kind; copy or export it again") from None


@contextmanager
def open_tiff(path: str | Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF, checked for what would take all memory: a circle of pages, or a size far beyond what is stored.

    Raises one of DAMAGE where the file is damaged.
    """
    with tifffile.TiffFile(path) as tif:
        page = tif.pages.first
        most = sum(page.databytecounts) * (UNPACKED if page.compression > 1 else 8)  # 8: a bit becomes a byte
        if page.nbytes > most or math.prod(page.chunked) > len(page.dataoffsets):
            raise ValueError(f"{page.shape} pixels are promised, and {sum(page.databytecounts)} bytes are stored")
        kind, file, seen, at = tif.tiff, tif.filehandle, set(), page.offset
        while 0 < at < file.size:
            if at in seen:
                raise ValueError("the chain of pages leads back into itself")
            seen.add(at)
            file.seek(at)
            tags = int.from_bytes(file.read(kind.tagnosize), _ENDIAN[kind.byteorder])
            file.seek(tags * kind.tagsize, os.SEEK_CUR)
            at = int.from_bytes(file.read(kind.offsetsize), _ENDIAN[kind.byteorder])
        yield tif


def _stack(path: Path, series: tifffile.TiffPageSeries) -> tuple[int, str]:
    """How many (H, W) planes a series holds, and along which one axis; RGB samples are not planes."""
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
    """Decode one plane as stored: (H, W) or (H, W, 3 or 4), any dtype.

    white_is_zero: obey a TIFF that stores bright as low (MINISWHITE). ImageJ marks an inverting display so and keeps
    the values, so its files are left as they are.
    """
    try:
        if path.suffix.lower() == ".png":
            with Image.open(path) as picture:
                if page:
                    raise SegkitError(f"{path.name} has 1 page, page {page} was asked for")
                return np.asarray(picture.convert("RGBA") if picture.mode == "P" else picture)
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
    except SegkitError:
        raise
    except DAMAGE as error:
        raise SegkitError(f"{path.name} cannot be decoded ({type(error).__name__}): "
                          "it is damaged; copy or export it again") from None
    plane = np.squeeze(plane)
    if plane.ndim == 3 and plane.shape[0] in (3, 4) and plane.shape[-1] not in (3, 4):
        plane = np.moveaxis(plane, 0, -1)  # planar RGB
    if plane.ndim < 2:
        header = read_header(path)
        if plane.size != header.height * header.width:
            raise SegkitError(f"{path.name} holds {plane.size} of {header.height * header.width} pixels: it is "
                              "damaged; copy or export it again")
        plane = plane.reshape(header.height, header.width)
    if plane.ndim != 2 and not (plane.ndim == 3 and plane.shape[-1] in (2, 3, 4)):
        raise SegkitError(f"{path.name} has shape {plane.shape}: a picture of height x width was needed")
    return plane


def read_image(path: str | Path, page: int = 0) -> np.ndarray:
    """Read one image as raw intensities.

    path: TIFF (8-, 16-bit or float, any common compression) or PNG; page: the plane of a stack, from 0.
    Returns float32 (H, W), bright is high; colour pictures become their luminance (ITU-R BT.601), alpha is dropped.
    Raises SegkitError where the file cannot be decoded or has no such page.
    """
    plane = _read_plane(Path(path), page, white_is_zero=True)
    if plane.ndim == 3 and plane.shape[-1] == 2:  # grey and alpha
        plane = plane[..., 0]
    if plane.ndim == 3:
        red, green, blue = (plane[..., k] for k in range(3))
        if np.array_equal(red, green) and np.array_equal(red, blue):
            plane = red
        else:
            plane = plane[..., :3].astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    return np.ascontiguousarray(plane, dtype=np.float32)


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

    Accepts whole numbers of any type, colour-coded cells, and binary masks (one value beside 0), whose
    connected components (8-neighbourhood) become the cells.
    Returns int32 (H, W), 0 = background; numbers beyond the count of pixels are numbered anew, in order.
    Raises SegkitError for values that are not whole or are negative.
    """
    path = Path(path)
    plane = _read_plane(path, page)
    if plane.ndim == 3:
        plane = _labels_from_colours(path.name, plane)
    if not np.issubdtype(plane.dtype, np.integer) and plane.dtype != bool:
        if not np.isfinite(plane).all() or (plane != np.round(plane)).any():
            raise SegkitError(f"{path.name} holds values that are not whole numbers: instance labels were needed; "
                              "is it a probability map?")
        plane = plane.astype(np.int64)
    if plane.size and (plane.min() < 0 or plane.max() > np.iinfo(np.int32).max):
        raise SegkitError(f"{path.name} holds values from {plane.min()} to {plane.max()}: "
                          "labels from 0 (background) to 2147483647 were needed")
    labels = plane.astype(np.int32)
    if labels.any() and np.all((labels == 0) | (labels == labels.max())):
        labels = ndimage.label(labels, structure=np.ones((3, 3)))[0].astype(np.int32)
    if labels.size and labels.max() > labels.size:  # what looks at every number up to the largest would take long
        labels = relabel_sequential(labels)[0].astype(np.int32)
    return np.ascontiguousarray(labels)


def _labels_from_colours(name: str, plane: np.ndarray) -> np.ndarray:
    """One label per colour, in order of the colour's value; black is background. Raises SegkitError without colours."""
    channels = plane[..., :1] if plane.shape[-1] == 2 else plane[..., :3]
    if (channels == channels[..., :1]).all():
        return channels[..., 0]  # grey saved in colour
    if not np.isfinite(channels).all() or channels.min() < 0:
        raise SegkitError(f"{name} holds colours that are negative or no numbers: one colour a cell was needed, and "
                          "black for the background")
    index = np.zeros(plane.shape[:2], np.int64)
    for k in range(channels.shape[-1]):  # by rank, so that colours of 0 to 1 and of 32 bits stay apart
        values, rank = np.unique(channels[..., k], return_inverse=True)
        index = np.unique(index * len(values) + rank.reshape(index.shape), return_inverse=True)[1].reshape(index.shape)
    return index if (channels == 0).all(axis=-1).any() else index + 1


def read_metadata(path: str | Path) -> dict[str, float]:
    """What a TIFF says of its making: PIXEL_SIZE_UM and MINUTES_PER_FRAME, those that are there and plausible.

    Read from ImageJ's and OME's metadata, else from the resolution tags. Nothing for other or damaged files.
    """
    found: dict[str, float | None] = {}
    try:
        with open_tiff(path) as tif:
            tags, imagej = tif.pages.first.tags, tif.imagej_metadata or {}
            x, y = tags["XResolution"].value if "XResolution" in tags else (0, 1)
            per_unit, unit = x / max(y, 1), tags["ResolutionUnit"].value if "ResolutionUnit" in tags else 1
            imagej_unit = str(imagej.get("unit", "")).replace("\\u00B5", "u").replace("µ", "u").replace("micron", "um")
            um = {"um": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4, "inch": 25400.0}.get(imagej_unit) if imagej else {
                2: 25400.0, 3: 1e4}.get(int(unit))
            found["PIXEL_SIZE_UM"] = um / per_unit if um and per_unit else None
            found["MINUTES_PER_FRAME"] = float(imagej["finterval"]) / 60 if "finterval" in imagej else None
            if tif.is_ome and tif.ome_metadata:
                pixels = ElementTree.fromstring(tif.ome_metadata).find(".//{*}Pixels")
                said = pixels.attrib if pixels is not None else {}
                if said.get("PhysicalSizeXUnit", "µm") in ("µm", "um") and "PhysicalSizeX" in said:
                    found["PIXEL_SIZE_UM"] = float(said["PhysicalSizeX"])
                if said.get("TimeIncrementUnit", "s") == "s" and "TimeIncrement" in said:
                    found["MINUTES_PER_FRAME"] = float(said["TimeIncrement"]) / 60
    except (*DAMAGE, ElementTree.ParseError):
        return {}
    limits = {"PIXEL_SIZE_UM": (0.005, 20), "MINUTES_PER_FRAME": (1e-3, 1e4)}  # 72 dots per inch is no pixel size
    return {name: value for name, value in found.items() if value and limits[name][0] <= value <= limits[name][1]}


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
    pieces = ndimage.label(other, structure=EIGHT)[0]
    return bool(np.bincount(pieces.ravel())[1:].max(initial=0) >= SPECK)


def intensity_range(image: np.ndarray, normalisation: str = "percentile") -> tuple[float, float]:
    """The intensities (low, high) of an image (H, W) that normalise to 0 and 1: its 0.5 and 99.5 percentiles.

    The same whole-frame range serves training crops and use. "minmax" is the starting recipe's (Visuna et al.
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
