"""Inputs that the nodes of Break-for-Make refuse."""

from collections.abc import Callable

from bad_loras import lora_for
from half_inputs import joint_inputs, trained
from pack.training import LoraState, TrainingSettings
from pair_inputs import picture
from tiny import tiny
from torch import Tensor


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
        "^prompt must be one text or one per picture, got 3 for 2 pictures; give",
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
        "auxiliary_prompts must be one text or one per picture, got 3 for 2 pictures",
    ),
    "auxiliary pictures without prompts": (
        {**TWO, "auxiliary_prompts": ""},
        "auxiliary_prompts must be one text .*, got 0 for 2 pictures; give",
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


def content(**changes) -> LoraState:
    return trained("content", **changes)


def style(**changes) -> LoraState:
    return trained("style", **changes)


def other_token() -> LoraState:
    return style(token="SNQ", prompt="a box in SNQ style")


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


def without(*names: str) -> dict:
    return {name: value for name, value in joint_inputs().items() if name not in names}


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
        lambda: {**joint_inputs(), "style_images": [picture()[:0]]},
        "needs pictures of the style, got none",
    ),
    "no prompt of the style": (
        lambda: without("style_prompt"),
        "style_prompt must say what the style's pictures show, got an empty text; write",
    ),
    "three prompts for one picture": (
        lambda: {**joint_inputs(), "content_prompt": ["a", "b", "c"]},
        "^content_prompt must be one text or one per picture, got 3 for 1 picture;",
    ),
    "NaN": (
        lambda: {**joint_inputs(), "style_images": [spoilt()]},
        "^style_images: a picture must hold finite numbers, got NaN or infinity in picture 1",
    ),
    "another base": (
        lambda: joint_inputs("sd15"),
        "the halves must fit the model, got SD3.* halves and a SD1.5 model; choose",
    ),
    "an unsupported class": (lambda: {**joint_inputs(), "model": unknown_model()}, "Chroma"),
    "a path in the name": (
        lambda: {**joint_inputs(), "run_name": "../other"},
        "run_name must be a plain name",
    ),
}


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
        "^style_prompt must be one text or one per picture, got 2 for 1 picture;",
    ),
    "NaN in the style": ({"style_images": [spoilt()]}, "^style_images: .*NaN .* picture 1"),
    "rank too large": ({"rank": 65}, "set rank to 64 or less"),
    "an unsupported class": ({"model": unknown_model}, r"must be one of SD1\.5.*Chroma"),
    "a path in the name": ({"run_name": "../other"}, "run_name must be a plain name"),
}
