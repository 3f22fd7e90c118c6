"""From labels to the distance target."""

import numpy as np
from scipy import ndimage

PLATEAU, DEEP = 0.75, 2.5  # the target is 1 from this share of half the width nearby, or from so many pixels inside
NEARBY = 7  # pixels
GREYS = 254  # the target's distance is stored as 1 + round(254 * distance), 0 = background


def distance_target(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each cell's distance to its edge, divided by half the cell's width nearby, with a plateau along its middle.

    A narrow part, such as a stalk, is as high as the rest, and the steps from pixel to pixel hardly show: where the
    target falls between two peaks, there is a border (figures in benchmarks/README.md).
    labels: int (H, W). Returns the target as uint8 (H, W), 0 = background, 1..255 = inside, 255 along the middle;
    and the cells' widths (n,), float32, pixels (twice the largest distance, less the half pixels at the edges).
    """
    target = np.zeros(labels.shape, np.uint8)
    widths = []
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        # zero padding: the image's border counts as an edge of the cell
        cell = np.pad(labels[box] == label, 1)
        distance = ndimage.distance_transform_edt(cell)[1:-1, 1:-1]  # to a pixel outside: the edge is 0.5 nearer
        widths.append(2 * distance.max() - 1)
        # relative to the width nearby, so that narrow parts are as high as wide ones
        nearby = ndimage.maximum_filter(distance, NEARBY)
        inside = cell[1:-1, 1:-1]
        plateau = np.minimum(PLATEAU * (nearby[inside] - 0.5), DEEP)
        share = np.minimum((distance[inside] - 0.5) / plateau, 1)
        target[box][inside] = 1 + np.round(GREYS * share).astype(np.uint8)
    return target, np.array(widths, np.float32)
