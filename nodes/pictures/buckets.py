"""Choose the size to which a training picture is scaled and cropped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

MAX_ASPECT_RATIO = 4  # of a bucket's longer side to its shorter one

Size = tuple[int, int]  # height and width in pixels


def bucket_for(size: Size, resolution: int, step: int) -> Size:
    """Return the height and width to which a picture is scaled and cropped.

    Sides are multiples of ``step``, the area is at most that of a square of ``resolution``, and
    nothing is enlarged. A side below ``step`` keeps its length. The choice prefers sizes that crop
    little, and among those the ones that use much of the area.

    Args:
        size: Size of the picture.
        resolution: Side of the square that bounds the area; 0 for no bound.
        step: Step of the bucket's sides.
    """
    height, width = size
    area = min(height * width, resolution**2) if resolution else height * width
    buckets = []
    for across in range(min(step, width), width + 1, step):
        most = int(min(area / across, height, MAX_ASPECT_RATIO * across))
        unit = min(step, height)
        largest, matching = (length // unit * unit for length in (most, across * height // width))
        for down in {largest, min(largest, matching), min(largest, matching + unit)}:
            if 0 < across <= MAX_ASPECT_RATIO * down:
                buckets.append((down, across))
    if not buckets:  # only where a side is shorter than the step
        longest = MAX_ASPECT_RATIO * min(size)
        return min(height, longest), min(width, longest)

    def worth(bucket: Size) -> tuple[float, Size]:
        used = bucket[0] * bucket[1] / area
        return round(kept_fraction(size, bucket) * used**0.25, 9), bucket

    return max(buckets, key=worth)


def kept_fraction(size: Size, bucket: Size) -> float:
    """Return the fraction of a picture that is left after scaling and cropping to a bucket."""
    ratio = (size[0] * bucket[1]) / (size[1] * bucket[0])
    return min(ratio, 1 / ratio)


def size_summary(sizes: Iterable[Size]) -> str:
    """Return a text with the number of pictures of each size, the most frequent size first."""
    counts = Counter(sizes).most_common()
    return ", ".join(f"{count} at {width} x {height}" for (height, width), count in counts)
