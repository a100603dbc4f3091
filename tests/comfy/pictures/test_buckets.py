"""The sizes that training pictures are brought to."""

import random

import pytest
from pack.nodes.pictures.buckets import MAX_ASPECT_RATIO, bucket_for, kept_fraction, size_summary

KNOWN = {
    # The sizes that SDXL was trained on, for the shapes that they stand for.
    ((1024, 1024), 1024, 64): (1024, 1024),
    ((1080, 1920), 1024, 64): (768, 1344),
    ((4000, 3000), 1024, 64): (1152, 896),
    ((3000, 2000), 1024, 64): (1216, 832),
    # Small pictures keep their size, down to the step.
    ((64, 64), 512, 64): (64, 64),
    ((70, 90), 512, 8): (64, 80),
    ((32, 48), 512, 64): (32, 48),
    ((40, 200), 512, 64): (40, 128),
    ((72, 61), 1024, 8): (64, 56),
    # Nothing is bounded.
    ((4000, 3000), 0, 8): (4000, 3000),
    # Neither is a strip.
    ((500, 30000), 512, 64): (256, 1024),
}


@pytest.mark.parametrize(("size", "resolution", "step"), KNOWN)
def test_known_buckets(size, resolution, step):
    assert bucket_for(size, resolution, step) == KNOWN[size, resolution, step]


def test_what_holds_for_any_picture():
    generator = random.Random(0)
    for _ in range(3000):
        size = tuple(int(2 ** generator.uniform(4, 13)) for _ in range(2))
        resolution, step = generator.choice((0, 256, 512, 1024)), generator.choice((8, 16, 64))
        bucket = bucket_for(size, resolution, step)
        assert all(0 < side <= whole for side, whole in zip(bucket, size, strict=True))
        assert all(
            side % step == 0 or (whole < step and side == whole) or min(size) < step
            for side, whole in zip(bucket, size, strict=True)
        )
        assert max(bucket) <= MAX_ASPECT_RATIO * min(bucket)
        if resolution:
            assert bucket[0] * bucket[1] <= resolution**2
        long = max(size) / min(size)
        if min(size) >= 4 * step and long <= MAX_ASPECT_RATIO and resolution in (0, 512, 1024):
            assert kept_fraction(size, bucket) > 0.75


def test_a_bucket_is_its_own():
    generator = random.Random(1)
    for _ in range(500):
        size = tuple(int(2 ** generator.uniform(6, 12)) for _ in range(2))
        bucket = bucket_for(size, 1024, 64)
        assert bucket_for(bucket, 1024, 8) == bucket


def test_sizes_are_counted():
    assert size_summary([(64, 128), (64, 64), (64, 128)]) == "2 at 128 x 64, 1 at 64 x 64"
