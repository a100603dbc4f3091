"""Training on tiny real models: it learns, its gradients are right, and nothing stays behind."""

from dataclasses import replace

import comfy.model_management
import pytest
import torch
from gated_loras import UNETS, hook_count, patched, prediction, relative
from pack.lora_ops import OrthogonalRows, disjoint_bases
from pack.nodes.lora.layers import FixedFactors
from pack.nodes.text.training_cond import training_cond, training_latent
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.adapters import new_adapter
from pack.training.denoiser import Example
from pack.training.files.lora_state import lora_state
from pack.training.gates import Gate, GatedAdapters
from pack.training.loop import row_errors, train
from pack.training.optimizers.by_name import make_optimizer
from pack.training.recipes import Pair, Row, Single
from tiny import TINY_NAMES, tiny, tiny_cond, tiny_latent, weights_hash
from training_case import CONFIG, NETWORKS, RANK, warm_adapter

BASIS_SEED = 123846
EVALUATION_SEED = 99


def examples(model, count, size=8) -> list[Example]:
    found = []
    for seed in range(count):
        latent = training_latent(model, tiny_latent(model, size, size, seed=seed)["samples"])[0]
        cond = training_cond(model, tiny_cond(model, 8, seed=seed), latent)
        found.append(Example(latent, cond))
    return found


def mean_error(denoiser, gates, row_gates, shown, draws=4) -> float:
    """Mean error over a fixed set of noises and noise levels."""
    rows = [Row("evaluation", shown, row_gates, 1.0, sample) for sample in range(draws)]
    with torch.no_grad(), gates.attached():
        return (
            row_errors(denoiser, gates, rows, replace(CONFIG, seed=EVALUATION_SEED), 0)
            .mean()
            .item()
        )


@pytest.mark.parametrize("name", TINY_NAMES)
def test_training_lowers_the_loss_and_leaves_the_base_alone(name):
    model = tiny(name)
    before = weights_hash(model)
    shown = examples(model, 1)[0]
    recipe = Single([shown], batch_size=2)
    config = CONFIG if name in UNETS else replace(CONFIG, learning_rate=1e-1)
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        trained = train(denoiser, sites, recipe, config)
        gates = GatedAdapters(sites, {"lora": FixedFactors(trained.adapters["lora"])})
        untrained = mean_error(denoiser, gates, {}, shown)
        learnt = mean_error(denoiser, gates, {"lora": Gate()}, shown)
    assert len(trained.losses["loss"]) == CONFIG.steps
    assert learnt < 0.97 * untrained
    assert hook_count(model) == 0
    assert weights_hash(model) == before
    # The saved file changes ComfyUI's own prediction as the gated adapter did.
    lora = lora_state(trained.adapters["lora"], {})
    expected = prediction(patched(model, lora))
    found = prediction(model, 1, gates, [{"lora": Gate()}])
    assert relative(found, expected) < 1e-5


def gradient(denoiser, gates, adapter, rows) -> torch.Tensor:
    """Return the gradient of the rows' weighted sum as one vector."""
    for parameter in adapter.parameters():
        parameter.grad = None
    errors = row_errors(denoiser, gates, rows, replace(CONFIG, seed=5), 0)
    (errors * errors.new_tensor([row.weight for row in rows])).sum().backward()
    return torch.cat([parameter.grad.flatten().double() for parameter in adapter.parameters()])


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        *((name, torch.float32, 1e-5) for name in NETWORKS),
        *((name, torch.float64, 1e-6) for name in NETWORKS),
    ],
)
def test_batch_gradient_is_the_mean_of_single_gradients(name, dtype, tolerance):
    model = tiny(name, dtype)
    rows = [
        Row("lora", Example(e.latent.to(dtype), e.cond), {"lora": Gate()}, 1 / 3, sample)
        for sample, e in enumerate(examples(model, 3))
    ]
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        adapter = warm_adapter(sites, denoiser.device)
        gates = GatedAdapters(sites, {"lora": adapter})
        with gates.attached():
            batched = gradient(denoiser, gates, adapter, rows)
            single = sum(gradient(denoiser, gates, adapter, [row]) for row in rows)
    assert relative(batched, single) < tolerance


@pytest.mark.parametrize("name", NETWORKS)
def test_gradient_is_the_slope_of_the_loss(name):
    """Central differences along the gradient in float64; in-place residuals would show here."""
    model = tiny(name, torch.float64)
    shown = examples(model, 1)[0]
    row = Row("lora", Example(shown.latent.double(), shown.cond), {"lora": Gate()})
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        adapter = warm_adapter(sites, denoiser.device)
        gates = GatedAdapters(sites, {"lora": adapter})
        parameters = list(adapter.parameters())
        starts = [parameter.detach().clone() for parameter in parameters]
        with gates.attached():
            slope = gradient(denoiser, gates, adapter, [row])
            length = slope.norm().item()
            directions = [parameter.grad / length for parameter in parameters]
            values = []
            for step in (1e-2, -1e-2):
                with torch.no_grad():
                    for parameter, start, along in zip(parameters, starts, directions, strict=True):
                        parameter.copy_(start + step * along)
                    values.append(
                        row_errors(denoiser, gates, [row], replace(CONFIG, seed=5), 0).item()
                    )
    assert (values[0] - values[1]) / 2e-2 == pytest.approx(length, rel=5e-3)


def bases(sites) -> dict:
    """Return the content and style rows of every width among the sites."""
    widths = {site.shape[1] for site in sites.values()}
    return {width: disjoint_bases(width, RANK, RANK, BASIS_SEED) for width in widths}


def test_gradient_is_parted_between_content_and_style():
    """T5: the content row moves content's ``up`` alone, the style row style's ``up`` alone."""
    model = tiny("sdxl")
    before, after = examples(model, 2)
    recipe = Pair([(before, after)], style_start_step=0, basis_seed=BASIS_SEED)
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        adapters = {
            name: new_adapter(name, kind, sites, RANK, 0, denoiser.device)
            for name, kind in recipe.adapters().items()
        }
        content, style = adapters["content 0"], adapters["style"]
        optimizer = make_optimizer([content, style], CONFIG)
        gates = GatedAdapters(sites, adapters)
        with gates.attached():
            for row in recipe.rows(0, 0):
                optimizer.zero_grad(set_to_none=True)
                row_errors(denoiser, gates, [row], replace(CONFIG, seed=0), 0).sum().backward()
                learning, resting = (content, style) if row.name == "content" else (style, content)
                assert all(p.grad is not None and p.grad.norm() > 0 for p in learning.parameters())
                assert all(p.grad is None for p in resting.parameters())
                optimizer.step()
    counted = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    assert counted == 2 * RANK * sum(site.shape[0] for site in sites.values())
    basis = bases(sites)
    for adapter, rows in ((content, 0), (style, 1)):
        for key, parts in adapter.parts.items():
            assert torch.equal(parts["down"], basis[sites[key].shape[1]][rows])
            assert not parts["down"].requires_grad


def test_identical_pictures_are_noised_identically():
    """T10: a pair of equal pictures gets equal x in its content and its style row."""
    model = tiny("sd15")
    shown = examples(model, 1)[0]
    recipe = Pair([(shown, shown)], style_start_step=0)
    seen = []
    with open_denoiser(model) as denoiser:
        denoise = denoiser.denoise
        denoiser.denoise = lambda x, sigma, conds: seen.append(x) or denoise(x, sigma, conds)
        train(denoiser, training_sites(denoiser.patcher, "attention"), recipe, CONFIG)
    assert all(torch.equal(x[0], x[1]) for x in seen)
    assert len(seen) == CONFIG.steps


def test_frozen_rows_of_the_basis_are_saved_bit_identical():
    model = tiny("sd15")
    before, after = examples(model, 2)
    recipe = Pair([(before, after)], style_start_step=2, basis_seed=BASIS_SEED)
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        trained = train(denoiser, sites, recipe, CONFIG)
    assert len(trained.losses["content"]) == CONFIG.steps
    assert len(trained.losses["style"]) == CONFIG.steps - 2
    basis = bases(sites)
    for role, rows in (("content 0", 0), ("style", 1)):
        for key, factors in trained.adapters[role].items():
            assert torch.equal(factors.down, basis[sites[key].shape[1]][rows])
            assert factors.up.norm() > 0


def test_two_runs_are_bit_identical():
    model = tiny("flux")
    runs = []
    for _ in range(2):
        with open_denoiser(model) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            trained = train(denoiser, sites, Single(examples(model, 2)), CONFIG)
        runs.append(lora_state(trained.adapters["lora"], {}))
    assert runs[0].keys() == runs[1].keys()
    assert all(torch.equal(runs[0][key], runs[1][key]) for key in runs[0])


class StopError(Exception):
    """A failure in the middle of a run."""


def fail(event):
    raise StopError


def interrupt(event):
    comfy.model_management.interrupt_current_processing(True)


@pytest.mark.parametrize("name", ["sd15", "flux"])
@pytest.mark.parametrize(
    ("callback", "raised"),
    [(fail, StopError), (interrupt, comfy.model_management.InterruptProcessingException)],
)
def test_nothing_stays_after_an_error_or_a_cancel(name, callback, raised):
    model = tiny(name)
    before = weights_hash(model)
    recipe = Single(examples(model, 1))

    def run():
        with open_denoiser(model) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            train(denoiser, sites, recipe, CONFIG, [callback])

    with pytest.raises(raised):
        run()
    assert hook_count(model) == 0
    assert not comfy.model_management.in_training
    assert weights_hash(model) == before
    assert all(not parameter.requires_grad for parameter in model.model.parameters())


def test_cancel_takes_effect_within_a_step():
    """The interrupt comes in the middle of a forward and ends that forward."""
    model = tiny("sdxl")
    blocks = model.model.diffusion_model.input_blocks
    reached = []
    handles = [
        blocks[3][0].register_forward_pre_hook(lambda module, args: interrupt(None)),
        blocks[6][0].register_forward_pre_hook(lambda module, args: reached.append(module)),
    ]

    def run():
        with open_denoiser(model) as denoiser:
            sites = training_sites(denoiser.patcher, "attention")
            train(denoiser, sites, Single(examples(model, 1)), CONFIG)

    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            run()
    finally:
        for handle in handles:
            handle.remove()
    assert reached == []
    assert hook_count(model) == 0


def test_rank_that_does_not_fit_names_the_layer():
    model = tiny("sd15")
    with open_denoiser(model) as denoiser:
        sites = training_sites(denoiser.patcher, "attention")
        with pytest.raises(ValueError, match=r"set rank to 160 or less \(at layer lora_unet_"):
            new_adapter("style", OrthogonalRows(), sites, 161, 0, denoiser.device)
