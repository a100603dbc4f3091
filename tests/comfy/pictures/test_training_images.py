"""The loader of training pictures: what it takes, what it says, and what it refuses by name."""

import io
import random
from pathlib import Path

import folder_paths
import numpy as np
import pytest
import torch
from pack.nodes.pictures.folder import natural_sort_key
from PIL import Image
from training_images_case import BAD_PICTURES
from training_pictures import load, two_colour_picture


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    """A folder ``set`` under ComfyUI's input."""
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path / "input"))
    place = tmp_path / "input" / "set"
    place.mkdir(parents=True)
    return place


def lines(name: str = "set", **options) -> list[str]:
    return load(name, **options)[3].split("\n")


def test_pictures_captions_and_masks_come_together(folder):
    two_colour_picture().save(folder / "a.png")
    (folder / "a.txt").write_text(" a red corner\n", encoding="utf-8")
    two_colour_picture(64, 64).save(folder / "b.jpg", quality=95)
    Image.new("L", (64, 64), 0).save(folder / "b.mask.png")
    half = Image.new("L", (64, 64), 0)
    half.paste(255, (0, 0, 32, 64))
    half.save(folder / "b.mask.png")
    images, captions, masks, report = load()
    assert [tuple(image.shape) for image in images] == [(1, 32, 48, 3), (1, 64, 64, 3)]
    assert captions == ["a red corner", "a thing"]
    assert [tuple(mask.shape) for mask in masks] == [(1, 32, 48), (1, 64, 64)]
    assert masks[0].min() == 1
    assert masks[1][0, 0].tolist() == [1.0] * 32 + [0.0] * 32
    torch.testing.assert_close(images[0][0, 0, 0] * 255, torch.tensor([220.0, 20.0, 20.0]))
    assert report.split("\n") == [
        "2 pictures from set: 1 at 48 x 32, 1 at 64 x 64",
        "1 captions from text files, 1 by default; 1 masks",
        "b.txt is missing: b.jpg gets the default caption",
    ]


def test_the_order_is_the_one_that_people_expect(folder):
    for name in ("10.png", "9.PNG", "b2.png", "B10.png", "a.png", "b1.jpeg"):
        two_colour_picture().save(folder / name)
        (folder / name).with_suffix(".txt").write_text(name)
    assert load()[1] == ["9.PNG", "10.png", "a.png", "b1.jpeg", "b2.png", "B10.png"]
    names = ["", "é", "²", "1", "a1b", "a01b", "\u0661", "."]
    assert sorted(names, key=natural_sort_key)  # no two kinds are compared


def test_exif_orientation_is_turned_for_picture_and_mask(folder):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the first row is the right side
    two_colour_picture(48, 32).save(folder / "a.jpg", exif=exif, quality=95)
    Image.new("L", (32, 48), 255).save(folder / "a.mask.png")
    (image,) = load()[0]
    assert image.shape == (1, 48, 32, 3)
    assert image[0, 4, 28, 0] > 0.7  # the red corner is at the right
    assert image[0, 4, 4, 0] < 0.3


def test_transparency_becomes_a_mask_on_white(folder):
    clear = two_colour_picture(mode="RGBA")
    clear.putalpha(Image.new("L", clear.size, 255))
    alpha = np.zeros((32, 48), np.uint8)
    alpha[:, 24:] = 255
    clear.putalpha(Image.fromarray(alpha))
    clear.save(folder / "a.png")
    two_colour_picture().quantize(4).save(folder / "b.png", transparency=0)
    opaque = two_colour_picture(mode="RGBA")
    opaque.save(folder / "c.png")
    images, _, masks, report = load()
    assert masks[0][0, 0].tolist() == [0.0] * 24 + [1.0] * 24
    assert (images[0][0, :, :24] == 1).all()
    assert 0 < masks[1].mean() < 1
    assert masks[2].min() == 1
    assert "; 2 masks" in report


def test_a_mask_picture_counts_more_than_transparency(folder):
    clear = two_colour_picture(mode="RGBA")
    clear.putalpha(Image.new("L", clear.size, 7))
    clear.save(folder / "a.png")
    Image.new("L", (48, 32), 255).save(folder / "a.Mask.PNG")
    assert load()[2][0].min() == 1


def test_large_pictures_are_brought_into_buckets(folder):
    two_colour_picture(1920, 1080).save(folder / "a.jpg")
    two_colour_picture(1080, 1920).save(folder / "b.jpg")
    two_colour_picture(1000, 1000).save(folder / "c.jpg")
    two_colour_picture(48, 32).save(folder / "d.png")
    two_colour_picture(2000, 100).save(folder / "e.jpg")
    images, _, masks, report = load(resolution=512, bucket_step=64)
    sizes = [tuple(image.shape[1:3]) for image in images]
    assert sizes[:4] == [(384, 640), (640, 384), (512, 512), (32, 48)]
    assert all(h * w <= 512 * 512 for h, w in sizes)
    assert [tuple(mask.shape[1:]) for mask in masks] == sizes
    assert images[0][0, 100, 100, 0] > 0.7  # red
    assert images[0][0, 300, 500, 2] > 0.7  # blue
    assert "e.jpg (2000 x 100) is cut to 20% of itself; crop it yourself" in report
    assert "a.jpg" not in report.replace("a.txt is missing: a.jpg gets", "")


def test_nothing_is_resized_without_a_resolution(folder):
    two_colour_picture(101, 67).save(folder / "a.png")
    assert load()[0][0].shape == (1, 67, 101, 3)


CAPTIONS = {
    "utf-8": ("eine schöne Blume".encode(), "eine schöne Blume", None),
    "utf-8 with BOM": ("﻿ÉTÉ".encode(), "ÉTÉ", None),
    "utf-16": ("eine Blüte".encode("utf-16"), "eine Blüte", "is in UTF-16 and was read as such"),
    "utf-16 big endian": (
        b"\xfe\xff" + "Blüte".encode("utf-16-be"),
        "Blüte",
        "is in UTF-16 and was read as such",
    ),
    "latin-1": (
        "eine Blüte".encode("latin-1"),
        "eine Blüte",
        "is not in UTF-8 and was read as Windows-1252; save it as UTF-8",
    ),
    "several lines": (b"a ball\r\non sand\r\n", "a ball\r\non sand", None),
    "empty": (b" \n", "a thing", "is empty: a.png gets the default caption"),
}


@pytest.mark.parametrize("case", CAPTIONS)
def test_captions_of_any_encoding_are_read_and_said(case, folder):
    raw, expected, problem = CAPTIONS[case]
    two_colour_picture().save(folder / "a.png")
    (folder / "a.txt").write_bytes(raw)
    _, (caption,), _, report = load()
    assert caption == expected
    assert report.split("\n")[2:] == ([f"a.txt {problem}"] if problem else [])


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ("Blüte".encode("utf-16-le"), "a caption must be a text file in UTF-8.*a.txt"),
        (b"\xff\xfe\x00", "a caption must be a text file in UTF-8.*a.txt"),
        (b"x" * 70_000, "at most 64 KiB, got 68 KiB in a.txt; shorten it"),
    ],
)
def test_what_is_no_caption_is_refused(raw, message, folder):
    two_colour_picture().save(folder / "a.png")
    (folder / "a.txt").write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        load()


def test_leftovers_are_reported(folder):
    two_colour_picture().save(folder / "a.png")
    two_colour_picture().save(folder / "b.mask.png")
    (folder / "c.txt").write_text("a cup")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_bytes(b"")
    found = lines(caption="")
    assert found == [
        "1 pictures from set: 1 at 48 x 32",
        "0 captions from text files, 1 by default; 0 masks",
        "b.mask.png belongs to no picture",
        "c.txt belongs to no picture",
        "a.txt is missing: a.png gets no caption",
    ]


def test_sixteen_bits_are_kept_and_said(folder):
    ramp = np.linspace(0, 65535, 48 * 32).astype(np.uint16).reshape(32, 48)
    Image.fromarray(ramp).save(folder / "a.png")
    (image,), _, _, report = load()
    expected = torch.from_numpy(ramp.astype(np.float32) / 65535)
    torch.testing.assert_close(image[0], expected[..., None].expand(-1, -1, 3))
    assert "a.png has 16 bits and was read as grey" in report


def test_cmyk_is_turned_into_rgb_and_said(folder):
    two_colour_picture(mode="CMYK").save(folder / "a.jpg", quality=95)
    (image,), _, _, report = load()
    assert image.shape == (1, 32, 48, 3)
    assert image[0, 4, 4, 0] > 0.7 > 0.3 > image[0, 4, 4, 2]
    assert "a.jpg is in CMYK and was turned into RGB without its profile" in report


@pytest.mark.parametrize("mode", ["L", "1", "P", "LA", "YCbCr"])
def test_other_modes_become_three_channels(mode, folder):
    two_colour_picture(mode=mode).save(folder / ("a.jpg" if mode == "YCbCr" else "a.png"))
    assert load()[0][0].shape == (1, 32, 48, 3)


@pytest.mark.parametrize("name", BAD_PICTURES)
def test_a_bad_picture_is_refused_by_name(name, folder):
    make, message = BAD_PICTURES[name]
    two_colour_picture().save(folder / "a.png")
    make(folder / name)
    with pytest.raises(ValueError, match=message) as caught:
        load()
    text = str(caught.value)
    assert name in text
    assert "\n" not in text
    assert len(text) < 300


def test_a_picture_of_30_000_pixels_length_is_taken_and_its_crop_said(folder):
    two_colour_picture(30_000, 300).save(folder / "a.png")
    (image,), _, _, report = load(resolution=512, bucket_step=64)
    assert max(image.shape[1:3]) <= 4 * min(image.shape[1:3])
    assert "a.png (30000 x 300) is cut to 4% of itself" in report


@pytest.mark.parametrize("seed", range(3))
def test_damaged_bytes_never_end_in_anything_but_a_sentence(seed, folder):
    generator = random.Random(seed)
    whole = {}
    for ending, options in (("png", {}), ("jpg", {}), ("webp", {}), ("gif", {}), ("tiff", {})):
        file = io.BytesIO()
        kind = {"jpg": "JPEG"}.get(ending, ending.upper())
        two_colour_picture(90, 70).save(file, kind, **options)
        whole[ending] = file.getvalue()
    for _ in range(100):
        ending = generator.choice(list(whole))
        data = bytearray(whole[ending])
        for _ in range(generator.randint(1, 12)):
            data[generator.randrange(len(data))] = generator.randrange(256)
        if generator.random() < 0.3:
            del data[generator.randrange(1, len(data)) :]
        place = folder / f"a.{ending}"
        place.write_bytes(data)
        try:
            images = load()[0]
        except ValueError as error:
            refused = str(error)
        else:
            refused = f"{place.name} is taken"
            assert images[0].shape[-1] == 3
            assert torch.isfinite(images[0]).all()
        assert place.name in refused
        assert "\n" not in refused
        place.unlink()


def test_masks_that_do_not_fit_are_refused_by_name(folder):
    two_colour_picture().save(folder / "a.png")
    Image.new("L", (47, 32), 255).save(folder / "a.mask.png")
    with pytest.raises(ValueError, match=r"got 47 x 32 in a.mask.png for a.png of 48 x 32"):
        load()
    Image.new("L", (48, 32), 0).save(folder / "a.mask.png")
    with pytest.raises(
        ValueError, match=r"black everywhere in a\.mask\.png; paint it or remove it"
    ):
        load()
    (folder / "a.mask.png").unlink()
    clear = two_colour_picture(mode="RGBA")
    clear.putalpha(0)
    clear.save(folder / "a.png")
    with pytest.raises(ValueError, match=r"black everywhere in a\.png"):
        load()
