"""Pair the images and the masks of one position by name; what finds no other half becomes a Problem."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from .data import Frame, Problem, check_sizes, labels_stem
from .errors import SegkitError
from .images import Header, read_header
from .names import Key, name_key


def pair(images: Sequence[Path], masks: Sequence[Path], experiment: str, position: str, where: Path,
         quiet: bool, problems: list[Problem]) -> list[Frame]:
    """The position's frames, in order; what is wrong with its files is added to problems.

    where: the folder that a problem of several files is said of. quiet: that there are no masks is no problem here.
    """
    by_key, by_image = _by_key(masks, "masks file", problems), _by_key(images, "image", problems)
    numbers = Counter(key.number for key in by_key)
    image_numbers = Counter(key.number for key in by_image)
    headers: dict[Key, Header] = {}
    for key, path in by_image.items():
        try:
            headers[key] = read_header(path)
        except SegkitError as error:
            problems.append(Problem(path, str(error), 1))
    numbered = all(n == 1 and number >= 0 for number, n in image_numbers.items())
    stacked = any(header.pages > 1 for header in headers.values())
    frames: list[Frame] = []
    unpaired, cropped, used = 0, 0, set()
    for order, key in enumerate(sorted(by_image, key=lambda k: (k.number, k.text) if numbered else (0, k))):
        masks_key = key if key in by_key else next(
            (k for k in by_key if k.number == key.number >= 0
             and numbers[k.number] == image_numbers[k.number] == 1), None)
        used.add(masks_key)
        if key not in headers:
            continue
        image, header, masks_file = by_image[key], headers[key], by_key.get(masks_key) if masks_key else None
        files: list[Path | None] = [masks_file] * header.pages
        own = [k if (k := name_key(labels_stem(image, page))) in by_key and k not in by_image else None
               for page in range(1, header.pages)]  # a file for each page, as segkit writes them
        if any(own):
            used.update(own)
            files = [masks_file, *(by_key[k] if k else None for k in own)]
        unpaired += files.count(None)
        for file, pages in Counter(f for f in files if f is not None).items():
            try:
                cropped += pages * _differ(image, header._replace(pages=pages), file)
            except SegkitError as error:
                problems.append(Problem(file, str(error), pages))
                files = [None if f == file else f for f in files]
        for page, labels_file in enumerate(files):
            number = len(frames) if stacked else key.number if numbered else order
            frames.append(Frame(image, labels_file, experiment, position, number, page))
    if unpaired and not quiet:
        problems.append(Problem(where, f"{unpaired} frame(s) of {experiment} {position} have no masks file", unpaired))
    if cropped:
        problems.append(Problem(where, f"{cropped} frame(s) differ by 1-2 pixels from their masks: cropped to the "
                                       "common area"))
    if spare := [by_key[key] for key in by_key if key not in used]:
        problems.append(Problem(spare[0].parent, f"{len(spare)} masks file(s) of {experiment} {position} have no "
                                                 f"image, {spare[0].name} the first", len(spare)))
    return frames


def _by_key(files: Sequence[Path], what: str, problems: list[Problem]) -> dict[Key, Path]:
    """Files by what their names say; of two that say the same the first is used, the other a problem."""
    found: dict[Key, Path] = {}
    clashes = defaultdict(list)
    for path in files:
        key = name_key(path.stem)
        if key in found:
            clashes[key].append(path)
        else:
            found[key] = path
    problems += [Problem(path, f"a second {what} for the same frame: {found[key].name} is used, {path.name} is not; "
                               "remove one of them", int(what == "image"))
                 for key, paths in clashes.items() for path in paths]
    return found


def _differ(image: Path, header: Header, masks: Path) -> bool:
    """Whether masks are a pixel or two larger or smaller. Raises SegkitError where they are damaged or do not fit."""
    other = read_header(masks)
    check_sizes(image.name, header.size, other.size)
    if header.pages != other.pages:
        raise SegkitError(f"{image.name} has {header.pages} page(s), its masks file {other.pages}: "
                          "one page of masks a page of images was needed")
    return header.size != other.size
