"""An equal graph is trained once: what a run's id depends on, and what it must not."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import comfy.model_management
import folder_paths
import pytest
import safetensors.torch
import torch
from comfy_extras.nodes_hooks import CreateHookLora, SetClipHooks
from comfy_extras.nodes_lora_debug import LoraLoaderBypass
from comfy_extras.nodes_model_advanced import ModelSamplingSD3
from comfy_extras.nodes_model_merging import ModelMergeSimple
from pack.lora_ops.keys import factor_keys
from pack.nodes.bridge.digests import clip_digest, model_digest, vae_digest
from pack.training import TrainingSettings
from pair_inputs import identity, picture, progress, queue
from tiny import TINY_NAMES, tiny, tiny_clip, tiny_vae
from wide_sdxl import real_width_sdxl

from nodes import CLIPSetLastLayer, LoraLoader

TEXT_LORA = "text.safetensors"
LAYER = "diffusion_model.joint_blocks.0.x_block.attn.proj.weight"


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path / "output"))
    return tmp_path / "output"


def with_lora(model, strength: float, seed: int = 0):
    """The model with a patch on one layer, as LoRA loaders attach it."""
    clone = model.clone()
    shape = clone.model.state_dict()[LAYER].shape
    change = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.01
    assert clone.add_patches({LAYER: ("diff", (change,))}, strength)
    return clone


def stored_files(output: Path) -> dict[str, bytes]:
    return {str(f.relative_to(output)): f.read_bytes() for f in output.rglob("*") if f.is_file()}


def test_an_equal_graph_is_trained_once(output):
    with progress() as steps:
        first = queue()
    assert steps == [1, 2, 3]
    files = stored_files(output)
    comfy.model_management.load_models_gpu([tiny("flux"), tiny("sd15")])
    with progress() as steps:
        again = queue(model=tiny("sd3", fresh=True))  # as after a restart
    assert steps == []
    assert stored_files(output) == files
    assert again.result[2] == first.result[2]
    for lora, other in zip(
        (first.result[0], *first.result[1]), (again.result[0], *again.result[1]), strict=True
    ):
        assert lora.metadata == other.metadata
        assert lora.keys() == other.keys()
        assert all(torch.equal(lora[key], other[key]) for key in lora)
    assert "trained before, taken from" in again.ui["text"][0]
    assert again.ui["images"]


def test_more_steps_train_what_is_missing_beside_the_first(output):
    queue(steps=3)
    with progress() as steps:
        longer = queue(steps=4)
    assert steps == [4]
    assert len(longer.result[2]["loss"]) == 4
    (run,) = (output / "pastiche").iterdir()
    assert sorted(path.name for path in run.iterdir() if path.name.endswith("steps")) == [
        "3 steps",
        "4 steps",
    ]
    with progress() as steps:
        queue(steps=3)
    assert steps == []


def test_an_upstream_lora_and_its_strength_train_anew():
    model = tiny("sd3")
    losses = []
    for base in (model, with_lora(model, 1.0), with_lora(model, 0.5)):
        with progress() as steps:
            losses.append(queue(model=base).result[2]["loss"])
        assert steps == [1, 2, 3]
    assert len({tuple(curve) for curve in losses}) == 3
    with progress() as steps:
        queue(model=with_lora(model, 0.5))
    assert steps == []


def test_the_pieces_say_what_changed(output):
    queue()
    queue(model=with_lora(tiny("sd3"), 1.0))
    one, two = (json.loads(f.read_text())["pieces"] for f in output.rglob("run.json"))
    changed = {
        f"{name}.{part}"
        for name in ("model", "clip", "vae", "settings")
        for part in one[name]
        if one[name][part] != two[name][part]
    }
    assert changed == {"model.patches"}
    assert {name for name in one if one[name] != two[name]} == {"model"}


SAME = {
    "steps": {"steps": 9},
    "run name": {"run_name": "another"},
    "pictures as one batch": {"before": [picture(seed=1)]},
    "outer spaces": {"content_prompt": " a red ball ", "style_words": "in ink\n"},
}
OTHER = {
    "rank": {"rank": 3},
    "learning rate": {"learning_rate": 0.02},
    "seed": {"seed": 6},
    "style start": {"style_start": 0.5},
    "packing": {"packing": "sequential"},
    "prompt": {"content_prompt": "a blue ball"},
    "style words": {"style_words": "in oil"},
    "before": {"before": picture(seed=7)},
    "pictures swapped": {"before": picture(seed=2), "after": picture(seed=1)},
    "flip": {"settings": TrainingSettings(flip="random")},
    "resolution": {"settings": TrainingSettings(resolution=16)},
    "batch size": {"settings": TrainingSettings(batch_size=2)},
    "optimiser": {"settings": TrainingSettings(optimizer="SGD")},
    "weight decay": {"settings": TrainingSettings(weight_decay=0.5)},
    "targets": {"settings": TrainingSettings(targets="all linear")},
    "precision": {"settings": TrainingSettings(precision="bf16")},
    "vae": {"vae": lambda: tiny_vae(16, seed=1)},
    "clip": {"clip": lambda: tiny_clip(seed=1)},
    "clip layer": {"clip": lambda: CLIPSetLastLayer().set_last_layer(tiny_clip(), -2)[0]},
    "clip lora": {"clip": lambda: LoraLoader().load_lora(None, tiny_clip(), TEXT_LORA, 0, 0.5)[1]},
    "clip hooks": {"clip": lambda: hooked(0.5)},
    "stronger clip hooks": {"clip": lambda: hooked(1.0)},
    "clip bypass": {"clip": lambda: bypassed(0.5)},
    "stronger clip bypass": {"clip": lambda: bypassed(1.0)},
    "weights": {"model": lambda: tiny("sd3", seed=1)},
    "dtype": {"model": lambda: tiny("sd3", torch.bfloat16)},
    "shift": {"model": lambda: ModelSamplingSD3().patch(tiny("sd3"), 1.5)[0]},
    "lora": {"model": lambda: with_lora(tiny("sd3"), 1.0)},
    "merge": {"model": lambda: merged(0.5)},
}


def merged(ratio: float):
    return ModelMergeSimple().merge(tiny("sd3"), tiny("sd3", seed=1), ratio)[0]


@pytest.fixture(autouse=True)
def text_lora(loras):
    """A LoRA for the text encoder among ComfyUI's."""
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) * 0.1 for shape in ((2, 768), (768, 2)))
    keys = factor_keys("lora_te_text_model_encoder_layers_0_self_attn_q_proj")
    safetensors.torch.save_file({keys.down: down, keys.up: up}, str(loras / TEXT_LORA))


def hooked(strength: float):
    """The text encoder with the LoRA as a hook."""
    (hooks,) = CreateHookLora().create_hook(TEXT_LORA, 0.0, strength)
    return SetClipHooks().apply_hooks(tiny_clip(), False, False, hooks)[0]


def bypassed(strength: float):
    """The text encoder with the LoRA in its forward calls, its weights untouched."""
    return LoraLoaderBypass().load_lora(None, tiny_clip(), TEXT_LORA, 0.0, strength)[1]


def called(changes: dict) -> dict:
    return {key: value() if callable(value) else value for key, value in changes.items()}


@pytest.mark.parametrize("case", SAME)
def test_the_id_does_not_depend_on(case):
    assert identity(**called(SAME[case])) == identity()


def test_the_id_depends_on_all_else():
    found = {case: identity(**called(changes)) for case, changes in OTHER.items()}
    found["reference"] = identity()
    found["weaker lora"] = identity(model=with_lora(tiny("sd3"), 0.5))
    found["other lora"] = identity(model=with_lora(tiny("sd3"), 1.0, seed=1))
    found["other merge"] = identity(model=merged(0.25))
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", TINY_NAMES)
def test_a_digest_is_the_same_loaded_offloaded_and_partly_loaded(name):
    model = tiny(name, fresh=True)
    key = next(key for key, value in model.model.state_dict().items() if value.ndim == 2)
    patched = model.clone()
    patched.add_patches({key: ("diff", (torch.ones_like(model.model.state_dict()[key]),))}, 0.5)
    plain, digest = model_digest(model), model_digest(patched)
    assert digest["weights"] == plain["weights"]
    assert digest["patches"] != plain["patches"]
    untouched = patched.model.state_dict()[key].clone()

    comfy.model_management.load_models_gpu([patched], force_full_load=True)
    assert not torch.equal(patched.model.state_dict()[key], untouched)  # patched in place
    assert model_digest(patched) == digest
    assert model_digest(model) == plain
    patched.detach()
    assert model_digest(patched) == digest

    patched.load(patched.load_device, lowvram_model_memory=1)
    assert patched.model.model_lowvram
    assert model_digest(patched) == digest
    patched.detach()
    assert torch.equal(patched.model.state_dict()[key], untouched)


def test_training_does_not_change_the_digest():
    model = ModelSamplingSD3().patch(with_lora(tiny("sd3", fresh=True), 0.7), 1.5)[0]
    before = identity(model=model)
    queue(model=model)
    assert identity(model=model) == before


def test_digests_of_clip_and_vae_survive_use():
    clip, vae = tiny_clip(), tiny_vae(16)
    before = clip_digest(clip), vae_digest(vae)
    queue(clip=clip, vae=vae)
    assert (clip_digest(clip), vae_digest(vae)) == before


def test_a_weight_that_no_file_holds_and_nothing_reads_is_none_of_the_id():
    """SD1.5's text projection is whatever lay in memory, another in every process."""
    clip = tiny_clip(seed=77)  # nobody else uses this one
    before = clip_digest(clip)
    transformer = clip.cond_stage_model.clip_l.transformer
    with torch.inference_mode():
        transformer.text_projection.weight.add_(1.0)
        assert clip_digest(clip) == before
        transformer.text_model.final_layer_norm.weight.add_(1.0)
    assert clip_digest(clip)["weights"] != before["weights"]


def test_the_id_is_the_same_in_another_process(repository):
    here = repository / "tests" / "support"
    program = (
        "import sys, tempfile, pathlib;"
        f"sys.path[:0] = [{str(here)!r}, {str(repository / 'scripts')!r}];"
        "from comfy_in_process import prepare_comfy;"
        "prepare_comfy(pathlib.Path(tempfile.mkdtemp()));"
        "from pack_loader import load_pack; load_pack('pack');"
        "from pair_inputs import identity; print('id', identity())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    finished = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert finished.stdout.split()[-1] == identity()


@pytest.mark.parametrize("clip", [hooked, bypassed])
def test_a_lora_on_the_text_encoder_is_trained_with_and_keeps_its_digest(clip):
    encoder = clip(1.0)
    before = clip_digest(encoder)
    assert before != clip_digest(tiny_clip())
    with_lora = queue(clip=encoder).result[2]["loss"]
    assert clip_digest(encoder) == before == clip_digest(clip(1.0))
    assert queue().result[2]["loss"] != with_lora
    with progress() as steps:
        queue(clip=clip(1.0))
    assert steps == []


@pytest.mark.full
def test_the_digest_of_a_real_width_sdxl_takes_less_than_two_seconds():
    model = real_width_sdxl("cpu")
    generator = torch.Generator().manual_seed(0)
    for weight in model.model.parameters():
        weight.data.random_(-8, 8, generator=generator)
    started = time.process_time()
    model_digest(model)
    assert time.process_time() - started < 2
