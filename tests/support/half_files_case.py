"""Save and load halves."""

import pytest
import torch
from pack.lora_ops import PartlyLearnable
from pack.lora_ops.halves import CONTENT_OWNS
from pack.lora_ops.parametrizations.partly_learnable import basis_digest
from pack.nodes.break_for_make.nodes_files import LoadHalf, SaveHalf
from pack.nodes.bridge.families import identify
from pack.nodes.trainer.target_layers import training_sites
from pack.training.files.half import HalfMetadata
from pack.training.files.lora_state import lora_state

RANK = 4
TOKENS = {"content": "snq", "style": "w@z"}


def half_of(model, role="content", *, start="orthogonal", owner=CONTENT_OWNS, basis_seed=0):
    """Return a half of a model; none of its learnt parts is close to its initial value."""
    sites = training_sites(model, "attention")
    shapes = {name: site.shape for name, site in sites.items()}
    kind = PartlyLearnable(basis_seed, start)
    generator = torch.Generator().manual_seed({"content": 1, "style": 2}[role])
    layers = {}
    for name, shape in shapes.items():
        parts = kind.init(shape, RANK, generator, name)
        parts["up"] = torch.randn(parts["up"].shape, generator=generator) * 0.05
        parts["down"] = torch.randn(parts["down"].shape, generator=generator) / shape[1] ** 0.5
        layers[name] = kind.factors(parts)
    metadata = HalfMetadata(
        role, basis_digest(shapes, RANK, basis_seed, start), owner, TOKENS[role]
    )
    architecture = {"modelspec.architecture": identify(model).architecture}
    return lora_state(layers, {**architecture, **metadata.as_metadata()})


def save(half, filename="my_half", precision="fp32", **more):
    (name,) = SaveHalf.execute(half, filename, precision, **more).result
    return name


def load(name, role="as the file says", content_owns="as the file says"):
    half, lora = LoadHalf.execute(name, role, content_owns).result
    assert lora is half
    return half


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refusal(name, *choices):
    """Return the message with which a file is refused, one sentence that names the file."""
    with pytest.raises(ValueError, match=name) as caught:
        load(name, *choices)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text
