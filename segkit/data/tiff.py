"""TIFF files: the planes that a file itself holds and their times, pixels, pixel size and frame interval."""

import logging
import math
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Iterator, Set
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import numpy as np
import tifffile
from PIL import Image

from ..errors import SegkitError

MAX_EXPANSION = 50_000  # pixel bytes per stored byte; compressed images without any cell stay below it
DAMAGE = (OSError, ValueError, KeyError, IndexError, TypeError, RuntimeError, EOFError, ArithmeticError,
          SyntaxError, MemoryError, AttributeError, struct.error, tifffile.TiffFileError, Image.DecompressionBombError)
UNITS = {  # patterns of their names, with um or minutes
    "PIXEL_SIZE_UM": {"nm|nanomet(er|re)s?": 1e-3, "um|microns?|micromet(er|re)s?": 1.0, "mm|millimet(er|re)s?": 1e3,
                      "cm|centimet(er|re)s?": 1e4, "m|met(er|re)s?": 1e6, "in|inch": 25400.0},
    "MINUTES_PER_FRAME": {"us": 1e-6 / 60, "ms|msecs?|milliseconds?": 1e-3 / 60, "s|secs?|seconds?": 1 / 60,
                          "mins?|minutes?": 1.0, "h|hrs?|hours?": 60.0, "d|days?": 1440.0}}
OME = {"PIXEL_SIZE_UM": ("PhysicalSizeX", "um"), "MINUTES_PER_FRAME": ("TimeIncrement", "s")}  # and their usual units
TAG_UNITS = {2: "in", 3: "cm"}  # of the tag ResolutionUnit
MICRO_MANAGER = {"channel": "ChannelIndex", "z": "SliceIndex", "time": "FrameIndex", "position": "PositionIndex"}
PLAUSIBLE = {"PIXEL_SIZE_UM": (0.005, 2), "MINUTES_PER_FRAME": (1e-3, 1e4)}  # 2400 dots per inch are 10.6 um


class Header(NamedTuple):
    """The planes (H, W) of an image file, in the order of their times, known before pixels are decoded."""

    pages: int  # how many planes
    height: int
    width: int
    axis: str = ""  # that the planes form, by the file's metadata: T, Z, or I and Q (unknown); "" of a single plane
    times: tuple[int, ...] = (0,)  # of each plane
    left_out: tuple[str, int] | None = None  # what of the file is in no plane, in words, and how many pages that are
    channel: str = ""  # of all planes (or their z), where the metadata tell it
    places: tuple[int, ...] = (0,)  # the page of each plane; () where raw planes follow one page
    planar: bool = False  # whether three or four planes are saved as the colours of one picture

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.height, self.width


@contextmanager
def open_tiff(path: str | Path) -> Iterator[tifffile.TiffFile]:
    """A TIFF, checked for what would take all memory: a size far beyond what is stored.

    Other files that its header names are not opened. Raises one of DAMAGE where the file is damaged.
    """
    # what tifffile logs about a damaged file becomes an error of segkit; nothing is dropped while segkit does not read
    logger, silence = logging.getLogger("tifffile"), logging.Filter("segkit")
    logger.addFilter(silence)
    try:
        with tifffile.TiffFile(path, is_ome=False, is_mmstack=False, is_ndtiff=False) as tif:
            # a damaged size would be allocated before decoding fails
            page = tif.pages.first
            stored = sum(page.databytecounts)
            expansion = MAX_EXPANSION if page.compression > 1 else 8  # 8: a bit becomes a byte
            if page.nbytes > stored * expansion or math.prod(page.chunked) > len(page.dataoffsets):
                raise ValueError(f"{page.shape} pixels in the header, {stored} bytes stored")
            yield tif
    finally:
        logger.removeFilter(silence)


def _all_pages(tif: tifffile.TiffFile) -> list[tifffile.TiffPage]:
    """Every page. Raises ValueError where an earlier one follows; tifffile looks for that in 100 pages only."""
    pages: dict[int, tifffile.TiffPage] = {}  # by their places in the file
    for page in tif.pages:
        if page.offset in pages:
            raise ValueError("the chain of pages leads back into itself")
        pages[page.offset] = page.aspage()
    return list(pages.values())


def find_planes(path: Path) -> Header:
    """The planes of a TIFF. Raises SegkitError where they are no time-lapse, or the file is cut short."""
    stat = path.stat()
    return _find_planes(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(64)
def _find_planes(path: Path, size: int, changed: int) -> Header:
    with open_tiff(path) as tif:
        # a file cut short keeps its header: compare where the pixel data should end with where the file ends
        pages = _all_pages(tif)
        end = max((offset + count for page in pages
                   for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
        if end > size:
            raise SegkitError(f"{path.name} is cut short: {size} of {end} bytes are there; copy it again")
        # most files hold one image, and nothing in them speaks of more
        first = pages[0]
        if len(pages) == 1 and first.axes in ("YX", "YXS") and not (
                tif.is_imagej or tif.is_stk or "truncated" in first.description or _ome_xml(tif)):
            return Header(1, *_size(first))
        return _planes_by_header(path.name, tif, pages) or _planes_by_series(path.name, tif, pages)


def _ome_xml(tif: tifffile.TiffFile) -> str:
    description = tif.pages.first.description
    return description if description[-10:].strip().endswith("OME>") else ""


def _planes_by_header(name: str, tif: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> Header | None:
    """The planes that an OME header, or Micro-Manager's on each page, places in this file itself; None without one."""
    try:
        xml = _ome_xml(tif)
        images = list(_ome_images(name, ElementTree.fromstring(xml))) if xml else _micro_manager_images(pages)
    except (ElementTree.ParseError, ValueError, KeyError):  # ImageJ writes invalid ones when it crops a stack
        return None
    # of several series (positions) the first is used; a header may name pages that are not there
    images = [image for image in images if any(page < len(pages) for page in image)]
    if not images:
        return None
    there = {page: place for page, place in images[0].items() if page < len(pages)}
    usual = Counter(pages[page].shape for page in there).most_common(1)[0][0]
    places = {page: place for page, place in there.items() if pages[page].shape == usual}
    axes = [axis for axis in "CZT" if len({place[axis] for place in places.values()}) > 1]
    _check_axes(name, axes, f"{len(places)} pages")
    axis = axes[0] if axes else ""
    order = sorted(places, key=lambda page: places[page][axis or "T"])
    keyframe, place = pages[order[0]], places[order[0]]
    left_out = _left_out(name, pages, set(order), len(images))
    if missing := len(images[0]) - len(there):
        left_out = f"{name}: {missing} page(s) that its header names are not in it", missing
    channel = f"channel {place['C']}" + ("" if axis == "Z" else f", z {place['Z']}")
    times = tuple(int(places[page][axis or "T"]) for page in order)
    return Header(len(order), *_size(keyframe), axis, times, left_out, channel, tuple(order), keyframe.axes[0] == "S")


def _micro_manager_images(pages: list[tifffile.TiffPage]) -> list[dict[int, dict[str, Any]]]:
    """For each position that Micro-Manager's tag on every page names: pages with their C, Z and T."""
    found: dict[Any, dict[int, dict[str, Any]]] = {}
    for number, page in enumerate(pages):
        own = page.tags.valueof("MicroManagerMetadata", default=None)
        if not isinstance(own, dict):
            return []
        newer = own.get("Axes", {})  # of its newer files
        *place, position = (newer.get(name, own.get(older, 0)) for name, older in MICRO_MANAGER.items())
        found.setdefault(position, {})[number] = dict(zip("CZT", place, strict=True))
    told = sum(len({tuple(place.values()) for place in image.values()}) for image in found.values())
    return list(found.values()) if told == len(pages) else []


def _ome_images(name: str, root: ElementTree.Element) -> Iterator[dict[int, dict[str, Any]]]:
    """For each image of an OME header: this file's own pages, each with its place along C, Z and T."""
    uuids = {(uuid.text, uuid.get("FileName")) for uuid in root.iterfind(".//{*}TiffData/{*}UUID")}
    own = {text for text, file in uuids if len(uuids) == 1 or text == root.get("UUID") or file == name}
    for pixels in root.iterfind("{*}Image/{*}Pixels"):
        # the sizes along the stack's axes, the one that changes fastest first; samples of a pixel are no channels
        channels = pixels.findall("{*}Channel")
        samples = int(channels[0].get("SamplesPerPixel", 1)) if channels else 1
        names = dict(enumerate(channel.get("Name") for channel in channels))
        order = pixels.attrib["DimensionOrder"][2:]
        shape = [int(pixels.attrib[f"Size{axis}"]) // (samples if axis == "C" else 1) for axis in order]
        found: dict[int, dict[str, Any]] = {}
        for data in pixels.iterfind("{*}TiffData"):
            uuid = data.find("{*}UUID")
            if uuid is not None and uuid.text not in own:
                continue
            at = np.ravel_multi_index([int(data.get(f"First{axis}", 0)) for axis in order], shape, order="F")
            count = int(data.get("PlaneCount", 1 if "IFD" in data.attrib else math.prod(shape) - int(at)))
            for k in range(count):
                place = np.unravel_index(int(at) + k, shape, order="F")
                along: dict[str, Any] = dict(zip(order, map(int, place), strict=True))
                along["C"] = names.get(along["C"]) or along["C"]
                found.setdefault(int(data.get("IFD", 0)) + k, along)
        yield found


def _planes_by_series(name: str, tif: tifffile.TiffFile, pages: list[tifffile.TiffPage]) -> Header:
    """The planes of the longest series that tifffile finds; pages written one by one are one series."""
    series = _full_series(tif)
    main = max(series, key=_count)
    stacks = [axis for axis, size in zip(main.axes, main.shape, strict=True)
              if axis not in "YXS" and size > 1]  # an axis of unknown kind, Q, may be there twice
    _check_axes(name, stacks, f"axes {main.axes} {main.shape}")
    count, axis = _count(main), "".join(stacks)
    written = int(tif.imagej_metadata.get("images", 1)) if tif.imagej_metadata else 1
    if count < written and main.kind == "generic":
        raise SegkitError(f"{name} is cut short: {count} of {written} images are there; copy it again", written)
    if len(main.pages) != count:
        if len(pages) > 1:
            raise SegkitError(f"{name} holds {len(pages)} pages, and its header names {count}: export it again")
        # ImageJ writes large stacks as one page followed by raw planes
        return Header(count, *_size(main.keyframe), axis, tuple(range(count)), places=())
    alike = [s for s in series if s is main or (s.kind == main.kind == "shaped" and _count(s) == _count(main) == 1
                                                and s.keyframe.hash == main.keyframe.hash)]
    used = sorted(page.index for s in alike for page in s.pages if page is not None)
    # a page of another size leaves a gap in time
    frames = [page.index for page in pages if not page.is_reduced or page.index in used]
    left_out = _left_out(name, [pages[index] for index in frames], set(used), len(series))
    times = tuple(np.searchsorted(frames, used).tolist())
    return Header(len(used), *_size(main.keyframe), axis or ("I" if len(used) > 1 else ""), times, left_out,
                  places=tuple(used), planar="S" in main.axes[:-2])


def _full_series(tif: tifffile.TiffFile) -> list[tifffile.TiffPageSeries]:
    """The series of a file, without those of thumbnails."""
    return [series for series in tif.series if not series.keyframe.is_reduced] or tif.series


def _count(series: tifffile.TiffPageSeries) -> int:
    """How many planes a series has."""
    return math.prod(size for axis, size in zip(series.axes, series.shape, strict=True) if axis not in "YXS")


def _size(page: tifffile.TiffPage) -> tuple[int, int]:
    return page.imagelength, page.imagewidth


def _left_out(name: str, pages: list[tifffile.TiffPage], used: Set[int], series: int) -> tuple[str, int] | None:
    """Which of a file's pages are in none of the planes used, in words, and how many."""
    lost = [page for page in pages if page.index not in used]
    if not lost:
        return None
    sizes = " and ".join(sorted({" x ".join(map(str, _size(page))) for page in lost}))
    which = ", ".join(str(page.index) for page in lost[:5]) + ", ..." * (len(lost) > 5)
    why = f"the file holds {series} series, and one is read" if series > 1 else "its header does not name them"
    return f"{name}: {len(lost)} page(s) ({which}, counted from 0, of {sizes} pixels) are left out: {why}", len(lost)


def _check_axes(name: str, axes: list[str], what: str) -> None:
    """Raise SegkitError unless a stack has one axis, and not that of channels."""
    if len(axes) > 1 or "C" in axes:
        several = ("several z and several times: export one z plane of every time, or a projection along z"
                   if "Z" in axes and "C" not in axes else "a stack of which segkit needs one channel with time as its "
                   "only stack axis: export the phase-contrast channel alone")
        raise SegkitError(f"{name} ({what}) holds {several}")


def decode_tiff(path: Path, plane: int, *, image: bool) -> np.ndarray:
    """One plane of a TIFF as stored: (H, W), (H, W, samples) or (samples, H, W).

    image: obey a TIFF that stores bright as low (MINISWHITE), and refuse colours that may be frames. ImageJ marks an
    inverting display as MINISWHITE and keeps the values, so its files are left as they are.
    """
    header = find_planes(path)
    if not 0 <= plane < header.pages:
        raise SegkitError(f"{path.name} has {header.pages} page(s), page {plane} was asked for")
    with open_tiff(path) as tif:
        if header.places:
            page = tif.pages[header.places[plane]].aspage()
            pixels = page.asarray()
        else:
            page = tif.pages.first
            stack = max(_full_series(tif), key=_count).asarray(out="memmap")
            pixels = np.asarray(stack.reshape(header.pages, *header.size)[plane])
        if image and page.photometric == tifffile.PHOTOMETRIC.MINISWHITE and not tif.is_imagej:
            pixels = (1 << page.bitspersample) - 1 - pixels if pixels.dtype.kind in "bu" else -pixels
    if image and header.planar and (pixels != pixels[:1]).any():
        raise SegkitError(f"{path.name} holds {len(pixels)} planes that differ, saved as the colours of one picture: "
                          "save them as a stack (tifffile: photometric='minisblack'), or one grey image", len(pixels))
    return pixels


def read_metadata(path: str | Path) -> dict[str, float]:
    """Pixel size and frame interval from TIFF tags: PIXEL_SIZE_UM and MINUTES_PER_FRAME, where plausible.

    Read from ImageJ's and OME's metadata, else from the resolution tags. Empty for other or damaged files, for units
    that are not known, and for the resolutions of printers and screens.
    """
    try:
        with open_tiff(path) as tif:
            tags, imagej = tif.pages.first.tags, tif.imagej_metadata or {}
            # ImageJ names the unit of length itself, other files by a tag
            unit = imagej.get("unit", "") if imagej else TAG_UNITS.get(tags.valueof("ResolutionUnit", default=1), "")
            pixels, units = tags.valueof("XResolution", default=(0, 1))
            told = {"PIXEL_SIZE_UM": (max(units, 1) / pixels if pixels else 0, unit),
                    "MINUTES_PER_FRAME": (imagej.get("finterval", 0), imagej.get("tunit", "s"))}
            # OME goes before the resolution tags
            node = ElementTree.fromstring(_ome_xml(tif) or "<OME/>").find(".//{*}Pixels")
            ome = node.attrib if node is not None else {}
        told |= {name: (ome[entry], ome.get(f"{entry}Unit", usual)) for name, (entry, usual) in OME.items()
                 if entry in ome}
        found = {name: _in_unit(*given, UNITS[name]) for name, given in told.items()}
    except DAMAGE:
        return {}
    return {name: value for name, value in found.items() if PLAUSIBLE[name][0] <= value <= PLAUSIBLE[name][1]}


def _in_unit(value: Any, unit: Any, factors: dict[str, float]) -> float:
    """A value in um or minutes; 0 where its unit is not known."""
    # micro is written as the micro sign, the Greek letter, and by ImageJ as an escape
    name = unicodedata.normalize("NFKC", str(unit).replace("\\u00B5", "µ")).strip(" .\0").lower().replace("μ", "u")
    return float(value) * next((factor for names, factor in factors.items() if re.fullmatch(names, name)), 0.0)
