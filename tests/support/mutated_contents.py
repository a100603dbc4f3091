"""Change the contents of safetensors files that stay readable as such.

Such files come from careless tools or hostile authors. Every kind of change chooses one of several
faults at random.
"""

from __future__ import annotations

import json
import math
import random
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
NAN = {
    "F32": b"\0\0\xc0\x7f",
    "F16": b"\0\x7e",
    "BF16": b"\xc0\x7f",
    "F64": b"\0" * 6 + b"\xf8\x7f",
}
INFINITY = {
    **{"F32": b"\0\0\x80\x7f", "F16": b"\0\x7c", "BF16": b"\x80\x7f"},
    "F64": b"\0" * 6 + b"\xf0\x7f",
}
LARGEST = {
    **{"F32": b"\xff\xff\x7f\x7f", "F16": b"\xff\x7b", "BF16": b"\x7f\x7f"},
    "F64": b"\xff" * 6 + b"\xef\x7f",
}
PATHS = ("../../outside", "/etc/outside", "C:\\outside", "\\\\host\\share\\outside", "a/\0b", "~/x")


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file; its fields need not agree with each other."""

    dtype: object
    shape: object
    data: bytes
    offsets: object = None  # None if they follow from the data


@dataclass(frozen=True)
class File:
    """The contents of a file before it is written."""

    tensors: dict[str, Tensor]
    metadata: object

    def to_bytes(self) -> bytes:
        """Return the file's bytes, with the tensors in their order."""
        entries, blob = {"__metadata__": self.metadata}, b""
        for key, tensor in self.tensors.items():
            last = len(blob) + len(tensor.data)
            offsets = [len(blob), last] if tensor.offsets is None else tensor.offsets
            entries[key] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": offsets}
            blob += tensor.data
        return with_header(json.dumps(entries).encode(), blob)


def with_header(text: bytes, blob: bytes) -> bytes:
    """Return a file that has a header and the tensors' bytes."""
    return struct.pack("<Q", len(text)) + text + blob


def parse(whole: bytes) -> File:
    """Return the contents of a valid file."""
    start = 8 + struct.unpack("<Q", whole[:8])[0]
    entries = json.loads(whole[8:start])
    metadata = entries.pop("__metadata__", {})
    tensors = {}
    for key, entry in entries.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        tensors[key] = Tensor(entry["dtype"], entry["shape"], whole[first:last])
    return File(tensors, metadata)


Draw = random.Random


def _matrix_key(file: File, draw: Draw) -> str:
    return draw.choice([key for key, tensor in file.tensors.items() if len(tensor.shape) > 1])


def _any_key(file: File, draw: Draw) -> str:
    return draw.choice(sorted(file.tensors))


def _with(file: File, key: str, **changes: object) -> File:
    return replace(file, tensors=file.tensors | {key: replace(file.tensors[key], **changes)})


def _renamed(file: File, names: Callable[[str], str]) -> File:
    return replace(file, tensors={names(key): tensor for key, tensor in file.tensors.items()})


def _layer_of(key: str) -> str:
    for ending in (".lora_down.weight", ".lora_up.weight", ".lora_A.weight", ".lora_B.weight"):
        key = key.removesuffix(ending)
    return key.removesuffix(".alpha")


def shape(file: File, draw: Draw) -> File:
    key = _matrix_key(file, draw)
    old = file.tensors[key].shape
    new = draw.choice(
        [
            old[::-1],
            [1, *old],
            [*old, 1],
            [math.prod(old)],
            [old[0] * 2, old[1] // 2],
            [],
            [0, old[1]],
            [-old[0], -old[1]],
            [old[0], old[1] + 1],
            [2**62, 4],
            [1e3, 2],
            None,
            "2x320",
            [str(side) for side in old],
            {"0": old[0]},
            [True, old[1]],
            old[0],
        ]
    )
    return _with(file, key, shape=new)


def dtype(file: File, draw: Draw) -> File:
    new = draw.choice(
        [
            "F64",
            "F32",
            "F16",
            "BF16",
            "F8_E4M3",
            "I64",
            "I32",
            "I16",
            "U8",
            "BOOL",
            "F4",
            "C64",
            "f16",
            "float16",
            "",
            None,
            16,
            ["F16"],
            "F16\0",
            "__class__",
        ]
    )
    return _with(file, _any_key(file, draw), dtype=new)


def dtype_and_shape(file: File, draw: Draw) -> File:
    """Declare a tensor's bytes as numbers of another size, with a shape that fits."""
    key = _matrix_key(file, draw)
    tensor = file.tensors[key]
    new = draw.choice([name for name in BYTES if name != tensor.dtype])
    numbers = len(tensor.data) // BYTES[new]
    rows = tensor.shape[0] if numbers % tensor.shape[0] == 0 else 1
    return _with(file, key, dtype=new, shape=[rows, numbers // rows])


def offsets(file: File, draw: Draw) -> File:
    key = _any_key(file, draw)
    size = len(file.tensors[key].data)
    wild = [[0, size], [size, 0], [4, size + 4], [-size, 0], [0, 2**63], [2**60, 2**60 + size]]
    odd = [[0, size, 1], [0.0, float(size)], ["0", str(size)], None, {}, [0], [None, None]]
    return _with(file, key, offsets=draw.choice(wild + odd))


def overlapping(file: File, draw: Draw) -> File:
    """Let two tensors share bytes, so that the bytes of one belong to none."""
    keys = list(file.tensors)
    starts, position = {}, 0
    for key in keys:
        starts[key], position = position, position + len(file.tensors[key].data)
    one, other = draw.sample([key for key in keys if len(file.tensors[key].data) > 8], 2)
    first = starts[other] + draw.choice([0, 2, 4])
    return _with(file, one, offsets=[first, first + len(file.tensors[one].data)])


def swapped(file: File, draw: Draw) -> File:
    """Swap the data of two tensors of one size, which gives a valid file of another LoRA."""
    one = _matrix_key(file, draw)
    same = [key for key, t in file.tensors.items() if len(t.data) == len(file.tensors[one].data)]
    other = draw.choice(same)
    changed = _with(file, one, data=file.tensors[other].data)
    return _with(changed, other, data=file.tensors[one].data)


def not_finite(file: File, draw: Draw) -> File:
    key = _any_key(file, draw)
    data, kind = bytearray(file.tensors[key].data), file.tensors[key].dtype
    size = BYTES[kind]
    at = size * draw.randrange(len(data) // size)
    data[at : at + size] = draw.choice([NAN, INFINITY])[kind]
    if draw.random() < 0.5:
        data[at + size - 1] |= 0x80  # the sign
    return _with(file, key, data=bytes(data))


def too_large(file: File, draw: Draw) -> File:
    """Set finite numbers so large that products of the factors overflow."""
    keys = [key for key in file.tensors if _layer_of(key) == _layer_of(_matrix_key(file, draw))]
    for key in keys if draw.random() < 0.7 else keys[:1]:
        tensor = file.tensors[key]
        data = LARGEST[tensor.dtype] * (len(tensor.data) // BYTES[tensor.dtype])
        file = _with(file, key, data=data)
    return file


def foreign_key(file: File, draw: Draw) -> File:
    """Rename one key to something that has another meaning, or none."""
    key = _any_key(file, draw)
    new = draw.choice(
        [
            key.replace("lora_", "lora_x"),
            key + "s",
            key[1:],
            key.upper(),
            "x" * 10_000,
            "",
            "__proto__",
            "../" * 10 + key,
            key + "\n\n",
            "ключ.lora_up.weight",
            "\ud800" + key,
            "model.diffusion_model.out.2.weight",
            f"{key}.diff",
            "weight",
            key + "\0",
        ]
    )
    return _renamed(file, lambda old: new if old == key else old)


def foreign_layer(file: File, draw: Draw) -> File:
    """Rename all tensors of one layer to a layer that the model does not have."""
    layer = _layer_of(_matrix_key(file, draw))
    new = draw.choice(
        [
            "lora_unet_somewhere_else",
            "diffusion_model.nowhere.9.proj",
            "lora_te_nowhere",
            layer + "_",
            layer.replace("0", "7"),
            "x" * 10_000,
            "../" + layer,
            "a\nb",
        ]
    )
    return _renamed(
        file, lambda old: new + old.removeprefix(layer) if _layer_of(old) == layer else old
    )


def all_foreign(file: File, draw: Draw) -> File:
    new = draw.choice(["transformer.h.", "model.layers.", "lora_unet_x_", "vision_model."])
    new += f"{draw.randrange(1000)}."
    return _renamed(file, lambda old: new + old)


def foreign_kind(file: File, draw: Draw) -> File:
    """Add a part of another kind of adapter to a layer."""
    layer = _layer_of(_matrix_key(file, draw))
    part = draw.choice(
        [
            "diff",
            "diff_b",
            "set_weight",
            "w_norm",
            "b_norm",
            "dora_scale",
            "reshape_weight",
            "hada_w1_a",
            "lokr_w1",
            "lokr_t2",
            "oft_blocks",
            "rescale",
            "a1.weight",
            "lora_mid",
            "lora_mid.weight",
            "alpha",
            "lora_up.weight.weight",
        ]
    )
    sides = draw.choice([[320, 320], [320], [1], [2, 2, 3, 3], [4, 80, 80], [320, 1], []])
    kind = draw.choice(["F32", "F16", "I64"])
    numbers = Tensor(kind, sides, b"\x01" * (math.prod(sides) * BYTES[kind]))
    return replace(file, tensors=file.tensors | {f"{layer}.{part}": numbers})


def other_kind(file: File, draw: Draw) -> File:
    """Replace a layer by another kind of adapter, sometimes without one of its parts."""
    layer = _layer_of(_matrix_key(file, draw))
    rest = {key: tensor for key, tensor in file.tensors.items() if _layer_of(key) != layer}
    side = draw.choice([320, 128, 64])
    shapes = draw.choice(
        [
            {
                f"hada_w{n}_{end}": [side, 2] if end == "a" else [2, side]
                for n in "12"
                for end in "ab"
            },
            {"lokr_w1": [side // 8, side // 8], "lokr_w2": [8, 8]},
            {"lokr_w1": [side // 8, side // 8], "lokr_w2_a": [8, 2], "lokr_w2_b": [2, 8]},
            {"oft_blocks": [side // 4, 4, 4]},
            {"oft_blocks": [2, side // 4, 4, 4], "rescale": [side, 1]},
            {
                "a1.weight": [side, 2],
                "a2.weight": [2, side],
                "b1.weight": [side, 2],
                "b2.weight": [2, side],
            },
            {"diff": [side, side]},
            {"diff_b": [side]},
        ]
    )
    if draw.random() < 0.3:
        shapes.pop(draw.choice(sorted(shapes)))
    if draw.random() < 0.3 and shapes:
        name = draw.choice(sorted(shapes))
        shapes[name] = [shapes[name][0] + 1, *shapes[name][1:]]
    parts = {
        f"{layer}.{part}": Tensor("F32", sides, struct.pack("<f", 0.01) * math.prod(sides))
        for part, sides in shapes.items()
    }
    return replace(file, tensors=rest | parts)


def twice(file: File, draw: Draw) -> File:
    """Repeat a layer under the key that another trainer would write."""
    layer = _layer_of(_matrix_key(file, draw))
    names = {
        **{"lora_down": "lora_A", "lora_up": "lora_B"},
        **{"lora_A": "lora_down", "lora_B": "lora_up"},
    }
    again = {}
    for key, tensor in file.tensors.items():
        if _layer_of(key) == layer:
            for old, new in names.items():
                if f".{old}." in key:
                    again[key.replace(f".{old}.", f".{new}.")] = tensor
    if draw.random() < 0.5 and not layer.startswith("diffusion_model."):
        block = "diffusion_model.input_blocks.1.1.transformer_blocks.0"
        native = f"{block}.attn{draw.choice('12')}.to_{draw.choice('qkv')}"
        again = {native + key.removeprefix(layer): tensor for key, tensor in again.items()}
    return replace(file, tensors=file.tensors | again)


def missing(file: File, draw: Draw) -> File:
    gone = draw.sample(sorted(file.tensors), draw.choice([1, 1, 1, 2, len(file.tensors)]))
    kept = {key: tensor for key, tensor in file.tensors.items() if key not in gone}
    return replace(file, tensors=kept)


def ranks(file: File, draw: Draw) -> File:
    """Remove or add a row of a factor, or swap the roles of the factors."""
    key = _matrix_key(file, draw)
    tensor = file.tensors[key]
    rows, columns = tensor.shape
    row = len(tensor.data) // rows
    if rows > 1 and draw.random() < 0.4:
        return _with(file, key, shape=[rows - 1, columns], data=tensor.data[:-row])
    if draw.random() < 0.5:
        return _with(file, key, shape=[rows + 1, columns], data=tensor.data + tensor.data[:row])
    layer = _layer_of(key)
    roles = {"lora_down": "lora_up", "lora_up": "lora_down", "lora_A": "lora_B", "lora_B": "lora_A"}

    def role(old: str) -> str:
        if _layer_of(old) != layer:
            return old
        part = old.removeprefix(layer).strip(".").split(".")[0]
        return old.replace(f".{part}", f".{roles.get(part, part)}")

    return _renamed(file, role)


def metadata(file: File, draw: Draw) -> File:
    """Replace a value of the metadata, or all of it, by something that is no text."""
    nested: object = "x"
    for _ in range(draw.choice([1, 3, 500])):
        nested = draw.choice([{"a": nested}, [nested]])
    wrong = draw.choice([nested, None, 1, 0.5, True, [], {}, [["a", "b"]], float("nan")])
    if draw.random() < 0.7:
        return replace(file, metadata={**file.metadata, "modelspec.title": wrong})
    return replace(file, metadata=wrong)


def metadata_texts(file: File, draw: Draw) -> File:
    """Put a hostile text into the metadata."""
    keys = ("modelspec.title", "ss_output_name", "pastiche.style_words", "modelspec.thumbnail")
    config = draw.choice(
        [
            "{",
            "[]",
            '{"lora_alpha": NaN}',
            '{"lora_alpha": [1]}',
            '{"lora_alpha": 1e999}',
            "[" * 9999,
        ]
    )
    hostile = draw.choice([*PATHS, "x" * 200_000, "\ud800", "a\nb\r\n", "<script>", "${HOME}", ""])
    key = draw.choice([*keys, "modelspec.architecture", "../../key", "", "lora_adapter_metadata"])
    text = config if key == "lora_adapter_metadata" else hostile
    return replace(file, metadata={**file.metadata, key: text})


CONTENT_KINDS = (
    shape,
    dtype,
    dtype_and_shape,
    offsets,
    overlapping,
    swapped,
    not_finite,
    too_large,
    foreign_key,
    foreign_layer,
    all_foreign,
    foreign_kind,
    other_kind,
    twice,
    missing,
    ranks,
    metadata,
    metadata_texts,
)
