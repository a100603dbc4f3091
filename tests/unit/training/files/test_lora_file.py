"""LoRA files: every trainer's grammar, damage of every kind, and writing whole or not at all."""

import json
import os
import pickle
import random
import struct

import pytest
import safetensors.torch
import torch
from pack.lora_ops.keys import factor_keys
from pack.training.files.lora_file import in_precision, rank_and_alpha, read_lora
from pack.training.files.lora_state import LoraState
from pack.training.files.tensor_file import pack_tensors

BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0.attn2"
KOHYA = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2"
RANK = 4


def factors(seed=0, outer=8, inner=6, rank=RANK):
    """Return (down, up)."""
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(rank, inner, generator=generator),
        torch.randn(outer, rank, generator=generator),
    )


def pairs(spelling, layers=("to_q", "to_k", "to_v", "to_out.0")):
    """Return tensors of four layers, keyed by ``spelling(layer) -> (down key, up key)``."""
    tensors = {}
    for seed, layer in enumerate(layers):
        down_key, up_key = spelling(layer)
        tensors[down_key], tensors[up_key] = factors(seed)
    return tensors


def write(path, tensors, metadata=None):
    safetensors.torch.save_file(tensors, str(path), metadata=metadata)
    return path


def message(path):
    """Return what reading a file is refused with: one line, one sentence."""
    with pytest.raises(ValueError, match=r".") as caught:
        read_lora(path)
    text = str(caught.value)
    assert "\n" not in text
    assert path.name in text
    assert len(text) < 400
    return text


GRAMMARS = {
    "kohya": lambda layer: factor_keys(f"{KOHYA}_{layer.replace('.', '_')}")[:2],
    "diffusers": lambda layer: (
        f"unet.{BLOCK}.{layer}.lora.down.weight",
        f"unet.{BLOCK}.{layer}.lora.up.weight",
    ),
    "diffusers 0.22's trainers": lambda layer: (
        f"unet.unet.{BLOCK}.{layer}.lora.down.weight",
        f"unet.unet.{BLOCK}.{layer}.lora.up.weight",
    ),
    "peft": lambda layer: (
        f"unet.{BLOCK}.{layer}.lora_A.weight",
        f"unet.{BLOCK}.{layer}.lora_B.weight",
    ),
    "peft, named adapter": lambda layer: (
        f"base_model.model.{BLOCK}.{layer}.lora_A.default.weight",
        f"base_model.model.{BLOCK}.{layer}.lora_B.default.weight",
    ),
    "attention processors": lambda layer: (
        f"unet.{BLOCK}.processor.{layer.removesuffix('.0')}_lora.down.weight",
        f"unet.{BLOCK}.processor.{layer.removesuffix('.0')}_lora.up.weight",
    ),
}


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_every_unet_grammar_is_the_same_lora(tmp_path, grammar):
    path = write(tmp_path / "a.safetensors", pairs(GRAMMARS[grammar]), {"who": "me"})
    lora = read_lora(path)
    expected = pairs(GRAMMARS["kohya"])
    assert set(lora) == set(expected)
    assert all(torch.equal(lora[key], expected[key]) for key in expected)
    assert lora.metadata == {"who": "me"}
    assert len({tensor.untyped_storage().data_ptr() for tensor in lora.values()}) == len(lora)
    assert all(tensor.is_contiguous() for tensor in lora.values())


def test_a_core_trained_file_keeps_every_tensor(tmp_path):
    layer = "diffusion_model.blocks.0.self_attn.q"
    down, up = factors()
    tensors = {
        f"{layer}.lora_down.weight": down,
        f"{layer}.lora_up.weight": up,
        f"{layer}.alpha": torch.tensor(1.0),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(6),
        f"{layer}.diff_b": torch.ones(8),
    }
    lora = read_lora(write(tmp_path / "core.safetensors", tensors))
    keys = factor_keys(layer)
    assert torch.equal(lora[keys.down], down)
    assert torch.equal(lora[keys.up], up)
    assert lora[keys.alpha] == 1.0
    assert len(lora) == len(tensors)


@pytest.mark.parametrize(
    ("config", "alpha"),
    [
        ({"unet.lora_alpha": 2, "unet.r": RANK}, 2.0),
        ({"lora_alpha": 2, "r": RANK}, 2.0),
        ({"unet.lora_alpha": 2, "unet.use_rslora": True}, 4.0),
        ({"text_encoder.lora_alpha": 2}, None),
        ({}, None),
    ],
)
def test_the_alpha_of_pefts_configuration_becomes_a_tensor(tmp_path, config, alpha):
    metadata = {"lora_adapter_metadata": json.dumps(config)} if config else {}
    lora = read_lora(write(tmp_path / "a.safetensors", pairs(GRAMMARS["peft"]), metadata))
    found = [float(value) for key, value in lora.items() if key.endswith(".alpha")]
    assert found == ([] if alpha is None else [alpha] * 4)
    assert "lora_adapter_metadata" not in lora.metadata


def test_a_scale_that_is_not_understood_is_refused(tmp_path):
    config = {"unet.lora_alpha": 2, "unet.alpha_pattern": {"to_q": 3}}
    metadata = {"lora_adapter_metadata": json.dumps(config)}
    path = write(tmp_path / "a.safetensors", pairs(GRAMMARS["peft"]), metadata)
    assert "gives layers an alpha each" in message(path)


def test_a_pickle_is_not_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "exploded"),))

    for name in ("a.ckpt", "a.pt", "a.safetensors"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
        assert "not opened" in message(tmp_path / name)
    torch.save(pairs(GRAMMARS["kohya"]), tmp_path / "zip.safetensors")
    assert "a pickle under that name" in message(tmp_path / "zip.safetensors")
    assert not (tmp_path / "exploded").exists()


def test_what_is_no_safetensors_file(tmp_path):
    path = tmp_path / "a.safetensors"
    for content in (b"", b"short", b"<html>not found</html>", os.urandom(500)):
        path.write_bytes(content)
        assert "must be a" in message(path)
    assert "must be readable" in message(tmp_path / "absent.safetensors")
    (tmp_path / "folder.safetensors").mkdir()
    assert "must be readable" in message(tmp_path / "folder.safetensors")


def test_a_truncated_file_says_how_much_is_missing(tmp_path):
    path = write(tmp_path / "a.safetensors", pairs(GRAMMARS["kohya"]))
    whole = path.read_bytes()
    for kept in (10, 200, len(whole) - 1):
        path.write_bytes(whole[:kept])
        assert f"cut short, {kept} of at least" in message(path)


def with_header(header, data=b"\0" * 96):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(first, last, shape=(4, 6), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [first, last]}


@pytest.mark.parametrize(
    "header",
    [
        b"[1, 2]",
        b"{" * 5000,
        b'{"a.alpha": "\xff"}',
        b'{"a.alpha": 1}',
        {"a.lora_up.weight": entry(0, 96), "a.lora_down.weight": entry(48, 144)},
        {"a.lora_up.weight": entry(0, 96), "a.lora_down.weight": entry(0, 96)},
        {"a.lora_up.weight": entry(4, 100)},
        {"a.lora_up.weight": entry(96, 0)},
        {"a.lora_up.weight": entry(0, 96, (4, 7))},
        {"a.lora_up.weight": entry(0, 96, (-4, -6))},
        {"a.lora_up.weight": entry(0, 96, (4, 6.0))},
        {"a.lora_up.weight": entry(0, 0, (0, 6))},
        {"a.lora_up.weight": entry(0, 96, (2**40, 2**40))},
        {"a.lora_up.weight": entry(0, 96, dtype="F4")},
        {"a.lora_up.weight": entry(0, 48, (2, 6))},
        {"__metadata__": {"a": 1}, "a.lora_up.weight": entry(0, 96)},
        {"__metadata__": [], "a.lora_up.weight": {**entry(0, 96), "more": 1}},
        b'{"a.alpha":{"dtype":"F32","shape":[24],"data_offsets":[0,96]},'
        b'"a.alpha":{"dtype":"F32","shape":[24],"data_offsets":[0,96]}}',
    ],
)
def test_a_header_that_lies_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(header))
    assert "must be a whole safetensors file" in message(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model.diffusion_model.out.2.weight": torch.ones(2)}, "must belong to a LoRA layer"),
        ({"x.lora_up.weight": torch.ones(8, 4)}, "only one of its two factors"),
        ({"x.lora_up.weight": torch.ones(8, 4), "x.lora_down.weight": torch.ones(3, 6)}, "rank"),
        ({"x.lora_up.weight": torch.ones(8), "x.lora_down.weight": torch.ones(6)}, "shapes"),
        ({"x.alpha": torch.tensor(4.0)}, "an alpha and nothing else"),
        ({f"{KOHYA}_to_q.alpha": torch.ones(2)}, "an alpha of 2 numbers"),
        ({f"{KOHYA}_to_q.alpha": torch.tensor(float("nan"))}, "not finite"),
        ({f"{KOHYA}_to_q.lora_up.weight": torch.full((8, 4), torch.nan)}, "not finite"),
        ({f"{KOHYA}_to_q.lora_up.weight": torch.full((8, 4), torch.inf)}, "not finite"),
        ({f"{KOHYA}_to_q.lora_up.weight": torch.full((8, 4), 1e6)}, "by more than 65504"),
        ({f"{KOHYA}_to_q.diff": torch.ones(8, 6)}, "in two ways, as LoRA and as diff"),
        ({"x.hada_w1_a": torch.ones(8, 2)}, "lacks hada_w1_b"),
        ({"x.lokr_w1": torch.ones(2, 2), "x.lokr_w2_a": torch.ones(4, 2)}, "lacks lokr_w2_b"),
        ({"x.oft_blocks": torch.ones(2, 4, 3)}, "rotations of shape"),
        ({"x.dora_scale": torch.ones(8, 1)}, "has dora_scale and nothing else"),
        (
            {f"{KOHYA}_to_q.lora_up.weight": torch.ones(8, 4, dtype=torch.int32)},
            "whole numbers",
        ),
    ],
)
def test_a_whole_file_that_is_no_sound_lora_is_refused(tmp_path, change, said):
    tensors = {**pairs(GRAMMARS["kohya"]), **change}
    assert said in message(write(tmp_path / "a.safetensors", tensors))


def test_fp8_numbers_are_checked_too(tmp_path):
    tensors = {key: t.to(torch.float8_e4m3fn) for key, t in pairs(GRAMMARS["kohya"]).items()}
    path = write(tmp_path / "a.safetensors", tensors)
    assert len(read_lora(path)) == 8
    tensors[f"{KOHYA}_to_q.lora_up.weight"][0, 0] = torch.nan
    assert "not finite" in message(write(path, tensors))


def test_a_file_without_any_layer_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header({"__metadata__": {}}, b""))
    assert "without any layer" in message(path)


def test_a_checkpoint_is_refused_by_its_header_alone(tmp_path, monkeypatch):
    path = write(tmp_path / "a.safetensors", {"model.diffusion_model.out.2.weight": torch.ones(2)})
    monkeypatch.setattr("pack.training.files.lora_file.read_tensors", None)
    assert "must belong to a LoRA layer" in message(path)


def mutated(whole, generator):
    """Return a file with one random fault: in its length, header or data, or cut or padded."""
    data = bytearray(whole)
    header = 8 + struct.unpack("<Q", whole[:8])[0]
    kind = generator.randrange(7)
    if kind == 0:
        data[generator.randrange(8)] = generator.randrange(256)
    elif kind == 1:
        for _ in range(generator.randint(1, 4)):
            data[generator.randrange(8, header)] = generator.randrange(256)
    elif kind == 2:
        digits = [i for i in range(8, header) if chr(data[i]).isdigit()]
        data[generator.choice(digits)] = ord(str(generator.randrange(10)))
    elif kind == 3:
        for _ in range(generator.randint(1, 40)):
            data[generator.randrange(header, len(data))] = generator.randrange(256)
    elif kind == 4:
        del data[generator.randrange(len(data)) :]
    elif kind == 5:
        at = generator.randrange(len(data))
        data[at:at] = generator.randbytes(generator.randint(1, 30))
    else:
        at = generator.randrange(len(data) - 1)
        del data[at : at + generator.randint(1, 30)]
    return bytes(data)


def check_mutations(tmp_path, seeds):
    """Read mutated files: each is a sound LoRA or one sentence; return how many were refused."""
    tensors = pairs(GRAMMARS["kohya"])
    tensors = {key: tensor.half() for key, tensor in tensors.items()}
    whole = write(tmp_path / "whole.safetensors", tensors, {"a": "b"}).read_bytes()
    path = tmp_path / "mutated.safetensors"
    messages = {}
    for seed in seeds:
        path.write_bytes(mutated(whole, random.Random(seed)))
        try:
            lora = read_lora(path)
        except ValueError as error:
            messages[seed] = str(error)
            continue
        assert rank_and_alpha(lora) == (RANK, RANK), seed
        assert all(torch.isfinite(tensor).all() for tensor in lora.values()), seed
        assert len(lora) == len(tensors), seed
    for seed, text in messages.items():
        assert "\n" not in text, seed
        assert path.name in text, seed
    return len(messages)


def test_100_mutated_files_are_read_soundly_or_refused_in_one_sentence(tmp_path):
    assert 60 <= check_mutations(tmp_path, range(100)) < 100


@pytest.mark.full
def test_500_more_mutated_files(tmp_path):
    assert 300 <= check_mutations(tmp_path, range(100, 600)) < 500


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 0.0), ("fp16", 5e-4), ("bf16", 4e-3)])
def test_precision_rounds_factors_and_keeps_alpha(precision, bound):
    down, up = factors()
    keys = factor_keys("lora_unet_x")
    lora = {keys.down: down, keys.up: up, keys.alpha: torch.tensor(0.3)}
    stored = in_precision(lora, precision)
    assert stored[keys.alpha] == lora[keys.alpha]
    for key in (keys.down, keys.up):
        assert (stored[key].float() - lora[key]).abs().max() <= bound * lora[key].abs().max()


def test_shared_and_strided_tensors_of_a_plain_dict_are_parted():
    down, _ = factors()
    wide = torch.randn(RANK, 8).T
    lora = {}
    for layer in ("lora_unet_a", "lora_unet_b"):
        lora |= {factor_keys(layer).down: down, factor_keys(layer).up: wide}
    stored = in_precision(lora, "fp32")
    assert len({tensor.data_ptr() for tensor in stored.values()}) == 4
    assert len(pack_tensors(stored).data) == 4 * (2 * RANK * 6 + 2 * RANK * 8)


def test_numbers_beyond_fp16_are_refused_not_saved_as_infinity():
    down, up = factors()
    keys = factor_keys("lora_unet_x")
    lora = {keys.down: down * 1e-6, keys.up: up * 1e6}
    with pytest.raises(ValueError, match="choose bf16 or fp32"):
        in_precision(lora, "fp16")
    assert in_precision(lora, "bf16")


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({}, "no layers"),
        ({"x.weight": torch.ones(2)}, "must belong to a LoRA layer"),
        ({"x.lora_up.weight": torch.full((2, 2), torch.nan)}, "not finite"),
    ],
)
def test_what_is_no_lora_is_not_saved(lora, said):
    with pytest.raises(ValueError, match=said):
        in_precision(lora, "fp32")


def test_rank_and_alpha_are_told_where_all_layers_agree():
    down, up = factors()
    keys = factor_keys("lora_unet_x")
    lora = LoraState({keys.down: down, keys.up: up})
    assert rank_and_alpha(lora) == (4, 4.0)
    assert rank_and_alpha(lora | {keys.alpha: torch.tensor(2.0)}) == (4, 2.0)
    other = factor_keys("lora_unet_y")
    small = factors(rank=2)
    assert rank_and_alpha(lora | {other.down: small[0], other.up: small[1]}) is None
