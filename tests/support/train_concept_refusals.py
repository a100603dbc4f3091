"""Inputs that Train Concept refuses."""

import torch
from concept_encoders import clip_of
from pack.training import TrainingSettings

REFUSED = {
    "no class word": ({"class_word": ""}, "class_word must be one word .* got none"),
    "a class word of spaces": ({"class_word": "  "}, "class_word must be one word .* got none"),
    "a class word of two tokens": (
        {"class_word": "two words"},
        "class_word must be one word .* which is 2; choose",
    ),
    "an unknown class word": (
        {"class_word": "qzxv"},
        "class_word must be one word that clip_l has as one token, got",
    ),
    "a name that the text encoder knows": (
        {"name": "dog"},
        "name must be a word that the text encoder doesn't know, got 'dog'",
    ),
    "the same in angle brackets": (
        {"name": "<dog>"},
        "name must be a word that the text encoder doesn't know, got 'dog'",
    ),
    "a name with a space": ({"name": "my boat"}, "name must be one word .* with a space in it"),
    "a name with brackets": (
        {"name": "boat(1)"},
        "name must be one word .* control character in it",
    ),
    "no name": ({"name": ""}, "name must be one word .* got an empty one"),
    "a caption with another name": (
        {"captions": ["a <cat7>", "<boat1>"]},
        "must be a connected concept, got <cat7>",
    ),
    "three captions for two pictures": (
        {"captions": ["a", "b", "c"]},
        "captions must be one text or one per picture, got 3",
    ),
    "no pictures": ({"images": []}, "a concept needs at least one picture, got none"),
    "masks of another size": (
        {"masks": [torch.ones(1, 8, 8)] * 2},
        "a mask must have the size of its picture, got 8 x",
    ),
    "a mask black all over": (
        {"masks": [torch.zeros(1, 32, 48)] * 2},
        "black everywhere for picture 1",
    ),
    "an unknown kind of crops": (
        {"crops": "round"},
        "crops must be one of whole picture, random square, placed .* 'round'",
    ),
    "no CLIP": ({"clip": None}, "a text encoder is needed to read the prompt, got none; connect"),
    "an optimiser of two factors": (
        {"settings": TrainingSettings(optimizer="LoRA-RITE")},
        "optimizer must be one that looks at every number alone .* got LoRA-RITE; choose AdamW",
    ),
}


UNFIT = {
    "text dropout where no layer reads the text": (
        "sd15",
        lambda: {"text_dropout": 0.5, "settings": TrainingSettings(target_pattern="*attn1*")},
        r"text_dropout is for layers .* got 0.5 where none",
    ),
    "text dropout on SD3": (
        "sd3",
        lambda: {"text_dropout": 0.5, "clip": clip_of("sd3")},
        r"text_dropout is for layers .* got 0.5 where none",
    ),
    "a rate for a text encoder that is not trained": (
        "wan21",
        lambda: {"text_rate": 0.1, "clip": clip_of("wan"), "class_word": "dog"},
        r"text_rate is for clip_l and clip_g, got 0.1 .* umt5xxl",
    ),
}


UNNAMED = ["a red boat", "the <BOAT1> at night"]
