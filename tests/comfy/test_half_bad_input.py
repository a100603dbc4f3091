"""Bad halves, pictures, prompts and tokens: one plain sentence, nothing trained, nothing left."""

from collections.abc import Callable
from pathlib import Path

import folder_paths
import pytest
from comfy.sd import CLIP, VAE
from half_inputs import b4m, half, make, trained, tuning
from pack.training import LoraState, TrainingSettings
from pair_inputs import picture, progress
from resume_case import left_behind
from test_bad_lora_files import lora_for
from tiny import tiny
from torch import Tensor


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def spoilt(seed: int = 0) -> Tensor:
    image = picture(seed=seed)
    image[0, 3, 4, 1] = float("nan")
    return image


def unknown_model():
    model = tiny("sd3", fresh=True)
    model.model.model_config = type("Chroma", (), {})()
    return model


def quantised_model():
    model = tiny("sd3", fresh=True)
    model.model.model_config.optimizations = {"fp8": True}
    return model


TWO = {"auxiliary_images": [picture(seed=7), picture(seed=8)], "auxiliary_prompts": "a\nb"}
SPOILT_HALVES = {
    "no pictures": ({"images": []}, "needs at least one picture, got none; connect images"),
    "an empty batch": ({"images": picture()[:0]}, "needs at least one picture, got none"),
    "an empty prompt": (
        {"prompt": " \n"},
        r"prompt must say what the pictures show, got none for picture 1, 2; write",
    ),
    "one empty prompt of two": ({"prompt": ["a snq ball", ""]}, "got none for picture 2"),
    "three prompts for two pictures": (
        {"prompt": ["a snq ball"] * 3},
        "^prompt must be one text for all pictures or one for each, got 3 for 2 pictures; write",
    ),
    "a prompt without the token": (
        {"prompt": "a photo of a ball"},
        "must hold the token that calls the content up, got 'a photo of a ball' without 'snq'",
    ),
    "one prompt of two without the token": (
        {"prompt": ["a snq ball", "a ball"]},
        "got 'a ball' without 'snq'",
    ),
    "two tokens": ({"token": ["a", "b"]}, "token must be a single value, got a list of 2"),
    "three auxiliary prompts for two": (
        {**TWO, "auxiliary_prompts": "a\nb\nc"},
        "one line for all auxiliary pictures or one for each, got 3 for 2 pictures",
    ),
    "auxiliary pictures without prompts": (
        {**TWO, "auxiliary_prompts": ""},
        "auxiliary_prompts must be one line .*, got 0 for 2 pictures; write",
    ),
    "NaN": (
        {"images": [picture(), spoilt()]},
        "^images: a picture must hold finite numbers, got NaN or infinity in picture 2",
    ),
    "NaN in an auxiliary picture": (
        {**TWO, "auxiliary_images": [picture(), spoilt()]},
        "^auxiliary_images: a picture must hold finite numbers, got NaN or infinity in picture 2",
    ),
    "too small": ({"images": picture(8, 8)}, "^images: .* at least 16 pixels .* got 8 x 8"),
    "rank above half of the smallest width": (
        {"rank": 65},
        r"got rank 65 for a smaller side of 128; set rank to 64 or less \(at layer ",
    ),
    "an exact start of rank 1": (
        {"rank": 1, "start": "exact"},
        "the exact start .* needs at least 2, got 1; raise rank",
    ),
    "an unsupported class": ({"model": unknown_model}, r"must be one of SD1\.5.*Chroma"),
    "a base without a backward": ({"model": quantised_model}, "got a base in fp8_e4m3fn_fast"),
    "no layer of that pattern": (
        {"settings": TrainingSettings(target_pattern="*nowhere*")},
        "nowhere",
    ),
    "a path in the name": ({"run_name": "../other"}, "run_name must be a plain name"),
}


def resolved(changes: dict) -> dict:
    return {key: made() if callable(made) else made for key, made in changes.items()}


def refused(output: Path, action: Callable[[], object], message: str, model=None) -> None:
    """Check that an action is refused in one sentence before anything is encoded.

    It must leave no file behind and the model as it was.
    """

    def encode(*args, **more):
        raise AssertionError("nothing must be encoded")

    before = None if model is None else left_behind(model)
    files = sorted(output.rglob("*"))
    with pytest.MonkeyPatch.context() as patch, progress() as steps:
        patch.setattr(VAE, "encode", encode)
        patch.setattr(CLIP, "encode_from_tokens_scheduled", encode)
        with pytest.raises(ValueError, match=message) as caught:
            action()
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300, text
    assert steps == []
    assert sorted(output.rglob("*")) == files
    assert before is None or left_behind(model) == before


@pytest.mark.parametrize("case", SPOILT_HALVES)
def test_a_half_is_refused_before_anything_is_encoded(case, output):
    changes, message = SPOILT_HALVES[case]
    changes = {"model": tiny("sd3"), **resolved(changes)}
    refused(output, lambda: half(**changes), message, changes["model"])


def content(**changes) -> LoraState:
    return trained("content", **changes)


def style(**changes) -> LoraState:
    return trained("style", **changes)


def other_token() -> LoraState:
    return style(token="SNQ", prompt="a box in SNQ style")


def imported(half: LoraState) -> LoraState:
    """Return a half that says no more of itself than one of the released code."""
    said = ("pastiche.role", "pastiche.content_owns")
    metadata = {name: half.metadata[name] for name in said}
    return LoraState(half, {**metadata, "pastiche.basis": "imported"})


WIDER = TrainingSettings(targets="all linear")
UNFIT: dict[str, tuple[Callable, Callable, str]] = {
    "roles mixed up": (
        style,
        content,
        "content must be a content half, got a style half; connect a content half there",
    ),
    "two contents": (content, content, "style must be a style half, got a content half"),
    "two styles": (style, style, "content must be a content half, got a style half"),
    "an ordinary LoRA as content": (
        lambda: lora_for("sd3"),
        style,
        "must come from Train Half or Load Half, got an ordinary LoRA; train it as a half",
    ),
    "an ordinary LoRA as style": (content, lambda: lora_for("sd3"), "got an ordinary LoRA"),
    "other ranks": (content, lambda: style(rank=3), "must have one rank, got . and 3 at layer"),
    "other bases": (
        content,
        lambda: style(basis_seed=1),
        "must be trained on one basis, got .*; train one of them again .* basis_seed",
    ),
    "other starts": (content, lambda: style(start="exact"), "must be trained on one basis"),
    "other layers": (
        content,
        lambda: style(settings=WIDER),
        "must change the same layers, got 7 and 17",
    ),
    "other owners": (
        content,
        lambda: style(content_owns="up"),
        "must agree on what the content owns, got down and up; train one",
    ),
    "other architectures": (
        content,
        lambda: trained("style", "sd15"),
        r"must be made for one base, got SD3.* and SD1\.5; train both on the same base",
    ),
    "equal tokens": (
        content,
        other_token,
        "must have words of their own, got 'snq' for both; train one of them with another token",
    ),
}


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("case", UNFIT)
def test_halves_that_do_not_fit_are_refused(case, steps, output):
    ours, other, message = UNFIT[case]
    halves = [ours()], [other()]
    tuned = tuning() if steps else {}
    refused(output, lambda: make(*halves, **tuned), message, tuned.get("model"))


def test_ranks_of_halves_without_a_basis_of_this_pack_are_told_apart(output):
    ours, other = imported(content()), imported(style(rank=3))
    refused(output, lambda: make([ours], [other]), "must have one rank, got 2 and 3 at layer")
    other = imported(style(basis_seed=1))
    refused(output, lambda: make([ours], [other]), "got frozen halves that differ at layer")


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_halves_that_name_no_base_are_held_against_the_model(name, output):
    halves = [imported(content(name="sd21_v"))], [imported(style(name="sd21_v"))]
    tuned = tuning(name)
    message = r"must fit the model, got \d+ of \d+ layers that it lacks or has in another shape"
    refused(output, lambda: make(*halves, **tuned), message, tuned["model"])


@pytest.mark.parametrize("name", ["flux", "sd15"])
def test_halves_that_name_no_base_are_trained_on_a_model_that_fits(name, output):
    tuned = tuning(name)
    halves = [imported(content(name=name))], [imported(style(name=name))]
    (lora,), losses = make(*halves, **{**tuned, "steps": 1}).result
    assert lora.keys() == halves[0][0].keys()
    assert len(losses["loss"]) == 1


def without(*names: str) -> dict:
    return {name: value for name, value in tuning().items() if name not in names}


SPOILT_MAKES: dict[str, tuple[Callable[[], dict], str]] = {
    "no model": (
        lambda: without("model"),
        "needs the base, got none on model; connect it or set steps to 0",
    ),
    "no model, clip, vae": (
        lambda: without("model", "clip", "vae"),
        "needs the base, got none on model, clip, vae; connect them or set steps to 0",
    ),
    "no pictures of the content": (
        lambda: without("content_images"),
        "needs pictures of the content, got none; connect content_images or set steps to 0",
    ),
    "no pictures of the style": (
        lambda: without("style_images"),
        "needs pictures of the style, got none; connect style_images",
    ),
    "an empty batch": (
        lambda: {**tuning(), "style_images": [picture()[:0]]},
        "needs pictures of the style, got none",
    ),
    "no prompt of the style": (
        lambda: without("style_prompt"),
        "style_prompt must say what the style's pictures show, got an empty text; write",
    ),
    "three prompts for one picture": (
        lambda: {**tuning(), "content_prompt": ["a", "b", "c"]},
        "^content_prompt must be one text for all pictures or one for each, got 3 for 1 pictures",
    ),
    "NaN": (
        lambda: {**tuning(), "style_images": [spoilt()]},
        "^style_images: a picture must hold finite numbers, got NaN or infinity in picture 1",
    ),
    "another base": (
        lambda: tuning("sd15"),
        "the halves must fit the model, got SD3.* halves and a SD1.5 model; choose",
    ),
    "an unsupported class": (lambda: {**tuning(), "model": unknown_model()}, "Chroma"),
    "a path in the name": (
        lambda: {**tuning(), "run_name": "../other"},
        "run_name must be a plain name",
    ),
}


@pytest.mark.parametrize("case", SPOILT_MAKES)
def test_a_joint_training_is_refused_before_anything_is_encoded(case, output):
    build, message = SPOILT_MAKES[case]
    changes = build()
    halves = [content()], [style()]
    refused(output, lambda: make(*halves, **changes), message, changes.get("model"))


@pytest.mark.parametrize("role", ["content", "style"])
def test_two_halves_of_a_role_are_not_trained_together(role, output):
    halves = {"content": [content()], "style": [style()]}
    halves[role] = halves[role] * 2
    numbers = "2 and 1" if role == "content" else "1 and 2"
    tuned = tuning()
    refused(
        output,
        lambda: make(*halves.values(), **tuned),
        f"one content and one style half, .* got {numbers}; set steps to 0 or connect one of each",
        tuned["model"],
    )


def test_a_make_without_halves_is_refused(output):
    refused(output, lambda: make([], [style()]), "at least one content and one style half, got 0")


SPOILT_ALL: dict[str, tuple[dict, str]] = {
    "equal tokens": (
        {"style_token": "snq", "style_prompt": ["a box in snq style"]},
        "must have words of their own, got 'snq' for both",
    ),
    "equal but for case": (
        {"style_token": " SNQ ", "style_prompt": ["a box in SNQ style"]},
        "must have words of their own",
    ),
    "no style pictures": ({"style_images": []}, "a style half needs at least one picture"),
    "no content pictures": ({"content_images": []}, "a content half needs at least one picture"),
    "an empty style prompt": (
        {"style_prompt": ""},
        "^style_prompt must say what the pictures show, got none for picture 1",
    ),
    "a style prompt without the token": (
        {"style_prompt": "a box"},
        "calls the style up, got 'a box' without 'w@z'",
    ),
    "two style prompts for one picture": (
        {"style_prompt": ["a w@z", "b w@z"]},
        "^style_prompt must be one text for all pictures or one for each, got 2 for 1 pictures",
    ),
    "NaN in the style": ({"style_images": [spoilt()]}, "^style_images: .*NaN .* picture 1"),
    "rank too large": ({"rank": 65}, "set rank to 64 or less"),
    "an unsupported class": ({"model": unknown_model}, r"must be one of SD1\.5.*Chroma"),
    "a path in the name": ({"run_name": "../other"}, "run_name must be a plain name"),
}


@pytest.mark.parametrize("case", SPOILT_ALL)
def test_all_stages_are_checked_before_the_first(case, output):
    changes, message = SPOILT_ALL[case]
    changes = {"model": tiny("sd3"), **resolved(changes)}
    refused(output, lambda: b4m(**changes), message, changes["model"])


@pytest.mark.parametrize("role", ["content", "style"])
def test_no_auxiliary_pictures_are_allowed_and_said(role, output):
    node = half(role=role, steps=1)
    (text,) = node.ui["text"]
    assert "without auxiliary pictures or prompts" in text
    assert "write a few auxiliary_prompts" in text
    assert node.result[2].keys() == {"loss", "main"}
    (text,) = b4m(steps=1, make_steps=0).ui["text"]
    assert text.count("without auxiliary pictures or prompts") == 2
