"""The size that a training picture is brought to: its own shape, a bounded area, even sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

WIDEST = 4
"""A bucket is at most this many times as long as it is high, or the reverse."""

Size = tuple[int, int]
"""Height and width in pixels."""


def bucket_for(size: Size, resolution: int, step: int) -> Size:
    """Return the height and width that a picture is scaled and cut to.

    Sides are multiples of ``step``, the area is at most that of a square of ``resolution``, and
    nothing is enlarged. A side below ``step`` stays as it is. Little is cut away above all, then
    much of the area is used.

    Args:
        size: Of the picture.
        resolution: Side of a square; 0 bounds nothing.
        step: Of the bucket's sides.
    """
    height, width = size
    area = min(height * width, resolution**2) if resolution else height * width
    buckets = []
    for across in range(min(step, width), width + 1, step):
        most = int(min(area / across, height, WIDEST * across))
        unit = min(step, height)
        largest, matching = (length // unit * unit for length in (most, across * height // width))
        for down in {largest, min(largest, matching), min(largest, matching + unit)}:
            if 0 < across <= WIDEST * down:
                buckets.append((down, across))
    if not buckets:  # only where a side is shorter than the step
        longest = WIDEST * min(size)
        return min(height, longest), min(width, longest)

    def worth(bucket: Size) -> tuple[float, Size]:
        used = bucket[0] * bucket[1] / area
        return round(share_kept(size, bucket) * used**0.25, 9), bucket

    return max(buckets, key=worth)


def share_kept(size: Size, bucket: Size) -> float:
    """Return the share of a picture that is left when it is scaled and cut to a bucket."""
    ratio = (size[0] * bucket[1]) / (size[1] * bucket[0])
    return min(ratio, 1 / ratio)


def counted(sizes: Iterable[Size]) -> str:
    """Return how many pictures have which size, the most frequent first."""
    counts = Counter(sizes).most_common()
    return ", ".join(f"{count} at {width} x {height}" for (height, width), count in counts)
