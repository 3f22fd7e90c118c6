"""A dataset for every fault that users' folders have had. `python -m tests.faults FOLDER` writes them all, to look at.

Each fault changes a sound position of three frames (REF, Pos101) and says what must be left of its pairs, and which
words a Problem must hold (None: the oddity is handled and costs nothing, so there is nothing to report).
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tifffile
from PIL import Image

from tests.helpers import squares, write

LABELS = squares((4, 4), (20, 24))
IMAGE = np.where(LABELS > 0, 60, 160).astype(np.uint8)


class Fault(NamedTuple):
    spoil: Callable[[Path, Path], object]  # (image folder, masks folder)
    pairs: int  # of three
    words: str | None


def image_file(raw: Path, k: int = 1) -> Path:
    return raw / f"img_{k:09d}.tiff"


def masks_file(masks: Path, k: int = 1) -> Path:
    return masks / f"MASK_img_{k:09d}.tif"


def rename_all(folder: Path, name: Callable[[Path], str]) -> None:
    for path in sorted(folder.glob("*.tif*")):
        path.rename(path.with_name(name(path)))


def link(raw: Path, masks: Path) -> None:
    moved = raw.parent.parent.parent / "elsewhere.tiff"
    image_file(raw).rename(moved)
    image_file(raw).symlink_to(moved)


def stack(raw: Path, masks: Path, pages: int = 3) -> None:
    for path in (*raw.glob("*.tiff"), *masks.glob("*.tif")):
        path.unlink()
    write(raw / "lapse.tif", np.stack([IMAGE] * 3), photometric="minisblack")
    write(masks / "MASK_lapse.tif", np.stack([LABELS.astype(np.uint8)] * pages), photometric="minisblack")


def to_png(raw: Path, masks: Path) -> None:
    for k in range(3):
        image_file(raw, k).unlink()
        Image.fromarray(IMAGE).save(raw / f"img_{k:09d}.png")


def move_up(raw: Path, masks: Path) -> None:
    for folder in (raw, masks):
        for path in folder.glob("*.tif*"):
            path.rename(folder.parent / path.name)
        folder.rmdir()


def nest(raw: Path, masks: Path) -> None:
    outer = raw.parent.parent
    (outer / outer.name).mkdir()
    raw.parent.rename(outer / outer.name / raw.parent.name)


def put_image(array: np.ndarray, **options: object) -> Callable[[Path, Path], object]:
    return lambda raw, masks: write(image_file(raw), array, **options)


def put_masks(array: np.ndarray, **options: object) -> Callable[[Path, Path], object]:
    return lambda raw, masks: write(masks_file(masks), array, **options)


COLOURS = np.array([[0, 0, 0], [200, 0, 0], [0, 200, 0]], np.uint8)
FAULTS: dict[str, Fault] = {
    "empty image": Fault(lambda r, m: image_file(r).write_bytes(b""), 2, "0 bytes"),
    "empty masks": Fault(lambda r, m: masks_file(m).write_bytes(b""), 2, "0 bytes"),
    "text as image": Fault(lambda r, m: image_file(r).write_text("hello"), 2, "cannot be read"),
    "text as masks": Fault(lambda r, m: masks_file(m).write_text("hello"), 2, "cannot be read"),
    "image cut short": Fault(lambda r, m: image_file(r).write_bytes(image_file(r).read_bytes()[:-100]), 2, "cut short"),
    "masks cut short": Fault(lambda r, m: masks_file(m).write_bytes(masks_file(m).read_bytes()[:-100]), 2, "cut short"),
    "image header only": Fault(lambda r, m: image_file(r).write_bytes(b"II*\0"), 2, "cannot be read"),
    "image missing": Fault(lambda r, m: image_file(r).unlink(), 2, "have no image"),
    "masks missing": Fault(lambda r, m: masks_file(m).unlink(), 2, "have no masks file"),
    "all masks missing": Fault(lambda r, m: [masks_file(m, k).unlink() for k in range(3)], 0, "have no masks file"),
    "masks folder missing": Fault(lambda r, m: shutil.rmtree(m.parent), 0, "have no masks file"),
    "masks 3 pixels smaller": Fault(put_masks(LABELS[:-3].astype(np.uint8)), 2, "the same size"),
    "masks 2 pixels smaller": Fault(put_masks(LABELS[:-2].astype(np.uint8)), 3, "cropped to the common area"),
    "masks 1 pixel wider": Fault(put_masks(np.pad(LABELS, ((0, 0), (0, 1))).astype(np.uint8)), 3, "cropped"),
    "image turned": Fault(put_image(IMAGE.T.copy()), 2, "the same size"),
    "masks are a probability": Fault(put_masks(np.full(LABELS.shape, 0.5, np.float32)), 3, "not whole numbers"),
    "masks negative": Fault(put_masks(np.full(LABELS.shape, -1, np.int16)), 3, "labels from 0"),
    "masks float with whole numbers": Fault(put_masks(LABELS.astype(np.float32)), 3, None),
    "masks 32-bit": Fault(put_masks(LABELS.astype(np.uint32)), 3, None),
    "masks 0 and 255": Fault(put_masks((LABELS > 0).astype(np.uint8) * 255), 3, None),
    "masks in colour": Fault(put_masks(COLOURS[LABELS], photometric="rgb"), 3, None),
    "image in colour": Fault(put_image(np.stack([IMAGE] * 3, -1), photometric="rgb"), 3, None),
    "image 16-bit": Fault(put_image(IMAGE.astype(np.uint16) * 200), 3, None),
    "image float": Fault(put_image((IMAGE / 255).astype(np.float32)), 3, None),
    "image with NaN": Fault(put_image(np.where(LABELS > 0, np.nan, 1).astype(np.float32)), 3, None),
    "image LZW": Fault(put_image(IMAGE, compression="lzw"), 3, None),
    "image zstd": Fault(put_image(IMAGE, compression="zstd"), 3, None),
    "image BigTIFF": Fault(put_image(IMAGE, bigtiff=True), 3, None),
    "images as PNG": Fault(to_png, 3, None),
    "multi-page time-lapse": Fault(stack, 3, None),
    "multi-page with fewer masks": Fault(lambda r, m: stack(r, m, 2), 0, "its masks file 2"),
    "channels in one file": Fault(put_image(np.stack([IMAGE] * 4).reshape(2, 2, *IMAGE.shape), imagej=True,
                                            metadata={"axes": "TCYX"}), 2, "export the phase-contrast channel"),
    "upper-case suffix": Fault(lambda r, m: rename_all(r, lambda p: p.stem.upper() + ".TIF"), 3, None),
    "other numbers of digits": Fault(lambda r, m: rename_all(r, lambda p: f"img_{int(p.stem[4:])}.tif"), 3, None),
    "another word in the name": Fault(lambda r, m: rename_all(r, lambda p: p.name.replace("img", "phase")), 3, None),
    "omnipose naming": Fault(lambda r, m: rename_all(m, lambda p: p.stem[5:] + "_cp_masks.tif"), 3, None),
    "same frame twice": Fault(lambda r, m: shutil.copy(image_file(r), r / "img_1.tif"), 3, "a second image"),
    "same masks twice": Fault(lambda r, m: shutil.copy(masks_file(m), m / "MASK_img_1.tif"), 3, "a second masks file"),
    "directly in the position": Fault(move_up, 3, None),
    "folder of another name": Fault(lambda r, m: r.rename(r.with_name("phase contrast")), 0, "expected a folder named"),
    "second folder of the same name": Fault(nest, 0, "is no PosXXX folder"),
    "position without images": Fault(lambda r, m: (r.parent.parent / "Pos105").mkdir(), 3, "no image in Pos105"),
    "images outside a position": Fault(lambda r, m: shutil.copy(image_file(r), r.parent.parent / "x_7.tif"), 3,
                                       "outside any PosXXX"),
    "system files": Fault(lambda r, m: [(r / n).write_bytes(b"x") for n in ("._img_000000001.tiff", ".DS_Store",
                                                                          "Thumbs.db")], 3, None),
    "symbolic link": Fault(link, 3, None),
    "broken symbolic link": Fault(lambda r, m: (image_file(r).unlink(), image_file(r).symlink_to(r / "gone")), 2,
                                  "have no image"),
    "output of omnipose among the images": Fault(lambda r, m: shutil.copy(image_file(r), r / "img_000000001_flows.tif"),
                                                 3, None),
    "damaged inside, sound header": Fault(lambda r, m: damage(image_file(r)), 3, "cannot be decoded"),
}


def damage(path: Path) -> None:
    """Compressed pixels overwritten: the header is sound, decoding fails."""
    tifffile.imwrite(path, np.random.default_rng(0).integers(0, 255, IMAGE.shape, np.uint8), compression="zlib")
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 200:middle + 200] = bytes(400)
    path.write_bytes(content)


def make(root: Path, name: str) -> Path:
    """A dataset with one fault, in a folder of the fault's name, with spaces and beyond ASCII."""
    folder = root / f"{name} µ"
    for position in ("Pos101", "Pos109"):
        for k in range(3):
            raw, masks = folder / "REF_raw_data" / position / "aphase", folder / "REF_masks" / position
            write(image_file(raw, k), IMAGE)
            write(masks_file(masks / "PreprocessedPhaseMasks", k), LABELS.astype(np.uint16))
    FAULTS[name].spoil(folder / "REF_raw_data/Pos101/aphase", folder / "REF_masks/Pos101/PreprocessedPhaseMasks")
    return folder


if __name__ == "__main__":
    for fault in FAULTS:
        print(make(Path(sys.argv[1]), fault))
