"""Half Sheet: every content in every style, each cell what core draws with that LoRA alone."""

from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from half_inputs import clip_of
from pack.lora_ops import PartlyLearnable
from pack.lora_ops.parametrizations.partly_learnable import basis_digest
from pack.nodes.break_for_make.make import made
from pack.nodes.break_for_make.nodes_sheet import HalfSheet
from pack.nodes.break_for_make.sheet import filled
from pack.nodes.bridge.drawing import Sampling
from pack.nodes.bridge.families import identify
from pack.nodes.lora.nodes import ApplyLora
from pack.nodes.pictures import contact_sheet as sheets
from pack.nodes.pictures.contact_sheet import PAPER, contact_sheet, drawable, wrapped
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.half import HalfFacts
from pack.training.files.lora_state import LoraState, lora_state
from pair_inputs import progress, vae_for
from PIL import Image, ImageFont
from test_auxiliary import by_core
from tiny import tiny, tiny_vae, weights_hash

WIDTH, HEIGHT = 64, 48
SAMPLING = Sampling(3, 5.0, "euler", "normal")


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def half_of(name: str, role: str, token: str, seed: int = 0) -> LoraState:
    """Return a half of a tiny model whose learnt parts change its pictures clearly."""
    model = tiny(name)
    shapes = {key: site.shape for key, site in training_sites(model, "attention").items()}
    kind = PartlyLearnable()
    generator = torch.Generator().manual_seed(seed)
    layers = {}
    for key, shape in shapes.items():
        parts = kind.init(shape, 4, generator, key)
        parts["up"] = torch.randn(parts["up"].shape, generator=generator) * 0.2
        parts["down"] = torch.randn(parts["down"].shape, generator=generator) * 0.1
        layers[key] = kind.factors(parts)
    facts = HalfFacts(role, basis_digest(shapes, 4, 0, "orthogonal"), token=token)
    architecture = {"modelspec.architecture": identify(model).architecture}
    return lora_state(layers, {**architecture, **facts.as_metadata()})


def two_by_two(name: str) -> dict[str, list[LoraState]]:
    return {
        "contents": [
            half_of(name, "content", token, seed) for seed, token in ((1, "snq"), (2, ""))
        ],
        "styles": [half_of(name, "style", token, seed) for seed, token in ((3, "w@z"), (4, "kyb"))],
    }


def inputs(name: str = "sd3", **changes) -> dict[str, list]:
    """Return what ComfyUI hands to the node: every input as a list."""
    model = changes.get("model") or tiny(name)
    values = {
        "model": model,
        "clip": clip_of(name, model),
        "vae": vae_for(name),
        **(two_by_two(name) if "contents" not in changes or "styles" not in changes else {}),
        "prompt": "a photo in {style} style",
        "negative": "blurred",
        "content_strength": 1.0,
        "style_strength": 0.5,
        "seed": 7,
        "steps": SAMPLING.steps,
        "cfg": SAMPLING.cfg,
        "sampler_name": SAMPLING.sampler_name,
        "scheduler": SAMPLING.scheduler,
        "width": WIDTH,
        "height": HEIGHT,
        "labels": True,
        **changes,
    }
    return {key: value if isinstance(value, list) else [value] for key, value in values.items()}


def shown(name: str = "sd3", **changes):
    """Run the node under inference mode, on a locked clone, as ComfyUI does."""
    with torch.inference_mode():
        return HalfSheet.PREPARE_CLASS_CLONE(None).execute(**inputs(name, **changes))


def places(sheet: torch.Tensor, picture: torch.Tensor) -> list[tuple[int, int]]:
    """Return where on the sheet a picture stands, bit for bit."""
    height, width = picture.shape[1:3]
    corners = (sheet[0] == picture[0, 0, 0]).all(dim=-1).nonzero().tolist()
    return [
        (y, x)
        for y, x in corners
        if torch.equal(sheet[0, y : y + height, x : x + width], picture[0])
    ]


@pytest.mark.parametrize("name", ["sd15", "sdxl", "sd3", "flux", "wan21"])
def test_a_cell_is_what_core_draws_with_that_lora_alone(name):
    model = tiny(name)
    before = weights_hash(model)
    given = inputs(name, model=model)
    with progress() as steps:
        sheet, pictures, loras = shown(name, **given).result
    assert steps[-1] == 4 * SAMPLING.steps
    halves = made(given["contents"], given["styles"], 1.0, 0.5)
    assert [dict(lora).keys() for lora in loras] == [dict(lora).keys() for lora in halves]
    assert [lora.metadata for lora in loras] == [lora.metadata for lora in halves]
    assert pictures.shape == (4, HEIGHT, WIDTH, 3)
    corners = []
    for lora, picture, token in zip(loras, pictures, ["w@z", "kyb"] * 2, strict=True):
        with torch.inference_mode():
            patched, _ = ApplyLora.execute(model, lora, 1.0, 1.0).result
        expected = by_core(
            patched,
            given["clip"][0],
            given["vae"][0],
            f"a photo in {token} style",
            *(7, SAMPLING),
            width=WIDTH,
            height=HEIGHT,
            negative="blurred",
        )
        assert torch.equal(picture, expected[0])
        corners += places(sheet, expected)
    (top, left), (right_top, right), (bottom, bottom_left), last = corners
    assert (right_top, bottom_left, last) == (top, left, (bottom, right))
    assert right > left + WIDTH
    assert bottom > top + HEIGHT
    assert len({picture.sum().item() for picture in pictures}) == 4
    comfy.model_management.unload_all_models()
    assert weights_hash(model) == before


def inked(sheet: torch.Tensor) -> torch.Tensor:
    """Return which pixels of a sheet are other than plain paper, ``(height, width)``."""
    return (sheet[0] - torch.tensor(PAPER) / 255).abs().amax(dim=-1) > 0.2


def test_rows_and_columns_are_named_on_a_plain_margin():
    result = shown()
    sheet, pictures, _ = result.result
    ((top, left),) = places(sheet, pictures[:1])
    ((_, right),) = places(sheet, pictures[1:2])
    ((bottom, _),) = places(sheet, pictures[2:3])
    ink = inked(sheet)
    assert ink[:top, left : left + WIDTH].any()  # w@z
    assert ink[:top, right : right + WIDTH].any()  # kyb
    assert ink[top : top + HEIGHT, :left].any()  # snq
    assert ink[bottom : bottom + HEIGHT, :left].any()  # content 2
    assert not ink[:top, :left].any()
    assert result.ui["text"] == ("rows: snq, content 2; columns: w@z, kyb",)


def test_labels_off_leaves_the_margin_out_and_the_pictures_as_they_are():
    sheet, pictures, _ = shown(labels=False).result
    named, same, _ = shown().result
    assert torch.equal(pictures, same)
    ((top, left),) = places(sheet, pictures[:1])
    assert (top, left) < places(named, pictures[:1])[0]
    assert not inked(sheet)[:top].any()
    assert not inked(sheet)[:, :left].any()


def test_words_of_ones_own_go_into_prompt_and_labels():
    given = two_by_two("sd3")
    own = {"prompt": "a {content}, {style}", "content_words": "\nein Würfel", "style_words": ""}
    result = shown(**given, **own)
    sheet, pictures, _ = result.result
    assert result.ui["text"] == ("rows: snq, ein Würfel; columns: w@z, kyb",)
    spelt = shown(**{**given, "contents": given["contents"][:1]}, prompt="a snq, {style}")
    assert torch.equal(spelt.result[1], pictures[:2])
    kept = shown(**given, **{**own, "style_words": "w@z"})
    assert torch.equal(kept.result[1], pictures)
    other = shown(**given, **{**own, "content_words": ["snq", "ein Kreis"]}).result
    assert torch.equal(other[1][:2], pictures[:2])
    assert not torch.equal(other[1][2:], pictures[2:])
    assert not torch.equal(other[0], sheet)


def test_another_seed_gives_other_pictures_and_strengths_count():
    one, other, weaker = (
        shown(**changes).result for changes in ({}, {"seed": 8}, {"content_strength": 0.2})
    )
    assert not torch.equal(one[1], other[1])
    assert all(
        torch.equal(a[key], b[key]) for a, b in zip(one[2], other[2], strict=True) for key in a
    )
    assert not torch.equal(one[1], weaker[1])


def test_an_interrupt_ends_it_and_leaves_the_base():
    model = tiny("sd3")
    before = weights_hash(model)

    def on_step(value: int, total: int) -> None:
        if value == SAMPLING.steps + 2:
            comfy.model_management.interrupt_current_processing()

    interrupted = comfy.model_management.InterruptProcessingException
    with progress(on_step) as steps, pytest.raises(interrupted):
        shown(model=model)
    assert max(steps) == SAMPLING.steps + 2
    comfy.model_management.unload_all_models()
    assert weights_hash(model) == before


def halves(role: str, count: int = 1, name: str = "sd3") -> list[LoraState]:
    return [half_of(name, role, f"{role}{number}", number) for number in range(count)]


REFUSED = {
    "no contents": ({"contents": []}, "at least one content and one style half, got 0 and 2"),
    "no styles": ({"styles": []}, "at least one content and one style half, got 2 and 0"),
    "a style among the contents": (
        {"contents": lambda: halves("style")},
        "content must be a content half, got a style half",
    ),
    "an ordinary LoRA": (
        {"styles": lambda: [LoraState(dict(halves("style")[0]))]},
        "a half must come from Train Half or Load Half, got an ordinary LoRA",
    ),
    "another base": (
        {
            "contents": lambda: halves("content", 1, "flux"),
            "styles": lambda: halves("style", 1, "flux"),
        },
        "the LoRA must be made for this model, SD3, got one made for Flux",
    ),
    "a width between": (
        {"width": 72},
        "pictures of SD3 must have sides that are multiples of 16 pixels, got 72 x 48; "
        "set for example 64 x 48",
    ),
    "an unknown placeholder": (
        {"prompt": "a {contents}"},
        r"placeholders \{content\} and \{style\}, got '\{contents\}'; write one of these",
    ),
    "no token": (
        {"prompt": "a {content}"},
        r"asks for \{content\}, got a content half that has no token; write its word into "
        "content_words",
    ),
    "too many words": (
        {"style_words": "a\nb\nc"},
        "style_words must be one line for each of the 2 style halves, got 3",
    ),
    "two seeds": ({"seed": [1, 2]}, "seed must be a single value, got a list of 2"),
    "another VAE": (
        {"vae": lambda: tiny_vae(4)},
        "the VAE must be this model's, for latents of 16 channels, got one for 4",
    ),
    "no text encoder": ({"clip": [None]}, "a text encoder is needed to read the prompt, got none"),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_nothing_is_drawn(case):
    changes, message = case
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    with progress() as steps, pytest.raises(ValueError, match=message):
        shown(**{**two_by_two("sd3"), **changes})
    assert steps == []


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a {content} in {style}", "a dog in ink"),
        ("{ content }{content}", "dogdog"),
        ("plain words, one brace { of two", "plain words, one brace { of two"),
        ("", ""),
    ],
)
def test_placeholders_are_filled(prompt, expected):
    assert filled(prompt, {"content": "dog", "style": "ink"}) == expected


def test_a_word_that_looks_like_a_placeholder_stays_itself():
    assert filled("{content}", {"content": "{style}", "style": "ink"}) == "{style}"


def test_a_long_label_is_wrapped_within_its_column_and_ends_in_an_ellipsis():
    font = ImageFont.load_default(12)
    text = "a very long phrase that names a style in many more words than anyone can read here"
    lines = wrapped(f"{text} {'w' * 300}", font, 64)
    assert len(lines) == 4
    assert all(font.getlength(line) <= 64 for line in lines)
    assert lines[-1].endswith("…")
    assert wrapped("snq", font, 64) == ["snq"]
    assert wrapped("w" * 3, font, 1) == ["w", "w", "w"]


def test_letters_beyond_english_are_drawn_where_a_font_has_them_and_said_where_none_has(
    monkeypatch, caplog
):
    assert drawable(["a\n b"], ["style 1"]) == ["a b"]
    monkeypatch.setattr(sheets, "_FONTS", ())
    sheets._fonts.cache_clear()
    assert drawable(["snq", "猫"], ["style 1", "style 2"]) == ["snq", "style 2"]
    assert (
        "no font on this computer has all letters of '猫'; the sheet says 'style 2'" in caplog.text
    )
    sheets._fonts.cache_clear()


def test_many_long_labels_leave_every_pixel_of_the_pictures():
    pictures = torch.rand(6, 20, 16, 3)
    rows, columns = [f"row {'number ' * 20}{n}" for n in range(2)], ["Ünïcode 猫 😀"] * 3
    sheet = contact_sheet(pictures, 3, rows, columns)
    found = [places(sheet, picture[None]) for picture in pictures]
    assert all(len(place) == 1 for place in found)
    assert len({place[0][0] for place in found}) == 2
    assert len({place[0][1] for place in found}) == 3
    assert Image.fromarray((sheet[0] * 255).byte().numpy()).size == sheet.shape[2:0:-1]
