"""Bad pictures, captions, masks and datasets: one plain sentence, nothing trained."""

from pathlib import Path

import folder_paths
import pytest
import torch
from comfy.sd import VAE
from pack.training import TrainingSettings
from pair_inputs import picture, progress
from plain_inputs import queue
from tiny import tiny_vae


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def spoilt() -> torch.Tensor:
    image = picture()
    image[0, 3, 4, 1] = float("nan")
    return image


def masks(*sizes: tuple[int, int], value: float = 1.0) -> list[torch.Tensor]:
    return [torch.full((1, *size), value) for size in sizes]


LATENTS = [{"samples": torch.zeros(1, 16, 4, 6)}]
CONDITIONING = [[[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]]
REFUSED = {
    "no pictures": ({"images": []}, "training needs pictures, got none; connect images"),
    "an empty batch": ({"images": picture()[:0]}, "training needs pictures, got none"),
    "both sources": (
        {"latents": LATENTS, "conditioning": CONDITIONING},
        "either as images or as latents, got both",
    ),
    "latents alone": ({"images": [], "latents": LATENTS}, "got latents without conditioning"),
    "conditioning beside images": (
        {"conditioning": CONDITIONING},
        "got conditioning without latents",
    ),
    "unequal datasets": (
        {"images": [], "latents": LATENTS * 2, "conditioning": CONDITIONING},
        "equally many, got 2 and 1",
    ),
    "a batch with other captions": (
        {
            "images": [],
            "latents": [{"samples": torch.zeros(3, 16, 4, 6)}],
            "conditioning": [CONDITIONING[0] * 2],
        },
        "got 2 for 3 latents in entry 1",
    ),
    "another model's latents": (
        {
            "images": [],
            "latents": [{"samples": torch.zeros(1, 4, 4, 6)}],
            "conditioning": CONDITIONING,
        },
        r"made by this model's VAE, with 16 channels.*got the shape \(1, 4, 4, 6\)",
    ),
    "NaN in latents": (
        {
            "images": [],
            "latents": [{"samples": torch.full((1, 16, 4, 6), float("nan"))}],
            "conditioning": CONDITIONING,
        },
        "latents must hold finite numbers, got NaN or infinity in entry 1",
    ),
    "mirrored latents": (
        {
            "images": [],
            "latents": LATENTS,
            "conditioning": CONDITIONING,
            "settings": TrainingSettings(flip="random"),
        },
        "latents can't be mirrored, got flip random",
    ),
    "masks with latents": (
        {
            "images": [],
            "latents": LATENTS,
            "conditioning": CONDITIONING,
            "masks": masks((32, 48)),
        },
        "masks belong to images",
    ),
    "three captions for two": (
        {"captions": ["a", "b", "c"]},
        "one text or one per picture, got 3 for 2 pictures",
    ),
    "one mask for two": ({"masks": masks((32, 48))}, "one per picture, got 1 for 2 pictures"),
    "a mask of other size": (
        {"masks": masks((32, 48), (64, 64))},
        "size of its picture, got 64 x 64 for picture 2 of 32 x 32; resize mask 2",
    ),
    "a black mask": (
        {"masks": [*masks((32, 48)), *masks((32, 32), value=0.0)]},
        "black everywhere for picture 2; paint mask 2",
    ),
    "NaN in a mask": (
        {"masks": [*masks((32, 48)), *masks((32, 32), value=float("nan"))]},
        "a mask must hold finite numbers, got NaN or infinity in mask 2",
    ),
    "NaN": ({"images": [picture(), spoilt()]}, "got NaN or infinity in picture 2"),
    "too small": ({"images": [picture(), picture(8, 8)]}, "got 8 x 8 for picture 2"),
    "two ranks": ({"rank": [1, 2]}, "rank must be a single value, got a list of 2"),
    "path in the name": ({"run_name": "../other"}, "run_name must be a plain name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_bad_input_is_refused_in_one_sentence(case, output):
    changes, message = REFUSED[case]
    with progress() as steps, pytest.raises(ValueError, match=message) as caught:
        queue(**changes)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300
    assert steps == []
    assert not list(output.rglob("*.*"))


def test_a_mask_whose_white_part_is_cut_away_is_refused():
    mask = torch.zeros(1, 32, 400)
    mask[..., :8] = 1.0
    with pytest.raises(ValueError, match="black in the part that is trained for picture 1"):
        queue(images=picture(32, 400), captions="x", masks=[mask])


def test_a_vae_that_gives_nan_names_the_precision_that_helps():
    state = {key: value.clone() for key, value in tiny_vae(16).get_sd().items()}
    first = next(key for key in state if "encoder" in key and state[key].ndim > 1)
    state[first].fill_(float("nan"))
    with pytest.raises(RuntimeError, match=r"got NaN from one in torch.float32; .*--bf16-vae"):
        queue(vae=VAE(sd=state))
