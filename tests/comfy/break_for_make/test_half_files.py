"""Halves in ComfyUI's LoRA folders: saved, listed, loaded by core, and what is no half."""

import logging

import pytest
import safetensors.torch
import torch
from half_files_case import RANK, equal, half_of, load, refusal, save
from lora_files_case import apply, sampled, unet_lora
from lora_files_case import save as save_lora
from mutations import mutants
from pack.lora_ops import delta
from pack.lora_ops.halves import BASIS_TOLERANCE
from pack.lora_ops.parametrizations.partly_learnable import split
from pack.nodes.break_for_make.make import join_halves
from pack.nodes.break_for_make.nodes_files import LoadHalf, SaveHalf
from pack.nodes.lora.nodes import LoadLora
from pack.training.files.half import HalfMetadata, half_layers, half_metadata
from pack.training.files.lora_state import LoraState
from pack.training.files.tensor_file import read_header
from PIL import Image
from tiny import tiny

import nodes as core_nodes

BASES = ("sd15", "sdxl", "sd3", "flux", "wan21")


@pytest.mark.parametrize("base", BASES)
def test_a_half_comes_back_bit_by_bit_and_core_loads_it_as_a_lora(base, loras, caplog):
    model = tiny(base)
    half = half_of(model, owner="up")
    name = save(half)
    loaded = load(name)
    assert isinstance(loaded, LoraState)
    assert equal(loaded, half)
    assert half_metadata(loaded) == half_metadata(half)
    assert half_metadata(loaded) == HalfMetadata(
        "content", half.metadata["pastiche.basis"], "up", "snq"
    )
    caplog.clear()
    with caplog.at_level(logging.INFO):
        by_core = core_nodes.LoraLoader().load_lora(model, None, name, 0.7, 0)[0]
        picture = sampled(by_core)
    for complaint in ("lora key not loaded", "NOT LOADED", "ERROR"):
        assert complaint not in caplog.text
    assert torch.equal(sampled(apply(model, loaded)[0]), picture)
    plain = sampled(model)
    assert (picture - plain).norm() > 1e-3 * plain.norm()


def test_a_half_saved_as_a_lora_is_still_a_half(loras):
    half = half_of(tiny("sd15"), "style")
    (loaded,) = LoadLora.execute(save_lora(half)).result
    assert half_metadata(loaded) == half_metadata(half)
    assert equal(load("my_style.safetensors"), half)


def away(tensor, exact):
    return float((tensor - exact).norm() / exact.norm())


def moved_basis(half, rounded):
    """Return how far every frozen half that is not zero was moved."""
    other_layers = half_layers(rounded)
    for layer, factors in half_layers(half).items():
        exact, other = split(factors), split(other_layers[layer])
        for part in ("down_frozen", "up_frozen"):
            if exact[part].any():
                yield away(other[part], exact[part])


@pytest.mark.parametrize(
    ("content", "style", "bound"),
    [("fp32", "fp32", 0.0), ("fp16", "fp16", 5e-4), ("fp32", "fp16", 5e-4), ("bf16", "fp16", 4e-3)],
)
@pytest.mark.parametrize("start", ["orthogonal", "released"])
def test_halves_of_any_precision_fit_and_rounding_hardly_moves_what_is_made(
    content, style, bound, start, loras
):
    model = tiny("sdxl")
    halves = [half_of(model, role, start=start) for role in ("content", "style")]
    saved = [load(save(h, "x", p)) for h, p in zip(halves, (content, style), strict=True)]
    for half, rounded in zip(halves, saved, strict=True):
        worst = max(moved_basis(half, rounded))
        assert worst < BASIS_TOLERANCE / 5
    (exact,), (rounded,) = join_halves(halves[:1], halves[1:]), join_halves(saved[:1], saved[1:])
    ours, other = half_layers(exact), half_layers(rounded)
    moved = [away(delta(other[layer]), delta(factors)) for layer, factors in ours.items()]
    assert max(moved) <= bound
    if not bound:
        assert equal(exact, rounded)


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 2e-3), ("bf16", 1.5e-2)])
def test_rounding_changes_pictures_of_the_made_lora_little(precision, bound, loras):
    model = tiny("sd15")
    halves = [half_of(model, role) for role in ("content", "style")]
    saved = [load(save(half, "x", precision)) for half in halves]
    (exact,), (rounded,) = join_halves(halves[:1], halves[1:]), join_halves(saved[:1], saved[1:])
    plain, picture = sampled(model), sampled(apply(model, exact)[0])
    assert (sampled(apply(model, rounded)[0]) - picture).norm() < bound * (picture - plain).norm()


def test_the_default_precision_is_half_the_size(loras):
    default = next(i.default for i in SaveHalf.GET_SCHEMA().inputs if i.id == "precision")
    assert default == "fp16"


def test_the_file_tells_whose_it_is_and_by_which_word(loras):
    model = tiny("sdxl")
    picture = torch.rand(1, 64, 96, 3, generator=torch.Generator().manual_seed(0))
    name = save(half_of(model), "halves/ball", "fp16", image=picture)
    assert name == "halves/ball.safetensors"
    metadata = read_header(loras / name).metadata
    assert metadata["pastiche.role"] == "content half"
    assert metadata["pastiche.content_owns"] == "down"
    assert metadata["pastiche.token"] == metadata["modelspec.trigger_phrase"] == "snq"
    assert len(metadata["pastiche.basis"]) == 16
    assert metadata["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert metadata["ss_network_dim"] == metadata["ss_network_alpha"] == str(RANK)
    assert Image.open((loras / name).with_suffix(".png")).size == (96, 64)
    typed = read_header(loras / save(half_of(model), "other", trigger="snq ball")).metadata
    assert typed["modelspec.trigger_phrase"] == "snq ball"
    assert typed["pastiche.token"] == "snq"


def test_nothing_is_overwritten_and_the_same_half_is_written_once(loras):
    model = tiny("sd15")
    content, style = half_of(model), half_of(model, "style")
    assert save(content, "half") == "half.safetensors"
    assert save(style, "half") == "half_2.safetensors"
    assert save(content, "half") == "half.safetensors"
    assert len(list(loras.iterdir())) == 2
    assert half_metadata(load("half.safetensors")).role == "content"
    before = SaveHalf.fingerprint_inputs("half", half=None)
    (loras / "half.safetensors").unlink()
    assert SaveHalf.fingerprint_inputs("half", half=None) != before


def test_a_changed_file_is_read_anew(loras):
    name = save(half_of(tiny("sd15")))
    first = LoadHalf.fingerprint_inputs(name, role="content")
    assert LoadHalf.fingerprint_inputs(name, role="style") == first
    (loras / name).unlink()
    assert LoadHalf.fingerprint_inputs(name) is None


def test_what_is_no_half_is_not_saved_as_one(loras):
    model = tiny("sd15")
    lora = unet_lora(model)
    with pytest.raises(ValueError, match=r"must come from Train Half .*, got an ordinary LoRA; "):
        save(lora)
    with pytest.raises(ValueError, match="got an ordinary LoRA"):
        save(dict(half_of(model)))
    scaled = LoraState(lora, half_of(model).metadata)  # its alpha is half its rank
    with pytest.raises(ValueError, match="alpha equal to its rank, got 2 for rank 4"):
        save(scaled)
    (both,) = join_halves([half_of(model)], [half_of(model, "style")])
    with pytest.raises(ValueError, match="got an ordinary LoRA"):
        save(both)
    assert list(loras.iterdir()) == []


def test_a_choice_that_the_file_contradicts_is_refused(loras):
    name = save(half_of(tiny("sd15")))
    assert half_metadata(load(name, "content", "down")).role == "content"
    assert "role must be what the half says of itself, content, got style" in refusal(name, "style")
    assert "content_owns must be what the half says of itself, down, got up" in refusal(
        name, "content", "up"
    )


def test_ordinary_loras_and_made_ones_are_refused_whatever_is_chosen(loras):
    model = tiny("sd15")
    (both,) = join_halves([half_of(model)], [half_of(model, "style")])
    alike = {
        k: torch.tensor(4.0) if k.endswith("alpha") else t for k, t in unet_lora(model).items()
    }
    names = [save_lora(lora, stem) for lora, stem in ((alike, "plain"), (both, "both"))]
    for name in names:
        for role in ("as the file says", "content", "style"):
            assert "ordinary LoRA" in refusal(name, role)
    assert "role must be content or style for a file that doesn't say it" in refusal(names[0])
    scaled = save_lora(unet_lora(model), "scaled")
    assert "alpha equal to its rank, got 2 for rank 4" in refusal(scaled, "content")


def test_damaged_and_absent_files_are_refused(loras):
    name = save(half_of(tiny("sd15")))
    whole = (loras / name).read_bytes()
    (loras / name).write_bytes(whole[:-10])
    assert "cut short" in refusal(name)
    assert "in none of the LoRA folders" in refusal("absent.safetensors")


def test_300_spoilt_files_are_halves_that_can_be_made_or_one_sentence(loras):
    model = tiny("sd15")
    content, style = half_of(model), half_of(model, "style")
    wholes = [
        (loras / save(content, stem, p)).read_bytes() for stem, p in (("a", "fp32"), ("b", "fp16"))
    ]
    (loras / "bare.safetensors").write_bytes(safetensors.torch.save(dict(content)))
    wholes.append((loras / "bare.safetensors").read_bytes())
    refused = 0
    for number, mutant in enumerate(mutants(wholes, 300)):
        (loras / "spoilt.safetensors").write_bytes(mutant.data)
        try:
            half = load("spoilt.safetensors", "content" if number % 2 else "as the file says")
            (lora,) = join_halves([half], [style])
        except ValueError as error:
            refused += 1
            said = str(error)
            assert "\n" not in said, mutant.name
            assert len(said) < 500, mutant.name
            assert "; " in said, (mutant.name, said)
        else:
            assert lora.keys() == style.keys(), mutant.name
    assert 100 < refused < 300
