"""The memory forecast, presets and the pre-flight's sentences, on tiny real models."""

import comfy.model_management
import pytest
import torch
from gated_loras import hook_count
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer import memory
from pack.nodes.trainer.base import Base
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.memory import check_memory, with_preset
from pack.nodes.trainer.memory_estimator import MemoryEstimator
from pack.nodes.trainer.target_layers import target_layers, training_sites
from pack.training import TrainingConfig, TrainingSettings
from pack.training.denoiser import Example
from pack.training.loop import row_errors
from pack.training.memory import LiveBytes, MemoryNeed, optimizer_bytes
from pack.training.recipes import Pair, Single
from pack.training.session import Session
from pack.training.settings import OPTIMIZERS
from tiny import tiny, tiny_cond, tiny_latent, tiny_scaled_fp8, weights_hash
from training_case import CONFIG, NETWORKS

GB = 1024**3
PLAIN, CHECKPOINTED = TrainingSettings(), TrainingSettings(checkpointing=True)


def example(model, seed=0, size=16) -> Example:
    latent = training_latent(model, tiny_latent(model, size, size, seed=seed)["samples"])[0]
    return Example(latent, training_cond(model, tiny_cond(model, 12, seed=seed), latent))


def estimator(model, recipe) -> MemoryEstimator:
    base = Base(model, None, None)
    return MemoryEstimator(base, target_layers(base.layers, "attention"), None, recipe)


def estimate(model, recipe, config, settings) -> MemoryNeed:
    return estimator(model, recipe).estimate(config, settings)


def counted(model, recipe, config, settings) -> int:
    """Return the peak of a real step: what is learnt, its gradients and all that is computed."""
    with open_denoiser(model, settings.precision, settings.checkpointing) as denoiser:
        rows = recipe.rows(config.steps - 1, config.seed)
        sites = training_sites(denoiser.patcher, settings.targets)
        known = [*denoiser.model.parameters(), *denoiser.model.buffers()]
        plain = [tensor for tensor in known if not hasattr(tensor, "_qdata")]
        with LiveBytes(plain) as live:
            session = Session(denoiser, sites, recipe, config)
            with session.gates.attached(), session.gates.gated([row.gates for row in rows]):
                row_errors(denoiser, session.gates, rows, config, 0).sum().backward()
    return live.peak


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("settings", [PLAIN, CHECKPOINTED])
def test_forecast_is_what_a_real_step_takes(name, settings):
    """A real step on the CPU, its tensors counted; the forecast has computed nothing."""
    model = tiny(name)
    recipe = Single([example(model)], batch_size=2)
    need = estimate(model, recipe, CONFIG, settings)
    moments = 2 * need.learnt // 4  # AdamW's, beside the parameters and their gradients
    forecast = need.learnt + need.activations - moments - 32 * 1024**2
    assert need.weights == model.model_size()
    assert forecast == pytest.approx(counted(model, recipe, CONFIG, settings), rel=0.1)


def test_cast_weights_that_backward_keeps_are_foreseen():
    """A base in half precision that computes in fp32 is held a second time, in twice its size."""
    model = tiny("sdxl", torch.float16)
    recipe = Single([example(model)])
    settings = TrainingSettings(precision="fp32")
    plain = estimate(model, recipe, CONFIG, settings)
    spared = estimate(model, recipe, CONFIG, TrainingSettings("fp32", checkpointing=True))
    assert plain.activations > 1.5 * model.model_size()
    assert spared.activations < model.model_size()
    found = counted(model, recipe, CONFIG, settings)
    assert plain.activations == pytest.approx(found, rel=0.2)


def test_an_fp8_base_is_foreseen_unpacked_one_block_at_a_time():
    model = tiny_scaled_fp8("flux", "qkv")
    need = estimate(model, Single([example(model)]), CONFIG, PLAIN)
    assert need.weights == model.model_size()
    assert need.total > need.weights


def test_a_forecast_leaves_nothing_behind():
    model = tiny("flux")
    before, free = weights_hash(model), comfy.model_management.get_free_memory
    held = [dict(vars(module)) for module in model.model.modules()]
    with torch.inference_mode():  # every node runs under it
        estimate(model, Single([example(model)]), CONFIG, CHECKPOINTED)
    assert [vars(module) for module in model.model.modules()] == held
    assert weights_hash(model) == before
    assert hook_count(model) == 0
    assert comfy.model_management.get_free_memory is free
    assert not comfy.model_management.in_training
    assert not comfy.model_management.current_loaded_models


def test_the_largest_step_decides():
    """Pair Customization has one row before the style starts, and two after."""
    model = tiny("sd3")
    pairs = [(example(model, 0), example(model, 1))]
    config = TrainingConfig(steps=100, rank=4, learning_rate=1e-4, seed=0)
    joined = estimate(model, Pair(pairs, style_start_step=90), config, PLAIN)
    content = estimate(model, Pair(pairs, style_start_step=100), config, PLAIN)
    split = estimate(
        model,
        Pair(pairs, style_start_step=90),
        TrainingConfig(steps=100, rank=4, learning_rate=1e-4, seed=0, rows_per_pass=1),
        PLAIN,
    )
    beside = 32 * 1024**2
    assert joined.activations - beside > 1.7 * (content.activations - beside)
    assert split.activations - beside < 0.6 * (joined.activations - beside)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_learnt_is_counted_as_the_optimiser_keeps_it(optimizer):
    model = tiny("sd15")
    recipe = Single([example(model, size=8)])
    config = TrainingConfig(1, 4, 1e-4, 0, optimizer=optimizer, ema_decay=0.9)
    with open_denoiser(model) as denoiser:
        session = Session(denoiser, training_sites(denoiser.patcher, "attention"), recipe, config)
        for parameter in session.parameters.values():
            parameter.grad = torch.randn(parameter.shape)
        session.optimizer.step()
        learnt = list(session.parameters.values())
        kept = sum(
            value.nbytes
            for state in session.optimizer.state.values()
            for value in state.values()
            if isinstance(value, torch.Tensor) and value.ndim
        )
    assert optimizer_bytes(session.optimizer) == pytest.approx(kept, rel=0.02, abs=4096)
    numbers = sum(parameter.nbytes for parameter in learnt)
    need = estimate(model, recipe, config, PLAIN)
    # Parameters, gradients and their average, and what the optimiser keeps.
    assert need.learnt == pytest.approx(3 * numbers + kept, rel=0.02)


@pytest.mark.parametrize(
    ("size", "preset", "expected"),
    [  # (checkpointing, offload, rows per pass) by the size of the base's weights
        (2, "8 GB", (True, False, 1)),
        (5, "8 GB", (True, True, 1)),
        (5, "12 GB", (True, False, 2)),
        (12, "12 GB", (True, True, 2)),
        (5, "24 GB", (False, False, 0)),
        (12, "24 GB", (True, False, 0)),
        (23, "24 GB", (True, True, 0)),
    ],
)
def test_a_preset_sets_what_its_card_needs_for_the_base(size, preset, expected, monkeypatch):
    model = tiny("sd15")
    monkeypatch.setattr(model, "model_size", lambda: size * GB)
    given = TrainingSettings(memory=preset, rows_per_pass=7, offload=True)
    settings, config = with_preset(given, CONFIG, model)
    assert (settings.checkpointing, settings.offload, config.rows_per_pass) == expected
    assert settings.rows_per_pass == config.rows_per_pass


def test_without_a_preset_the_users_settings_hold_and_offload_implies_checkpointing():
    model = tiny("sd15")
    given = TrainingSettings(rows_per_pass=3)
    settings, config = with_preset(given, CONFIG, model)
    assert settings == given
    assert config.rows_per_pass == 3
    assert with_preset(TrainingSettings(offload=True), CONFIG, model)[0].checkpointing


def said(model, settings=PLAIN, config=CONFIG) -> list[str]:
    told = []
    recipe = Single([example(model)], batch_size=2)
    check_memory(estimator(model, recipe), config, settings, told.append)
    return told


def test_need_and_room_are_said_before_the_first_step():
    told = said(tiny("sd15"))
    assert len(told) == 1
    assert told[0].startswith("memory: about 0.")
    assert "GB on cpu (base 0.1, what is learnt 0.0, a step 0.1); " in told[0]
    assert told[0].endswith("GB are free in addition to the base")


def pretend_gpu(model, monkeypatch, free):
    """Let the pre-flight believe in a card with so much room; what is needed stays real."""
    monkeypatch.setattr(model, "load_device", torch.device("cuda", 0))
    monkeypatch.setattr(comfy.model_management, "should_use_bf16", lambda *_, **__: True)
    monkeypatch.setattr(memory.comfy.model_management, "get_free_memory", lambda *_: free)


def test_a_run_that_may_not_fit_is_warned_of_with_the_setting_that_helps(monkeypatch):
    model = tiny("sdxl")
    need = estimate(model, Single([example(model)], batch_size=2), CONFIG, PLAIN)
    pretend_gpu(model, monkeypatch, int(0.9 * need.total))
    told = said(model)
    assert len(told) == 2
    assert told[1].startswith("memory may run out: set checkpointing on in Training Settings")


def test_a_run_that_cannot_fit_is_refused_with_the_setting_that_helps(monkeypatch):
    model = tiny("sdxl")
    need = estimate(model, Single([example(model)], batch_size=2), CONFIG, PLAIN)
    pretend_gpu(model, monkeypatch, int(0.5 * need.total))
    with pytest.raises(RuntimeError, match=r"must fit into the 0\.\d GB .* set checkpointing on"):
        said(model)


def test_a_run_that_nothing_makes_fit_is_refused_with_what_is_left_to_do(monkeypatch):
    model = tiny("sd15")
    pretend_gpu(model, monkeypatch, 1024**2)
    with pytest.raises(RuntimeError, match="lower resolution, rank or batch_size"):
        said(model)


def test_on_the_cpu_too_little_is_warned_of_and_the_run_goes_on(monkeypatch):
    model = tiny("sd15")
    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_: 1024**2)
    told = said(model)
    assert told[1].startswith("memory may run out: ")


def test_a_forecast_that_fails_is_said_and_stops_nothing(monkeypatch):
    model = tiny("sd15")

    def fails(*_):
        raise NotImplementedError("an operator without shapes")

    monkeypatch.setattr(MemoryEstimator, "estimate", fails)
    assert said(model) == [
        "memory: not foretold for this model (NotImplementedError: an operator without shapes)"
    ]


def test_a_need_is_the_sum_of_its_parts():
    assert MemoryNeed(1, 2, 3).total == 6
