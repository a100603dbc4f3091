"""Half Sheet: every content in every style, each cell what core draws with that LoRA alone."""

from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import torch
from drawn_by_core import draw_with_core
from half_sheet_case import HEIGHT, REFUSED, SAMPLING, WIDTH, inputs, run_sheet, two_by_two
from pack.nodes.break_for_make.make import join_halves
from pack.nodes.break_for_make.sheet import fill_placeholders
from pack.nodes.lora.nodes import ApplyLora
from pack.nodes.pictures import contact_sheet as sheets
from pack.nodes.pictures.contact_sheet import PAPER, contact_sheet, drawable, wrapped
from pair_inputs import progress
from PIL import Image, ImageFont
from tiny import tiny, weights_hash


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


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
        sheet, pictures, loras = run_sheet(name, **given).result
    assert steps[-1] == 4 * SAMPLING.steps
    halves = join_halves(given["contents"], given["styles"], 1.0, 0.5)
    assert [dict(lora).keys() for lora in loras] == [dict(lora).keys() for lora in halves]
    assert [lora.metadata for lora in loras] == [lora.metadata for lora in halves]
    assert pictures.shape == (4, HEIGHT, WIDTH, 3)
    corners = []
    for lora, picture, token in zip(loras, pictures, ["w@z", "kyb"] * 2, strict=True):
        with torch.inference_mode():
            patched, _ = ApplyLora.execute(model, lora, 1.0, 1.0).result
        expected = draw_with_core(
            model=patched,
            clip=given["clip"][0],
            vae=given["vae"][0],
            prompt=f"a photo in {token} style",
            seed=7,
            sampling=SAMPLING,
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
    result = run_sheet()
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
    sheet, pictures, _ = run_sheet(labels=False).result
    named, same, _ = run_sheet().result
    assert torch.equal(pictures, same)
    ((top, left),) = places(sheet, pictures[:1])
    assert (top, left) < places(named, pictures[:1])[0]
    assert not inked(sheet)[:top].any()
    assert not inked(sheet)[:, :left].any()


def test_words_of_ones_own_go_into_prompt_and_labels():
    given = two_by_two("sd3")
    own = {"prompt": "a {content}, {style}", "content_words": "\nein Würfel", "style_words": ""}
    result = run_sheet(**given, **own)
    sheet, pictures, _ = result.result
    assert result.ui["text"] == ("rows: snq, ein Würfel; columns: w@z, kyb",)
    spelt = run_sheet(**{**given, "contents": given["contents"][:1]}, prompt="a snq, {style}")
    assert torch.equal(spelt.result[1], pictures[:2])
    kept = run_sheet(**given, **{**own, "style_words": "w@z"})
    assert torch.equal(kept.result[1], pictures)
    other = run_sheet(**given, **{**own, "content_words": ["snq", "ein Kreis"]}).result
    assert torch.equal(other[1][:2], pictures[:2])
    assert not torch.equal(other[1][2:], pictures[2:])
    assert not torch.equal(other[0], sheet)


def test_another_seed_gives_other_pictures_and_strengths_count():
    one, other, weaker = (
        run_sheet(**changes).result for changes in ({}, {"seed": 8}, {"content_strength": 0.2})
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
        run_sheet(model=model)
    assert max(steps) == SAMPLING.steps + 2
    comfy.model_management.unload_all_models()
    assert weights_hash(model) == before


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_sentence_and_nothing_is_drawn(case):
    changes, message = case
    changes = {key: value() if callable(value) else value for key, value in changes.items()}
    with progress() as steps, pytest.raises(ValueError, match=message):
        run_sheet(**{**two_by_two("sd3"), **changes})
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
    assert fill_placeholders(prompt, {"content": "dog", "style": "ink"}) == expected


def test_a_word_that_looks_like_a_placeholder_stays_itself():
    assert fill_placeholders("{content}", {"content": "{style}", "style": "ink"}) == "{style}"


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
