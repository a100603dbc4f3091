"""Shallow text encoders of several families, for tests of concepts."""

import io
from functools import cache

import comfy.sd
import comfy.text_encoders.flux
import comfy.text_encoders.qwen_image
import comfy.text_encoders.sd3_clip
import comfy.text_encoders.wan
import sentencepiece
import torch
from concept_inputs import random_clip

CLIP = {"num_hidden_layers": 3}
T5 = {"num_layers": 1, "num_heads": 2, "d_ff": 64}
OPTIONS = {"clip_l_model_config": CLIP, "clip_g_model_config": CLIP, "t5xxl_model_config": T5}


def sentencepiece_model(*sentences):
    """Return a small sentencepiece model, in the form in which Wan's text encoder stores one."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences * 20),
        model_writer=written,
        vocab_size=60,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return torch.tensor(list(written.getvalue()), dtype=torch.uint8)


@cache
def clip_of(name):
    """Return shallow text encoders of a family, made from ComfyUI's own classes."""
    if name == "wan":
        options = {"umt5xxl_model_config": {**T5, "vocab_size": 300}}
        words = sentencepiece_model(
            "a photo of a red dog on a beach", "in the snow", "blurry and red"
        )
        return random_clip(
            comfy.text_encoders.wan.te(),
            comfy.text_encoders.wan.WanT5Tokenizer,
            options,
            {"spiece_model": words},
        )
    if name == "flux":
        return random_clip(
            comfy.text_encoders.flux.flux_clip(),
            comfy.text_encoders.flux.FluxTokenizer,
            OPTIONS,
        )
    with_t5 = name == "sd3"
    return random_clip(
        comfy.text_encoders.sd3_clip.sd3_clip(clip_g=with_t5, t5=with_t5),
        comfy.text_encoders.sd3_clip.SD3Tokenizer,
        OPTIONS,
    )


ENCODERS = {
    "sd3": ["clip_l", "clip_g", "t5xxl"],
    "sd3 with CLIP-L alone": ["clip_l"],
    "flux": ["clip_l", "t5xxl"],
    "wan": ["umt5xxl"],
}
