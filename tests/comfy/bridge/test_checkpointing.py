"""Checkpointing, offload and row splitting on tiny real models: exact, and nothing stays behind."""

import inspect
import re
import textwrap
from contextlib import contextmanager
from dataclasses import replace

import comfy.model_management
import comfy.ops
import comfy.sample
import pytest
import torch
from checkpointing_case import CHECKPOINTED, OFFLOADED, PLAIN, FixedRows, example, step_gradient
from gated_loras import relative
from narrow_networks import small_qwen, small_z_image
from pack.nodes.bridge.families import network_blocks
from pack.nodes.trainer.denoiser import open_denoiser
from pack.nodes.trainer.target_layers import training_sites
from pack.training.block_checkpoints import checkpointed_blocks
from pack.training.families import FAMILIES
from pack.training.gates import Gate
from pack.training.loop import row_errors
from pack.training.recipes import Row
from pack.training.session import Session
from tiny import random_state, tiny, tiny_scaled_fp8, weights_hash
from training_case import CONFIG

FAMILY = {
    "sd15": "SD1.5",
    "sdxl": "SDXL",
    "sd3": "SD3",
    "flux": "Flux",
    "flux2": "Flux.2",
    "wan21": "Wan 2.1",
}
NAMES = tuple(FAMILY)
BOUNDS = ((torch.float32, 1e-5), (torch.float64, 1e-6))
CASES = [(name, dtype, bound) for name in NAMES for dtype, bound in BOUNDS]


def unlike_rows(model, dtype=torch.float32) -> list[Row]:
    """Return rows of other pictures, sizes, captions and captions' lengths, two of them alike."""
    shown = [
        example(model, 0, dtype=dtype),
        example(model, 1, dtype=dtype),
        example(model, 2, 8, 12, dtype=dtype),
        example(model, 3, 12, 8, tokens=12, dtype=dtype),
    ]
    return [Row("lora", e, {"lora": Gate()}, 1 / 4, sample) for sample, e in enumerate(shown)]


@contextmanager
def out_of_place_blocks(network, family):
    """Put the blocks' own source in their place, every ``x += y`` written as ``x = x + y``."""
    changed = set()
    with pytest.MonkeyPatch.context() as patch:
        for kind in {type(block) for block in network_blocks(network, FAMILIES[family])}:
            source = textwrap.dedent(inspect.getsource(kind.forward))
            rewritten = re.sub(r"(?m)^(\s*)(\w+) \+= (.*)$", r"\1\2 = \2 + (\3)", source)
            if rewritten != source:
                changed.add(kind)
            space = dict(vars(inspect.getmodule(kind)))
            exec(rewritten, space)
            patch.setattr(kind, "forward", space["forward"])
        yield changed


@pytest.mark.parametrize(("name", "dtype", "bound"), CASES)
def test_gradients_equal_plain_ones_and_those_of_an_out_of_place_network(name, dtype, bound):
    model = tiny(name, dtype)
    rows = unlike_rows(model, dtype)
    found = {}
    for label, how in (("plain", PLAIN), ("checkpointed", CHECKPOINTED), ("offload", OFFLOADED)):
        with open_denoiser(model, **how) as denoiser:
            found[label] = step_gradient(denoiser, rows)
    network = model.model.diffusion_model
    with open_denoiser(model) as denoiser, out_of_place_blocks(network, FAMILY[name]) as changed:
        reference = step_gradient(denoiser, rows)
    assert {kind.__name__ for kind in changed} >= (
        {"DoubleStreamBlock", "SingleStreamBlock"} if name.startswith("flux") else set()
    )
    assert reference.norm() > 0
    for label, gradient in found.items():
        assert relative(gradient, reference) <= bound, label


@pytest.mark.parametrize(("name", "dtype", "bound"), CASES)
def test_batch_gradient_is_the_mean_of_singles_of_other_captions_and_sizes(name, dtype, bound):
    model = tiny(name, dtype)
    rows = unlike_rows(model, dtype)
    with open_denoiser(model, checkpointing=True) as denoiser:
        batch = step_gradient(denoiser, rows)
        singles = [step_gradient(denoiser, [replace(row, weight=1.0)]) for row in rows]
    assert relative(batch, sum(singles) / len(singles)) <= bound


@pytest.mark.parametrize("name", ["sd15", "sd3", "flux"])
@pytest.mark.parametrize("how", [PLAIN, CHECKPOINTED])
def test_split_rows_have_the_gradient_of_unsplit_ones(name, how):
    model = tiny(name)
    gates = [Gate(), Gate(0.5), Gate(1.0, frozenset({"up"})), Gate(-1.0), Gate()]
    rows = [
        Row("lora", example(model, seed), {"lora": gate}, (seed + 1) / 10, seed)
        for seed, gate in enumerate(gates)
    ]
    with open_denoiser(model, **how) as denoiser:
        seen = []
        denoise = denoiser.denoise
        denoiser.denoise = lambda x, *rest: seen.append(len(x)) or denoise(x, *rest)
        whole = step_gradient(denoiser, rows)
        by_two = step_gradient(denoiser, rows, rows_per_pass=2)
        single = step_gradient(denoiser, rows, rows_per_pass=1)
    assert seen == [5, 2, 2, 1, 1, 1, 1, 1, 1]
    assert relative(by_two, whole) <= 1e-5
    assert relative(single, whole) <= 1e-5


def stored(tensor):
    """Return the storage of a tensor, the quantised numbers' where it is quantised."""
    return getattr(tensor, "_qdata", tensor).untyped_storage()


def kept_bytes(denoiser, rows) -> int:
    """Return what one forward keeps for backward beside the weights, shared storage once."""
    sites = training_sites(denoiser.patcher, "attention")
    session = Session(denoiser, sites, FixedRows(tuple(rows)), CONFIG)
    weights = {
        stored(p).data_ptr() for p in (*denoiser.model.parameters(), *session.parameters.values())
    }
    kept = {}

    def count(tensor):
        storage = stored(tensor)
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # alive, so that no address
        return tensor  # comes twice

    gates, counted = session.gates, torch.autograd.graph.saved_tensors_hooks(count, lambda t: t)
    with gates.attached(), gates.gated([row.gates for row in rows]), counted:
        errors = row_errors(denoiser, gates, rows, CONFIG, 0)
    assert errors.requires_grad
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize(
    ("name", "most"),
    # Two or three shallow blocks and the layers around them: real depths save more.
    [("sd15", 0.28), ("sdxl", 0.2), ("sd3", 0.2), ("flux", 0.2), ("flux2", 0.15), ("wan21", 0.22)],
)
def test_less_is_kept_between_forward_and_backward(name, most):
    model = tiny(name)
    rows = [Row("lora", example(model, 0, 16, 16), {"lora": Gate()})]
    kept = {}
    for label, how in (("plain", PLAIN), ("checkpointed", CHECKPOINTED)):
        with open_denoiser(model, **how) as denoiser:
            kept[label] = kept_bytes(denoiser, rows)
    assert kept["checkpointed"] < most * kept["plain"]


def test_an_fp8_base_is_never_held_whole_in_its_computing_precision():
    model = tiny_scaled_fp8("flux", "qkv")
    before = weights_hash(model)
    rows = [Row("lora", example(model, 0, 8, 8), {"lora": Gate()})]
    whole = 4 * sum(parameter.numel() for parameter in model.model.parameters())
    with open_denoiser(model) as denoiser:
        assert kept_bytes(denoiser, rows) < 0.1 * whole
        gradient = step_gradient(denoiser, rows)
    assert gradient.isfinite().all()
    assert gradient.norm() > 0
    assert weights_hash(model) == before


@pytest.mark.parametrize("name", NAMES)
def test_predictions_without_gradients_are_bit_equal_and_run_each_block_once(name):
    model = tiny(name)
    shown = example(model)
    found, calls = [], []
    for how in (PLAIN, CHECKPOINTED, OFFLOADED):
        with open_denoiser(model, **how) as denoiser, torch.no_grad():
            blocks = network_blocks(denoiser.model.diffusion_model, FAMILIES[FAMILY[name]])
            handles = [
                block.register_forward_hook(lambda *_, how=how: calls.append(str(how)))
                for block in blocks
            ]
            sigma = denoiser.sigma_at(torch.tensor([0.5]))
            found.append(denoiser.denoise(shown.latent[None], sigma, [shown.cond]))
            for handle in handles:
                handle.remove()
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert len(calls) == 3 * len(blocks)


@pytest.mark.parametrize("name", ["sd15", "flux"])
def test_offloaded_weights_stay_where_they_are(name):
    model = tiny(name)
    streams = comfy.model_management.NUM_STREAMS
    with open_denoiser(model, offload=True) as denoiser:
        assert denoiser.model.model_lowvram
        assert denoiser.patcher.loaded_size() < 0.01 * denoiser.patcher.model_size()
        assert comfy.model_management.NUM_STREAMS == 0
    assert not model.model.model_lowvram
    assert streams == comfy.model_management.NUM_STREAMS


@pytest.mark.parametrize(
    ("family", "make", "shape", "blocks"),
    [
        ("Qwen-Image", small_qwen, (2, 16, 1, 8, 8), 2),
        ("Z-Image", small_z_image, (2, 16, 8, 8), 4),
    ],
)
def test_families_that_cannot_be_made_tiny_have_blocks_and_exact_gradients(
    family, make, shape, blocks, monkeypatch
):
    """Their classes can be narrow; only ComfyUI's detection wants the real width."""
    monkeypatch.setattr(comfy.model_management, "in_training", True)  # kernels with a backward
    with torch.device("meta"):
        layout = make(comfy.ops.disable_weight_init)
    network = make(comfy.ops.disable_weight_init)
    network.load_state_dict(random_state(layout, 0, torch.float32), strict=False)
    network.requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    x, context = (torch.randn(size, generator=generator) for size in (shape, (2, 12, 48)))
    assert len(network_blocks(network, FAMILIES[family])) == blocks

    def gradient():
        leaf = x.clone().requires_grad_()
        extra = {"num_tokens": 12} if family == "Z-Image" else {}
        predicted = network(
            leaf, torch.tensor([0.3, 0.7]), context=context, transformer_options={}, **extra
        )
        predicted.square().sum().backward()
        return leaf.grad

    plain = gradient()
    found = network_blocks(network, FAMILIES[family])
    with checkpointed_blocks(found, in_place=False):
        checkpointed = gradient()
    assert plain.norm() > 0
    assert relative(checkpointed, plain) <= 1e-5
