"""What every model family must say of itself."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from pack.training import FAMILIES, TrainingConfig, TrainingSettings
from pack.training.families import Family
from pack.training.files.concept import TEXT_WIDTHS
from pack.training.files.metadata import family_of

families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
NO_FAMILY = {"__init__", "defaults", "family", "networks"}


def patterns(layers):
    """Return the patterns among the fields of ``TargetLayers`` or ``RegionLayers``."""
    others = {"fused_suffix", "cross_attention_class", "variant"}
    values = [getattr(layers, one.name) for one in fields(layers) if one.name not in others]
    return [value for value in values if isinstance(value, str)]


def test_each_family_is_one_file_that_is_gathered(repository: Path):
    folder = repository / "training/families"
    files = {file.stem for file in folder.glob("*.py")} - NO_FAMILY
    gathered = set(re.findall(r"^from \.(\w+) import", (folder / "__init__.py").read_text(), re.M))
    assert gathered - NO_FAMILY == files
    assert len(files) == len(FAMILIES)


def test_families_are_told_apart_by_every_name_in_files():
    for name in ("name", "architecture", "base_version"):
        assert len({getattr(family, name) for family in FAMILIES.values()}) == len(FAMILIES)
    for family in FAMILIES.values():
        assert family_of({"modelspec.architecture": family.architecture}) is family


def test_no_class_of_comfyui_belongs_to_two_families():
    configs = [name for family in FAMILIES.values() for name in family.classes.configs]
    assert len(set(configs)) == len(configs)


def test_families_with_the_same_classes_have_the_same_network():
    facts: dict[tuple[str, str], Family] = {}
    for family in FAMILIES.values():
        other = facts.setdefault((family.classes.model, family.classes.network), family)
        for name in ("attention_layout", "layers", "blocks", "regions"):
            assert getattr(family, name) == getattr(other, name), (family.name, other.name)


@families
@pytest.mark.parametrize("method", ["pair", "plain", "half", "concept"])
def test_defaults_make_a_run(family, method):
    defaults = getattr(family, method)
    config = TrainingConfig.of(
        TrainingSettings(),
        steps=defaults.steps,
        rank=defaults.rank,
        learning_rate=defaults.learning_rate,
        seed=0,
        weight_decay=defaults.weight_decay,
    )
    assert config.steps >= 100
    assert re.match(r"ours\b|the ", defaults.source), "a source says whose the values are"


@families
def test_plain_defaults_fit_the_family(family):
    plain = family.plain
    assert plain.timesteps in ("uniform", "logit-normal", "shifted")
    # UNets are trained on their whole table; only flow models were trained on other draws.
    assert family.attention_layout != "unet" or plain.timesteps == "uniform"
    assert plain.resolution % family.multiple == 0
    assert plain.resolution >= family.resolution
    assert family.resolution % family.multiple == 0


@families
def test_the_network_is_described(family):
    assert family.classes.configs
    assert family.classes.model
    assert family.classes.network
    layers, blocks = family.layers, family.blocks
    assert layers.attention
    assert layers.feed_forward
    assert layers.blocks
    assert bool(blocks.lists) != bool(blocks.classes)
    for pattern in (*patterns(layers), *(one for one, _ in layers.shared_inputs)):
        re.compile(pattern)
    regions = family.regions
    if regions is not None:
        assert regions.without_tokens
        assert regions.text
        assert all(re.compile(pattern) for pattern in patterns(regions))
        assert bool(regions.cross_attention) == (family.attention_layout == "cross")
        assert bool(regions.cross_attention_class) == bool(regions.cross_attention)
        assert bool(regions.text_and_image or regions.fused_image) == (
            family.attention_layout == "joint"
        )


@families
def test_the_layout_says_which_layers_read_the_text_alone(family):
    assert family.attention_layout in ("unet", "joint", "cross")
    assert bool(family.layers.text_keys_values) == (family.attention_layout != "joint")
    stages = ("text", "cross", "spatial")
    assert family.fusion_stages == tuple(
        stage for stage in stages if stage != "cross" or family.attention_layout == "unet"
    )


@families
def test_the_text_is_described(family):
    assert set(family.text_encoders) <= set(TEXT_WIDTHS)
    assert {"cross_attn", "pooled_output"} <= family.text_keys


@families
def test_pictures_can_be_sampled(family):
    samplings = family.samplings
    for one in (samplings.auxiliary, samplings.fusion, samplings.preview):
        assert one.steps >= 1
        assert one.cfg >= 1.0
    assert samplings.fusion.cfg == 1.0
    assert samplings.preview.sampler_name == "euler"
    assert family.distilled == (samplings.auxiliary.cfg == 1.0)
