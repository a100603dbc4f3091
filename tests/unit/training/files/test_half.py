"""What a half says of itself, which halves fit, and what is taken for a half of the authors'."""

import re
from collections import Counter

import pytest
import torch
from pack.lora_ops import LowRank, PartlyLearnable
from pack.lora_ops.halves import CONTENT_OWNS
from pack.lora_ops.keys import factor_keys
from pack.training import LoraState, lora_state
from pack.training.families import FAMILIES
from pack.training.files.half import (
    FROM_FILE,
    IMPORTED,
    HalfMetadata,
    as_half,
    check_fit,
    half_layers,
    half_metadata,
)

BLOCK = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2"
SHAPES = {f"{BLOCK}_to_q": (16, 16), f"{BLOCK}_to_k": (16, 24), f"{BLOCK}_to_out_0": (16, 16)}
RANK = 4


def factors(seed=1, basis_seed=5, start="orthogonal", shapes=SHAPES, rank=RANK):
    """Return the layers of a half whose learnt parts are all changed."""
    kind, generator = PartlyLearnable(basis_seed, start), torch.Generator().manual_seed(seed)
    layers = {}
    for layer, shape in shapes.items():
        parts = kind.init(shape, rank, generator, layer)
        parts["up"] = torch.randn(parts["up"].shape, generator=generator) * 0.05
        layers[layer] = kind.factors(parts)
    return layers


def half(role="content", seed=1, *, basis="b1", owner="down", token="", family="", **changes):
    metadata = HalfMetadata(role, basis, owner, token).as_metadata()
    if family:
        metadata["modelspec.architecture"] = FAMILIES[family].architecture
    return lora_state(factors(seed, **changes), metadata)


def plain(seed=3, shapes=SHAPES, metadata=None):
    """Return an ordinary LoRA, both of its factors learnt."""
    generator = torch.Generator().manual_seed(seed)
    layers = {
        layer: LowRank(
            torch.randn(RANK, shape[1], generator=generator) / shape[1] ** 0.5,
            torch.randn(shape[0], RANK, generator=generator) * 0.05,
        )
        for layer, shape in shapes.items()
    }
    return lora_state(layers, metadata or {})


def changed(lora, key, tensor):
    return LoraState({**lora, key: tensor}, lora.metadata)


def refusal(function, *arguments):
    """Return what is refused: one sentence that says what must hold, what was given, what to do."""
    with pytest.raises(ValueError, match=r" must .*, got .*; ") as caught:
        function(*arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert Counter(text)[";"] == 1
    assert not re.search(r"\.\s|\.$", text)
    assert len(text) < 400
    return text


@pytest.mark.parametrize("role", ["content", "style"])
@pytest.mark.parametrize("owner", ["down", "up"])
def test_a_half_says_whose_it_is_on_which_basis(role, owner):
    metadata = HalfMetadata(role, "0123", owner, "snq")
    assert half_metadata(lora_state(factors(), metadata.as_metadata())) == metadata
    # A file drops what is empty.
    wordless = {key: value for key, value in HalfMetadata(role, "0").as_metadata().items() if value}
    assert half_metadata(lora_state(factors(), wordless)) == HalfMetadata(
        role, "0", CONTENT_OWNS, ""
    )


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"pastiche.role": "style"},
        {"pastiche.role": "content"},
        {**HalfMetadata("content", "b1").as_metadata(), "pastiche.role": "made"},
        {"pastiche.role": "content half", "pastiche.content_owns": "down"},
        {"pastiche.role": "content half", "pastiche.basis": "b1"},
        {**HalfMetadata("content", "b1").as_metadata(), "pastiche.content_owns": "mid"},
    ],
)
def test_an_ordinary_lora_is_no_half(metadata):
    lora = plain(metadata=metadata)
    assert "got an ordinary LoRA" in refusal(half_metadata, lora)
    assert "got an ordinary LoRA" in refusal(check_fit, lora, half("style"))
    assert "got an ordinary LoRA" in refusal(check_fit, half(), lora)
    assert "got an ordinary LoRA" in refusal(half_metadata, dict(lora))


def test_the_factors_of_a_half_are_its_files():
    lora = half()
    layers = half_layers(lora)
    assert list(layers) == list(SHAPES)
    for layer, layer_factors in layers.items():
        keys = factor_keys(layer)
        assert torch.equal(layer_factors.down, lora[keys.down])
        assert torch.equal(layer_factors.up, lora[keys.up])
        assert layer_factors.scale == 1.0
    without = LoraState({k: t for k, t in lora.items() if not k.endswith(".alpha")})
    assert half_layers(without).keys() == layers.keys()


def test_scaled_and_other_layers_are_refused():
    keys = factor_keys(f"{BLOCK}_to_k")
    scaled = changed(half(), keys.alpha, torch.tensor(1.0))
    assert "alpha equal to its rank, got 1 for rank 4" in refusal(half_layers, scaled)
    assert f"{BLOCK}_to_k" in refusal(check_fit, scaled, half("style"))
    other = changed(half(), "lora_unet_conv_in.diff", torch.ones(4, 4))
    assert "got diff at 'lora_unet_conv_in'" in refusal(half_layers, other)
    single = LoraState({keys.down: torch.ones(4, 24), keys.alpha: torch.tensor(4.0)})
    assert "got alpha and down at" in refusal(half_layers, single)
    split = changed(half(), keys.up, torch.ones(16, 2, 2))
    assert "share the rank axis, got (4, 24) and (16, 2, 2)" in refusal(half_layers, split)
    long = changed(half(), f"lora_unet_{'x' * 500}.diff", torch.ones(4, 4))
    assert "down and up of every layer" in refusal(half_layers, long)


@pytest.mark.parametrize("owner", ["down", "up"])
@pytest.mark.parametrize("start", ["orthogonal", "released", "exact"])
def test_halves_of_one_basis_fit(owner, start):
    content = half("content", 1, owner=owner, token="snq", family="SDXL", start=start)
    style = half("style", 2, owner=owner, token="w@z", family="SDXL", start=start)
    assert check_fit(content, style) == owner


def test_halves_that_say_less_fit_where_their_numbers_do():
    content = half("content", 1, basis=IMPORTED)
    assert check_fit(content, half("style", 2, family="SDXL", token="w@z")) == "down"
    assert check_fit(content, half("style", 2, basis=IMPORTED)) == "down"


@pytest.mark.parametrize(
    ("content", "style", "said"),
    [
        (half("style"), half("style"), "content must be a content half, got a style half"),
        (half("content"), half("content"), "style must be a style half, got a content half"),
        (half("style"), half("content"), "content must be a content half, got a style half"),
        (half(basis="b1"), half("style", basis="b2"), "on one basis, got b1 and b2"),
        (
            half(basis=IMPORTED),
            half("style", basis_seed=6),
            f"on one basis, got frozen halves that differ at layer '{BLOCK}_to_q'",
        ),
        (half(), half("style", owner="up"), "what the content owns, got down and up"),
        (half(family="SD1.5"), half("style", family="SDXL"), "one base, got SD1.5 and SDXL"),
        (half(token="snq"), half("style", token="snq"), "words of their own, got 'snq' for both"),
        (half(token="Snq"), half("style", token="snq"), "words of their own, got 'Snq' for both"),
        (half(rank=3), half("style"), "one rank, got 3 and 4"),
        (half(shapes={f"{BLOCK}_to_q": (16, 16)}), half("style"), "same layers, got 1 and 3"),
        (
            half(shapes={**SHAPES, f"{BLOCK}_to_k": (16, 32)}),
            half("style"),
            r"one shape, got (16, 32) and (16, 24)",
        ),
    ],
)
def test_halves_that_do_not_fit_are_refused(content, style, said):
    assert said in refusal(check_fit, content, style)


def test_a_half_of_this_pack_is_loaded_as_itself_alone():
    lora = half("style", owner="up")
    assert as_half(lora) is lora
    assert as_half(lora, "style", "up") is lora
    assert "role must be what the half says of itself, style, got content" in refusal(
        as_half, lora, "content"
    )
    assert "content_owns must be what the half says of itself, up, got down" in refusal(
        as_half, lora, "style", "down"
    )
    scaled = changed(lora, factor_keys(f"{BLOCK}_to_k").alpha, torch.tensor(1.0))
    assert "alpha equal to its rank" in refusal(as_half, scaled)
    made = LoraState(lora, {**lora.metadata, "pastiche.role": "made"})
    for role in (FROM_FILE, "content", "style"):
        assert "got an ordinary LoRA" in refusal(as_half, made, role)


@pytest.mark.parametrize("start", ["orthogonal", "released", "exact"])
def test_a_half_that_says_nothing_gets_the_role_that_is_chosen(start):
    lora = lora_state(factors(start=start), {"format": "pt"})
    loaded = as_half(lora, "content")
    assert half_metadata(loaded) == HalfMetadata("content", IMPORTED, CONTENT_OWNS)
    assert loaded.metadata["format"] == "pt"
    assert all(loaded[key] is lora[key] for key in lora)
    assert lora.metadata == {"format": "pt"}
    assert half_metadata(as_half(lora, "style", "up")) == HalfMetadata("style", IMPORTED, "up")
    assert "role must be content or style for a file that doesn't say it" in refusal(as_half, lora)
    assert as_half(loaded) is loaded


@pytest.mark.parametrize("start", ["orthogonal", "released", "exact"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_and_the_released_decay_leave_a_half_one(start, dtype):
    kept = (1 - 1e-4 * 1e-2) ** 9000
    layers = {
        layer: LowRank((half.down * kept).to(dtype), (half.up * kept).to(dtype))
        for layer, half in factors(start=start).items()
    }
    assert half_metadata(as_half(lora_state(layers, {}, dtype), "style")).basis == IMPORTED


@pytest.mark.parametrize("role", ["content", "style"])
def test_an_ordinary_lora_is_not_taken_for_a_half_whatever_role_is_chosen(role):
    text = refusal(as_half, plain(), role)
    assert "got an ordinary LoRA's numbers at" in text
    assert "Load LoRA (Pastiche)" in text


def test_frozen_halves_of_zeros_are_refused():
    lora = lora_state(factors(start="released"), {})
    key = factor_keys(f"{BLOCK}_to_k").down
    emptied = lora[key].clone()
    emptied[:, :12] = 0
    assert f"got zeros at '{BLOCK}_to_k'" in refusal(
        as_half, changed(lora, key, emptied), "content"
    )
