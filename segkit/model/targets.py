"""From labels to the distance target."""

import numpy as np
from scipy import ndimage

PLATEAU, DEEP = 0.75, 2.5  # share of half the width nearby, and pixels, from which on the target is 1
NEARBY = 7  # pixels
GREYS = 254  # the target's distance is stored as 1 + round(254 * distance), 0 = background


def distance_target(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each cell's distance to its edge, divided by half the cell's width nearby, as far as a plateau along its middle.

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
        cell = np.pad(labels[box] == label, 1)
        distance = ndimage.distance_transform_edt(cell)[1:-1, 1:-1]  # from pixel to pixel: the edge is 0.5 nearer
        widths.append(2 * distance.max() - 1)
        nearby = ndimage.maximum_filter(distance, NEARBY)
        inside = cell[1:-1, 1:-1]
        share = (distance[inside] - 0.5) / np.minimum(PLATEAU * (nearby[inside] - 0.5), DEEP)
        target[box][inside] = 1 + np.round(GREYS * np.minimum(share, 1)).astype(np.uint8)
    return target, np.array(widths, np.float32)
