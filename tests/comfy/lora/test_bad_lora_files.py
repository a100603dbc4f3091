"""Bad LoRA files, names and disks: one plain sentence on the node, nothing lost."""

import comfy.lora
import folder_paths
import pytest
import torch
from bad_loras import ARCHITECTURE, KINDS, RANK, WIDE, adapter, bad_files, lora_for
from pack.lora_ops.keys import factor_keys
from pack.nodes.guidance.nodes import ApplyStyleGuidance
from pack.nodes.lora.nodes import ApplyLora, LoadLora, SaveLora
from pack.training.files.lora_state import LoraState
from tiny import tiny, tiny_clip, tiny_cond

BASES = ("sd15", "sd21_v", "sdxl", "sd3", "flux", "flux2", "wan21")
FAMILY = {
    **{"sd15": "SD1.5", "sd21_v": "SD2", "sdxl": "SDXL", "sd3": "SD3"},
    **{"flux": "Flux", "flux2": "Flux.2", "wan21": "Wan 2.1"},
}


def names_of(base):
    return [
        f"diffusion_model.{path}" for path, _ in tiny(base).model.diffusion_model.named_modules()
    ]


def one_sentence(error):
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 500
    assert "; " in text, "it must say what to do"
    return text


def refused_by_apply(base, lora, clip=None):
    with pytest.raises(ValueError, match=r".") as error:
        ApplyLora.execute(tiny(base), lora, 1.0, 1.0, clip=clip)
    return one_sentence(error)


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("other", BASES)
def test_a_lora_of_another_architecture_is_refused(base, other, caplog):
    if base == other:
        patched = ApplyLora.execute(tiny(base), lora_for(base), 1.0, 1.0).result[0]
        assert patched.patches
        assert caplog.text == ""
        return
    text = refused_by_apply(base, lora_for(other))
    assert "must be made for this model" in text
    assert "choose a LoRA made for it" in text


@pytest.mark.parametrize(("base", "other"), [("sd15", "sdxl"), ("sdxl", "sd15"), ("sdxl", "flux")])
def test_the_base_that_metadata_name_is_said(base, other):
    metadata = {"modelspec.architecture": ARCHITECTURE[other]}
    assert f"made for {FAMILY[other]}" in refused_by_apply(base, lora_for(other, metadata))


def test_metadata_that_contradict_fitting_layers_only_warn(caplog):
    lora = lora_for("sd15", {"modelspec.architecture": ARCHITECTURE["sdxl"]})
    assert ApplyLora.execute(tiny("sd15"), lora, 1.0, 1.0).result[0].patches
    assert "made for SDXL; its layers fit this model" in caplog.text


def test_a_part_that_the_model_lacks_is_named_by_number(caplog):
    lora = lora_for("sd15")
    layers = len(lora) // 2
    keys = factor_keys("lora_unet_down_blocks_3_attentions_9_proj_in")
    lora |= {keys.down: torch.ones(RANK, 320), keys.up: torch.ones(320, RANK)}
    patched = ApplyLora.execute(tiny("sd15"), lora, 1.0, 1.0).result[0]
    assert len(patched.patches) == layers
    assert f"1 of the LoRA's {layers + 1} layers are not in this model" in caplog.text
    lora = LoraState(lora, {"modelspec.architecture": ARCHITECTURE["sdxl"]})
    assert f"1 of its {layers + 1} layers are not in this one" in refused_by_apply("sd15", lora)


def test_one_layer_of_another_shape_is_enough_to_refuse():
    lora = lora_for("sd15")
    up = next(key for key in lora if "lora_up" in key)
    lora[up] = torch.ones(lora[up].shape[0] * 2, RANK)
    text = refused_by_apply("sd15", lora)
    assert f"shapes differ in 1 of {len(lora) // 2} layers" in text
    assert "(640, 320) for a weight of (320, 320)" in text


def test_a_transposed_layer_is_refused_though_its_numbers_would_fit():
    lora = lora_for("sd15")
    layer = next(key for key in lora if "attn2_to_k" in key).partition(".")[0]
    keys = factor_keys(layer)
    lora[keys.down], lora[keys.up] = torch.ones(RANK, 320), torch.ones(768, RANK)
    assert "(768, 320) for a weight of (320, 768)" in refused_by_apply("sd15", lora)


def test_a_bias_of_another_shape_is_refused():
    text = refused_by_apply("sd15", {"diffusion_model.out.2.diff_b": torch.ones(7)})
    assert "(7,) for a weight of (4,)" in text


def test_a_bias_that_the_model_has_not_is_refused():
    layer = next(key for key in names_of("sd15") if key.endswith("attn1.to_q"))
    text = refused_by_apply("sd15", {f"{layer}.diff_b": torch.ones(320)})
    assert "(320,) for a weight of ()" in text


def test_a_text_encoder_lora_of_another_width_is_refused():
    keys = factor_keys("lora_te_text_model_encoder_layers_0_mlp_fc1")
    lora = {keys.down: torch.ones(RANK, 1024), keys.up: torch.ones(4096, RANK)}
    assert "(4096, 1024)" in refused_by_apply("sd15", lora, clip=tiny_clip())
    assert "connect CLIP" in refused_by_apply("sd15", lora)


def test_no_matching_key_at_all():
    keys = factor_keys("lora_unet_somewhere_else")
    lora = {keys.down: torch.ones(RANK, 8), keys.up: torch.ones(8, RANK)}
    assert "this model, SD1.5, got one with 1 layers, none" in refused_by_apply("sd15", lora)
    with pytest.raises(ValueError, match="must belong to a LoRA layer"):
        ApplyLora.execute(tiny("sd15"), {"x": torch.ones(2)}, 1.0, 1.0)


def changed_weight(lora, caplog):
    """Return the weight with the LoRA on it, once ComfyUI has loaded the model."""
    model = tiny("sd15")
    patched = ApplyLora.execute(model, lora, 1.0, 1.0).result[0]
    (key,) = patched.patches
    weight = model.model.state_dict()[key].clone()
    changed = comfy.lora.calculate_weight(patched.patches[key], weight.clone(), key)
    assert "ERROR" not in caplog.text
    return weight, changed


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_adapters_are_applied_by_comfyui(kind, caplog):
    weight, changed = changed_weight(adapter(KINDS[kind]), caplog)
    assert changed.shape == weight.shape
    assert not torch.equal(changed, weight)


@pytest.mark.parametrize("kind", KINDS)
def test_every_wrong_shape_and_every_missing_part_of_them_is_refused(kind):
    shapes = KINDS[kind]
    for part, shape in shapes.items():
        optional = part in ("rescale", "dora_scale")
        stages = len(shape) == 4  # of a butterfly: any number will do
        wrong = [{**shapes, part: (side + 1, *shape[1:])} for side in shape[:1] if not stages]
        wrong += [{**shapes, part: (*shape[:-1], side + 1)} for side in shape[-1:]]
        wrong += [{**shapes, part: shape[:-1]}] if shape else [{**shapes, part: (2,)}]
        wrong += [] if optional else [{name: shapes[name] for name in shapes if name != part}]
        for changed in wrong:
            if changed:
                text = refused_by_apply("sd15", adapter(changed))
                assert text.startswith("the LoRA must be")


def test_adapters_for_a_convolution_may_be_flat_or_not(caplog):
    layer = "lora_unet_down_blocks_0_resnets_0_conv1"
    fit = [
        {"lora_up.weight": (WIDE, 2), "lora_down.weight": (2, WIDE * 9)},
        {"lora_up.weight": (WIDE, 2, 1, 1), "lora_down.weight": (2, WIDE, 3, 3)},
        {
            **{"lora_up.weight": (WIDE, 2, 1, 1), "lora_down.weight": (2, WIDE, 1, 1)},
            "lora_mid.weight": (2, 2, 3, 3),
        },
        {"lokr_w1": (8, 8), "lokr_w2": (40, 40, 3, 3)},
        {
            **{"hada_w1_a": (2, WIDE), "hada_w1_b": (2, WIDE), "hada_t1": (2, 2, 3, 3)},
            **{"hada_w2_a": (2, WIDE), "hada_w2_b": (2, WIDE), "hada_t2": (2, 2, 3, 3)},
        },
        {"oft_blocks": (80, 4, 4)},
    ]
    for shapes in fit:
        lora = {f"{layer}.{part}": torch.full(shape, 0.1) for part, shape in shapes.items()}
        lora = {
            key: tensor.triu(1) if key.endswith("blocks") else tensor
            for key, tensor in lora.items()
        }
        weight, changed = changed_weight(lora, caplog)
        assert not torch.equal(weight, changed)
    small = {f"{layer}.lora_up.weight": (WIDE, 2), f"{layer}.lora_down.weight": (2, WIDE)}
    lora = {key: torch.ones(shape) for key, shape in small.items()}
    assert "for a weight of (320, 320, 3, 3)" in refused_by_apply("sd15", lora)


def test_a_layer_that_is_named_twice_is_refused():
    lora = lora_for("sd15")
    layer = next(iter(lora)).partition(".")[0]
    native = next(name for name in names_of("sd15") if name.endswith("attn1.to_q"))
    keys = factor_keys(layer)
    twice = {f"{native}.lora_A.weight": lora[keys.down], f"{native}.lora_B.weight": lora[keys.up]}
    text = refused_by_apply("sd15", {**lora, **twice})
    assert "must name every layer of the model once" in text
    assert native in text


def test_numbers_that_are_not_finite_are_refused_from_other_packs_loaders_too():
    lora = dict(lora_for("sd15"))
    next(iter(lora.values()))[0, 0] = torch.nan
    assert "must be sound, but layer" in refused_by_apply("sd15", lora)
    model = tiny("sd15")
    with pytest.raises(ValueError, match=r"must be sound, but layer .* not finite") as error:
        ApplyStyleGuidance.execute(model, lora, tiny_cond(model), 3.0, 0.2, 1.0, 1.0)
    one_sentence(error)


def test_bad_files_are_refused_in_one_sentence(loras):
    for name, said in bad_files(loras).items():
        with pytest.raises(ValueError, match=r".") as error:
            LoadLora.execute(name)
        text = one_sentence(error)
        assert said in text
        assert name in text
    assert not (loras / "exploded").exists()
    with pytest.raises(ValueError, match="in none of the LoRA folders") as error:
        LoadLora.execute("absent.safetensors")
    one_sentence(error)


def test_the_node_on_the_server_shows_the_sentence(comfy_server):
    folder = comfy_server.base_directory / "models" / "loras"
    for name, said in bad_files(folder).items():
        graph = {
            "1": {"class_type": "PasticheLoadLora", "inputs": {"lora_name": name}},
            "2": {
                "class_type": "PasticheSaveLora",
                "inputs": {"lora": ["1", 0], "filename": "copy", "precision": "fp16"},
            },
        }
        entry = comfy_server.post_prompt(graph)
        errors = [data for kind, data in entry["status"]["messages"] if kind == "execution_error"]
        assert errors[0]["node_id"] == "1"
        assert said in errors[0]["exception_message"]
        assert errors[0]["exception_type"] == "ValueError"
    assert not (folder / "exploded").exists()
    assert not (folder / "copy.safetensors").exists()
    for name in bad_files(folder):
        (folder / name).unlink()


@pytest.mark.parametrize(
    "filename",
    ["../x", "a/../../x", "/abs/x", "C:\\x", "c:/x", "\\\\host\\x", "a:b", "NUL", " ", "a//b"],
)
def test_names_that_leave_the_folder_are_refused(filename, loras, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="filename must be a plain name") as error:
        SaveLora.execute(lora_for("sd15"), filename, "fp16")
    one_sentence(error)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_is_one_sentence_and_leaves_nothing(loras):
    resource = pytest.importorskip("resource", reason="file sizes are limited the POSIX way")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(RuntimeError, match=r"'x\.safetensors' needs .* MB in") as error:
            SaveLora.execute(lora_for("sd15"), "x", "fp32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    one_sentence(error)
    assert list(loras.iterdir()) == []
    assert SaveLora.execute(lora_for("sd15"), "x", "fp32").result == ("x.safetensors",)


def test_the_first_writable_folder_is_taken(loras, tmp_path):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    folder_paths.folder_names_and_paths["loras"][0].insert(0, str(blocked))
    assert SaveLora.execute(lora_for("sd15"), "x", "fp32").result == ("x.safetensors",)
    assert (loras / "x.safetensors").is_file()


def test_no_writable_folder_is_one_sentence(loras, tmp_path, monkeypatch):
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    endings = folder_paths.folder_names_and_paths["loras"][1]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "loras", ([str(blocked)], endings))
    with pytest.raises(RuntimeError, match="one LoRA folder must be writable") as error:
        SaveLora.execute(lora_for("sd15"), "x", "fp32")
    one_sentence(error)
