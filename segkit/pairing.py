"""Pair the images and the masks of one position by name; what finds no other half becomes a Problem."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

from .data import Frame, Problem, check_sizes, labels_stem
from .errors import SegkitError
from .images import Header, read_header
from .names import BY_ORDER, UNTOLD, Key, frame_numbers, name_key, same_frames


def pair(images: Sequence[Path], masks: Sequence[Path], experiment: str, position: str, where: Path,
         quiet: bool, problems: list[Problem]) -> list[Frame]:
    """The position's frames, in order; what is wrong with its files is added to problems.

    where: the folder that a problem of several files is said of. quiet: that there are no masks is no problem here.
    """
    by_key, by_image = _by_key(masks, "masks file", problems), _by_key(images, "image", problems)
    headers: dict[Key, Header] = {}
    damaged: dict[Key, Problem] = {}
    for key, path in by_image.items():
        try:
            headers[key] = read_header(path)
        except SegkitError as error:
            damaged[key] = Problem(path, str(error), 1)
    starts = _first_frames(by_image, headers, where, problems)
    first = min(starts.values(), default=None)
    problems += [damaged[key] for key in damaged if key in starts]
    same_number = {image: other for image, other in same_frames(starts, by_key).items() if other not in by_image}
    frames: list[Frame] = []
    unpaired, cropped = 0, 0
    used: set[Key | None] = {*by_image.keys() - starts.keys()}  # masks of images that are left out are no problem
    for key, start in starts.items():
        masks_key = key if key in by_key else same_number.get(key)
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
        frames += [Frame(image, labels_file, experiment, position, start + page, page, first)
                   for page, labels_file in enumerate(files)]
    if unpaired and not quiet:
        problems.append(Problem(where, f"{unpaired} frame(s) of {experiment} {position} have no masks file", unpaired))
    if cropped:
        problems.append(Problem(where, f"{cropped} frame(s) differ by 1-2 pixels from their masks: cropped to the "
                                       "common area"))
    if spare := [by_key[key] for key in by_key if key not in used]:
        problems.append(Problem(spare[0].parent, f"{len(spare)} masks file(s) of {experiment} {position} have no "
                                                 f"image, {spare[0].name} the first", len(spare)))
    return frames


def _first_frames(by_image: Mapping[Key, Path], headers: Mapping[Key, Header], where: Path,
                  problems: list[Problem]) -> dict[Key, int]:
    """The frame number of each file's first page, in order; files left out, and what is assumed, become problems."""
    numbers, doubt = frame_numbers(by_image)
    strays = sorted(by_image[key].name for key in by_image.keys() - numbers.keys())
    films = [key for key, header in headers.items() if header.pages > 1]
    if len(films) == 1 and len(headers) == len(by_image) and 1 < len(by_image) <= headers[films[0]].pages:
        # a film, and single pictures beside it such as ImageJ's AVG_film: they are no times of it
        doubt, strays = "", sorted(path.name for key, path in by_image.items() if key != films[0])
        numbers = {films[0]: 0}
    if strays and all(header.pages > 1 for header in headers.values()):  # film, film_1, film_2: parts of a time-lapse
        numbers, doubt, strays = {key: k for k, key in enumerate(sorted(by_image, key=Key.natural))}, UNTOLD, []
    if strays:
        problems.append(Problem(where, f"{len(strays)} image(s) are left out, {strays[0]} the first: their names do "
                                       f"not fit the others, such as {by_image[next(iter(numbers))].name}; move them "
                                       "elsewhere, or rename them if they are frames", len(strays)))
    several = len(numbers) > 1
    for key in [key for key in numbers if key in headers and headers[key].axis == "Z"]:
        planes = f"{by_image[key].name} holds {headers[key].pages} planes along z"
        if several:
            problems.append(Problem(by_image[key], f"{planes}, and other times lie beside it: export one z plane of "
                                                   "every time (if the planes are times, save them as such: in Fiji, "
                                                   "Image > Properties)", headers[key].pages))
            del numbers[key]
        else:
            problems.append(Problem(where, f"{planes} and no time: they are read as times; if they are depths, export "
                                           "one z plane of every time"))
    pages = [headers[key].pages if key in headers else 0 for key in numbers]  # 0: unknown, the file is damaged
    if max(pages, default=0) > 1:
        gaps = any(b - a != 1 for a, b in pairwise(numbers.values()))
        if len(pages) > 1 and (doubt or gaps or min(pages) < 2):
            doubt = f"({sum(n or max(pages) for n in pages)} pages) {BY_ORDER}, and none missing between them" + (
                f"; a damaged one counts as {max(pages)}" if 0 in pages else "")
        numbers = dict(zip(numbers, accumulate((n or max(pages) for n in pages), initial=0), strict=False))
    if doubt:
        problems.append(Problem(where, f"the {len(numbers)} images of {where.name} {doubt}"))
    return numbers


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
