"""Inputs that Train Style from Pairs refuses."""

import skimage.data
import torch
from pack.training import TrainingSettings
from pair_inputs import picture
from tiny import tiny
from torch import Tensor


def spoilt(value: float) -> Tensor:
    image = picture()
    image[0, 3, 4, 1] = value
    return image


def unknown_model():
    model = tiny("sd3", fresh=True)
    model.model.model_config = type("Chroma", (), {})()
    return model


REFUSED = {
    "more before than after": (
        {"before": [picture(), torch.cat([picture(), picture()])]},
        "same number of pictures, got 3 before and 1 after; give every picture its partner",
    ),
    "empty prompt": ({"content_prompt": " \n"}, "content_prompt must describe .* empty text"),
    "one empty prompt of two": (
        {"before": [picture()] * 2, "after": [picture()] * 2, "content_prompt": ["a ball", ""]},
        "content_prompt must describe .* empty text",
    ),
    "three prompts for one pair": (
        {"content_prompt": ["a", "b", "c"]},
        "one text or one per pair, got 3 for 1 pair;",
    ),
    "no style words": ({"style_words": "  "}, "style_words must name the style, got an empty text"),
    "two style words": (
        {"style_words": ["in ink", "in oil"]},
        "style_words must be a single value, got a list of 2",
    ),
    "no style step": (
        {"style_start": 1.0},
        "leave at least one step for the style, got 1 of 3 steps; lower style_start",
    ),
    "no style step after rounding": ({"steps": 1, "style_start": 0.6}, "got 0.6 of 1 steps"),
    "rank too large": (
        {"rank": 100},
        r"got 2 x rank 100 for width 128 of diffusion_model\.\S+; set rank to 64 or less",
    ),
    "unsupported class": ({"model": unknown_model}, r"must be one of SD1\.5.*Chroma"),
    "path in the name": ({"run_name": "../other"}, "run_name must be a plain name"),
    "drive in the name": ({"run_name": "C:\\style"}, "run_name must be a plain name"),
    "no name": ({"run_name": ""}, "run_name must not be empty"),
    "NaN": ({"before": spoilt(float("nan"))}, "got NaN or infinity in before 1"),
    "infinity": ({"after": spoilt(float("inf"))}, "got NaN or infinity in after 1"),
    "one pixel": (
        {"before": picture(1, 1)},
        "at least 16 pixels on each side, got 1 x 1 for before 1",
    ),
    "too narrow": ({"after": picture(400, 15)}, "got 15 x 400 for after 1"),
    "five channels": ({"before": picture(channels=5)}, "got 5 channels for before 1"),
    "empty batch": ({"before": picture()[:0]}, "got 0 before and 1 after"),
}


def photograph(name: str, kind: str = "RGB") -> Tensor:
    """Return an IMAGE of a photograph that scikit-image carries, as a loader node may give it."""
    pixels = torch.from_numpy(getattr(skimage.data, name)().copy()).float() / 255
    image = (pixels if pixels.ndim == 3 else pixels[..., None])[None]
    grey = image.mean(-1, keepdim=True)
    fading = torch.linspace(0, 1, image.shape[2]).expand(*image.shape[:3])[..., None]
    return {
        "RGB": image,
        "grey": grey,
        "alpha": torch.cat([image.expand(-1, -1, -1, 3), fading], -1),
        "grey and alpha": torch.cat([grey, fading], -1),
        "odd": image[:, 1:-2, 3:-4],
        "one pixel": image[:, :1, :1],
        "one row": image[:, :1],
        "NaN": image.index_fill(2, torch.tensor([7]), float("nan")),
    }[kind]


SMALL = TrainingSettings(resolution=32)
