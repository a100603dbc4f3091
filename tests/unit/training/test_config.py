"""Settings are checked where they are made."""

import math

import pytest
from pack.training import TrainingConfig, TrainingSettings

GOOD = {"steps": 10, "rank": 4, "learning_rate": 1e-4, "seed": 0}


def test_defaults_are_valid_and_frozen():
    settings = TrainingSettings()
    with pytest.raises(AttributeError):
        settings.flip = "always"  # type: ignore[misc]
    assert settings == TrainingSettings()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("precision", "fp8", "precision must be one of auto, fp32, bf16, got 'fp8'"),
        ("flip", "often", "flip must be one of never, always, random"),
        ("optimizer", "Lion", "optimizer must be one of AdamW"),
        ("targets", "none", "targets must be one of attention"),
        ("resolution", 8, "resolution must be 0 .* or at least 16 pixels, got 8"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_settings_outside_their_range_are_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingSettings(**{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, "steps must be at least 1, got 0"),
        ("rank", 0, "rank must be at least 1, got 0"),
        ("learning_rate", 0.0, "learning_rate must be a positive number"),
        ("learning_rate", math.nan, "learning_rate must be a positive number"),
        ("learning_rate", math.inf, "learning_rate must be a positive number"),
        ("packing", "both", "packing must be one of batched, sequential"),
    ],
)
def test_a_config_outside_its_range_is_refused(field, value, message):
    with pytest.raises(ValueError, match=message):
        TrainingConfig(**{**GOOD, field: value})


def test_a_config_as_json_makes_the_same_config():
    config = TrainingConfig(**GOOD, weight_decay=0.5, packing="sequential")
    assert TrainingConfig(**config.as_json()) == config
