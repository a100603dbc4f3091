"""Defaults of the model families: complete, usable, and said whose they are."""

import pytest
from pack.training import FAMILIES, TrainingConfig, TrainingSettings

UNETS = {"SD1.5", "SD2", "SDXL"}
families = pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)


@families
@pytest.mark.parametrize("method", ["pair", "plain"])
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
    assert defaults.source


@families
def test_plain_defaults_fit_the_family(family):
    plain = family.plain
    assert plain.timesteps in ("uniform", "logit-normal", "shifted")
    # UNets are trained on their whole table; only flow models were trained on other draws.
    assert family.name not in UNETS or plain.timesteps == "uniform"
    assert plain.resolution % family.multiple == 0
    assert plain.resolution >= family.resolution
