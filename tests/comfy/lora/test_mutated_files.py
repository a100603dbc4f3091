"""500 spoilt files for every loader: each is loaded whole, or refused in one plain sentence."""

from __future__ import annotations

import json
import struct
import urllib.error
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import comfy.lora
import folder_paths
import pytest
import torch
from lora_files_case import unet_lora
from mutated_contents import BYTES
from mutations import KINDS, NEVER_WHOLE, Mutant, mutants
from pack.lora_ops import LowRank, delta
from pack.nodes.guidance.nodes import ApplyStyleGuidance
from pack.nodes.lora.layers import lora_layers
from pack.nodes.lora.nodes import ApplyLora, LoadLora, SaveLora
from pack.training.files.checkpoint import latest_checkpoint, load_checkpoint
from pack.training.files.lora_file import sound
from pack.training.runs.run_store import load_run
from pair_inputs import queue
from tiny import tiny, tiny_cond
from torch import Tensor

COUNT = 500
BASES = {"sd15": "fp16", "sd3": "fp32"}
DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn},
}
ENDINGS = {
    **{".lora_down.weight": "down", ".lora_up.weight": "up"},
    **{".lora_A.weight": "down", ".lora_B.weight": "up", ".alpha": "alpha"},
}
IN_THE_LOG = ("ERROR", "NOT LOADED", "not loaded", "MISMATCH", "NOT MERGED", "Traceback")
"""How ComfyUI tells that a part of a LoRA does nothing."""


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A LoRA file of each spelling as Save LoRA writes it, by base."""
    folder = tmp_path_factory.mktemp("originals")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        known = folder_paths.folder_names_and_paths
        patch.setitem(known, "loras", ([str(folder)], known["loras"][1]))
        for base, precision in BASES.items():
            lora = unet_lora(tiny(base))
            lora.metadata |= {"pastiche.style_words": "in ink", "pastiche.steps": "12"}
            (name,) = SaveLora.execute(lora, base, precision, trigger="ink").result
            found[base] = (folder / name).read_bytes()
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as the train node leaves it."""
    output = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_paths, "output_directory", str(output))
        queue()
    (run,) = (output / "pastiche").iterdir()
    return run


def one_sentence(error: Exception) -> str:
    text = str(error)
    assert type(error) is ValueError, repr(error)
    assert "\n" not in text
    assert len(text) < 600
    assert "; " in text, f"it must say what to do: {text}"
    return text


def said_by(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a sound file's tensors and metadata, byte by byte, apart from the code under test."""
    start = 8 + struct.unpack("<Q", data[:8])[0]
    entries = json.loads(data[8:start])
    metadata = entries.pop("__metadata__", None) or {}
    tensors = {}
    for key, entry in entries.items():
        first, last = entry["data_offsets"]
        buffer = bytearray(data[start + first : start + last])
        dtype = DTYPES[entry["dtype"]]
        tensors[key] = torch.frombuffer(buffer, dtype=dtype).reshape(entry["shape"])
    return tensors, metadata


def layers_of(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Return a file's low-rank layers; those of other kinds have other parts."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        ending = next((ending for ending in ENDINGS if key.endswith(ending)), None)
        layer, part = (key.removesuffix(ending), ENDINGS[ending]) if ending else (key, "other")
        if not ending:
            layer = key.rpartition(".")[0].removesuffix(".lora_mid")
        layers.setdefault(layer, {})[part] = tensor
    return layers


def product(parts: dict[str, Tensor]) -> Tensor:
    """Return what a low-rank layer adds to a weight, ``(row, column)``."""
    down, up = parts["down"].double().flatten(1), parts["up"].double().flatten(1)
    alpha = float(parts["alpha"]) if "alpha" in parts else len(down)
    return alpha / len(down) * up @ down


def assert_same(tensors: dict[str, Tensor], lora: dict[str, Tensor]) -> None:
    assert len(lora) == len(tensors)
    for key, tensor in tensors.items():
        assert lora[key].dtype == tensor.dtype
        assert lora[key].shape == tensor.shape
        mine, theirs = (t.reshape(-1).view(torch.uint8) for t in (lora[key], tensor))
        assert torch.equal(mine, theirs)


def assert_added(parts: dict[str, Tensor], change: Tensor) -> None:
    wanted = product(parts)
    assert torch.isfinite(change).all()
    assert (change.flatten(1).double() - wanted).norm() <= 1e-3 * wanted.norm() + 1e-30


def loaded(mutant: Mutant, folder: Path) -> dict[str, Tensor]:
    path = folder / "mutant.safetensors"
    path.write_bytes(mutant.data)
    (lora,) = LoadLora.execute(path.name).result
    tensors, metadata = said_by(mutant.data)
    if "lora_adapter_metadata" in metadata:
        assert set(lora) >= set(tensors)
    else:
        assert_same({key: tensors[key] for key in tensors}, respelled_back(lora, tensors))
        assert lora.metadata == metadata
    return lora


def respelled_back(lora: dict[str, Tensor], tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the LoRA under the file's keys: ours are other spellings of some."""
    if set(lora) == set(tensors):
        return lora
    spellings = (("lora_A", "lora_down"), ("lora_B", "lora_up"))
    found = {}
    for key in tensors:
        other = key
        for native, kohya in spellings:
            if other not in lora:
                swap = (kohya, native) if f".{kohya}." in key else (native, kohya)
                other = key.replace(f".{swap[0]}.", f".{swap[1]}.")
        found[key] = lora[other]
    return found


def applied_whole(base: str, lora: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    """Apply the LoRA and see every layer's change arrive in the model's weights."""
    model = tiny(base)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = layers_of(lora)
    patched = ApplyLora.execute(model, lora, 1.0, 1.0).result[0]
    weights = model.model.state_dict()
    for layer in [layer for layer in layers if layer in names]:
        parts, key = layers[layer], names[layer]
        if "other" in parts:
            continue
        change = comfy.lora.calculate_weight(
            patched.patches[key], torch.zeros_like(weights[key]), key
        )
        assert_added(parts, change)
    for key, patches in patched.patches.items():
        comfy.lora.calculate_weight(patches, weights[key].clone(), key)
    said_of_the_rest(layers, names, caplog)


def guided_whole(base: str, lora: dict[str, Tensor], caplog: pytest.LogCaptureFixture) -> None:
    """Put the LoRA on single rows and see every layer's factors arrive at its site."""
    model = tiny(base)
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    layers = layers_of(lora)
    ApplyStyleGuidance.execute(model, lora, tiny_cond(model), 3.0, 0.2, 1.0, 1.0)
    sites, adapter = lora_layers(model, sound(lora)).on(model)
    known = [layer for layer in layers if layer in names]
    assert set(sites) == {names[layer] for layer in known}
    for layer in known:
        factors = adapter.layers[names[layer]]
        exact = LowRank(factors.down.double(), factors.up.double(), factors.alpha)
        assert_added(layers[layer], delta(exact))
    said_of_the_rest(layers, names, caplog)


def said_of_the_rest(layers: dict, names: dict, caplog: pytest.LogCaptureFixture) -> None:
    if any(layer not in names and not layer.startswith("lora_te") for layer in layers):
        assert "are not in this model and are left out" in caplog.text
    assert not any(word in caplog.text for word in IN_THE_LOG), caplog.text


def offers(originals: dict[str, bytes]) -> Iterator[tuple[str, Mutant]]:
    """Yield every mutant with the base its LoRA was made for."""
    bases = list(originals)
    for index, mutant in enumerate(mutants(list(originals.values()), COUNT)):
        yield bases[index // len(KINDS) % len(bases)], mutant


def test_the_mutants_are_500_different_files_of_every_kind(originals):
    found = [mutant for _, mutant in offers(originals)]
    different = {mutant.data for mutant in found} - set(originals.values())
    assert len(different) > 0.99 * COUNT  # a few faults are soon used up
    assert min(Counter(mutant.kind for mutant in found).values()) >= COUNT // len(KINDS)
    assert len({KINDS[mutant.kind] for mutant in found}) == len(KINDS)


def test_the_originals_are_loaded_whole(originals, loras, caplog):
    for base, data in originals.items():
        lora = loaded(Mutant("whole", "whole", data), loras)
        applied_whole(base, lora, caplog)
        guided_whole(base, lora, caplog)
    assert caplog.text == ""


def test_every_lora_loader_takes_a_mutant_whole_or_says_what_is_wrong(originals, loras, caplog):
    outcomes = {stage: Counter() for stage in ("load", "apply", "guide")}
    before = sorted(loras.parent.rglob("*"))
    for base, mutant in offers(originals):
        try:
            lora = loaded(mutant, loras)
        except ValueError as error:
            one_sentence(error)
            outcomes["load"][mutant.kind] += 1
            continue
        for stage, offer in (("apply", applied_whole), ("guide", guided_whole)):
            caplog.clear()
            try:
                offer(base, lora, caplog)
            except ValueError as error:
                one_sentence(error)
                outcomes[stage][mutant.kind] += 1
            except Exception as error:
                raise AssertionError(f"{mutant.name} at {stage}") from error
    assert sorted(loras.parent.rglob("*")) == sorted([*before, loras / "mutant.safetensors"])
    made = Counter(mutant.kind for _, mutant in offers(originals))
    refused = {kind: sum(o[kind] for o in (outcomes["load"], outcomes["apply"])) for kind in made}
    assert {kind for kind in NEVER_WHOLE if refused[kind] != made[kind]} == set()
    assert 300 < sum(refused.values()) < COUNT - 50  # neither all refused nor all taken


def test_a_mutant_that_is_loaded_is_saved_where_it_should(originals, loras, tmp_path):
    saved = 0
    for _, mutant in offers(originals):
        if mutant.kind != "metadata_texts":
            continue
        try:
            lora = loaded(mutant, loras)
            (name,) = SaveLora.execute(lora, "copy", "bf16").result
        except ValueError as error:
            one_sentence(error)
            continue
        saved += 1
        assert name.startswith("copy")
    assert saved > 5
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.parent for path in files} == {loras}
    assert {path.name[:4] for path in files} == {"copy", "muta"}


def test_no_mutated_lora_is_taken_for_a_checkpoint(originals, tmp_path):
    path = tmp_path / "step_00000001.safetensors"
    for _, mutant in offers(originals):
        path.write_bytes(mutant.data)
        with pytest.raises(ValueError, match="must be") as error:
            load_checkpoint(path)
        assert "\n" not in str(error.value)
        assert len(str(error.value)) < 600


def test_a_mutated_checkpoint_is_passed_over_for_the_one_before(trained, tmp_path):
    whole = max(trained.rglob("step_*.safetensors")).read_bytes()
    before = tmp_path / "step_00000002.safetensors"
    latest = tmp_path / "step_00000003.safetensors"
    before.write_bytes(whole)
    latest.write_bytes(whole)
    original, notes = latest_checkpoint(tmp_path, 3)
    assert notes == []
    used = 0
    for mutant in mutants([whole], COUNT):
        latest.write_bytes(mutant.data)
        found, notes = latest_checkpoint(tmp_path, 3)
        assert found is not None
        assert_same(dict(original.tensors), dict(found.tensors))
        assert (found.step, found.scalars) == (
            original.step,
            original.scalars,
        )
        assert found.curves == original.curves
        used += not notes
        for note in notes:
            assert note.startswith("checkpoint step_00000003.safetensors was not used: ")
            assert "\n" not in note
    assert used < COUNT / 20  # those whose bytes came out as they were


def test_a_stored_run_with_a_mutated_lora_is_refused_by_its_folder(trained):
    (folder,) = [path for path in trained.iterdir() if (path / "run.json").is_file()]
    file = folder / "style.safetensors"
    whole = file.read_bytes()
    try:
        for mutant in mutants([whole], COUNT):
            file.write_bytes(mutant.data)
            with pytest.raises(ValueError, match="must be whole") as error:
                load_run(folder)
            assert str(folder) in one_sentence(error.value)
    finally:
        file.write_bytes(whole)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{}", '{"format": 1}', '{"format": 1, "loras": ["style"]}', "{" * 9999],
)
def test_a_stored_run_with_a_spoilt_description_is_refused_by_its_folder(trained, text):
    (folder,) = [path for path in trained.iterdir() if (path / "run.json").is_file()]
    whole = (folder / "run.json").read_bytes()
    (folder / "run.json").write_text(text)
    try:
        with pytest.raises(ValueError, match="must be whole") as error:
            load_run(folder)
        assert str(folder) in one_sentence(error.value)
    finally:
        (folder / "run.json").write_bytes(whole)


ON_THE_SERVER = (
    "truncated",
    "header_length",
    "header_bytes",
    "another_encoding",
    "another_format",
    "name_twice",
    "shape",
    "dtype",
    "overlapping",
    "not_finite",
    "foreign_key",
    "foreign_layer",
    "metadata",
    "metadata_texts",
)


def status_of(server, path: str, **query: str) -> int:
    try:
        server.get(path, **query)
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def test_a_server_survives_them(originals, comfy_server):
    folder = comfy_server.base_directory / "models" / "loras"
    process = comfy_server.process.pid
    refused = 0
    names = []
    for index, kind in enumerate(ON_THE_SERVER):
        seed = list(KINDS).index(kind) + len(KINDS) * index
        (mutant,) = mutants(list(originals.values()), 1, seed)
        assert mutant.kind == kind
        name = f"{mutant.name}.safetensors"
        names.append(name)
        (folder / name).write_bytes(mutant.data)
        assert status_of(comfy_server, "/view_metadata/loras", filename=name) in (200, 404, 500)
        graph = {
            "1": {"class_type": "PasticheLoadLora", "inputs": {"lora_name": name}},
            "2": {
                "class_type": "PasticheSaveLora",
                "inputs": {"lora": ["1", 0], "filename": f"copy_{index}", "precision": "fp32"},
            },
        }
        entry = comfy_server.post_prompt(graph)
        for event, data in entry["status"]["messages"]:
            if event == "execution_error":
                refused += 1
                assert data["exception_type"] == "ValueError"
                text = data["exception_message"].strip()
                assert "\n" not in text
                assert "; " in text
    (folder / "whole.safetensors").write_bytes(originals["sd15"])
    shown = json.loads(comfy_server.get("/view_metadata/loras", filename="whole.safetensors"))
    assert shown["pastiche.style_words"] == "in ink"
    assert 8 <= refused < len(ON_THE_SERVER)
    assert comfy_server.process.pid == process
    assert comfy_server.process.poll() is None
    for path in [*folder.glob("copy_*"), *(folder / name for name in names)]:
        path.unlink()
    (folder / "whole.safetensors").unlink()


def test_the_mutations_know_every_dtype_they_write():
    assert set(BYTES) <= set(DTYPES)
