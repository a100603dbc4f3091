"""Concepts of a small layer with inputs of their own, and the fusion of them from their Grams."""

from __future__ import annotations

import torch
from least_squares import fused_densely, wave
from pack.lora_ops import LowRank, delta
from pack.lora_ops.fusion import Target, fuse_from_gram
from pack.lora_ops.gram import Gram, GramStream

WIDTH, OUT, RANK = 12, 5, 2


def gram_of(rows: torch.Tensor, weight: float = 1.0, span: torch.Tensor | None = None) -> Gram:
    stream = GramStream(rows.shape[1], span=span)
    stream.add(rows, label="rows", weight=weight)
    return stream.total()


def sum_of(grams: list[Gram], wanted: list[Target]) -> Gram:
    stream = GramStream(grams[0].width, span=grams[0].span)
    for gram, one in zip(grams, wanted, strict=True):
        stream.merge(gram, one.weight)
    return stream.total()


def added(one: Gram, other: Gram, weight: float = 1.0) -> Gram:
    stream = GramStream(one.width)
    stream.merge(one)
    stream.merge(other, weight)
    return stream.total()


def projected(down: torch.Tensor, gram: Gram) -> torch.Tensor:
    """What ``ProjectedStream`` sums up, from the Gram itself."""
    return down.flatten(1).to(gram.matrix) @ gram.matrix


def golden_concepts() -> tuple[list[Target], list[torch.Tensor]]:
    """The two concepts of F1 in methods/mix_of_show.md, section 5."""
    wanted, rows = [], []
    for i in range(2):
        down = 0.5 * wave(RANK, WIDTH, rate=0.7 + 0.3 * i, phase=0.5)
        up = 0.5 * wave(OUT, RANK, rate=1.3 + 0.2 * i, phase=0.3)
        wanted.append(Target(LowRank(down, up)))
        rows.append(wave(3, WIDTH, rate=0.37 + 0.21 * i, phase=0.2 + i))
    return wanted, rows


def concepts(
    count: int = 3, row_count: int = 20, seed: int = 0, width: int = WIDTH
) -> tuple[list[Target], list[torch.Tensor]]:
    """Concepts of mixed ranks, strengths and weights, with more rows than the layer is wide."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    wanted, rows = [], []
    for i in range(count):
        factors = LowRank(draw(RANK + i, width), draw(OUT, RANK + i), alpha=1.5)
        wanted.append(Target(factors, strength=0.7 + 0.3 * i, weight=1.0 + 0.5 * i))
        spread = torch.linspace(1.0, 0.05, width, dtype=torch.float64)
        rows.append(draw(row_count + i, width) * spread)
    return wanted, rows


def two_sines() -> tuple[list[Target], list[torch.Tensor]]:
    """F2: the golden generator through a second sine, with more rows than the layer is wide."""
    wanted, _ = golden_concepts()
    rows = [
        torch.sin(
            3 * wave(30, WIDTH, rate=0.37 + 0.21 * i, phase=0.2 + i)
            + 0.9 * torch.arange(WIDTH, dtype=torch.float64) ** 2
            + torch.arange(30, dtype=torch.float64)[:, None]
        )
        for i in range(2)
    ]
    assert all(torch.linalg.matrix_rank(x) == WIDTH for x in rows)
    return wanted, rows


def fuse(wanted, rows, **settings):
    grams = [gram_of(x) for x in rows]
    parts = [projected(w.factors.down, g) for w, g in zip(wanted, grams, strict=True)]
    return fuse_from_gram(wanted, parts, sum_of(grams, wanted), **settings)


def gram_lbfgs(
    wanted: list[Target], projected: list[torch.Tensor], gram: Gram, *, iterations: int
) -> torch.Tensor:
    """Return the dense change ``(out, in)`` that the paper's optimiser reaches from no change.

    A comparison arm: the released settings of L-BFGS on the same objective, read off the statistics
    in place of the activations. The best evaluated iterate is returned.

    Args:
        wanted: One for each concept.
        projected: As in ``weighted_error``.
        gram: As in ``weighted_error``.
        iterations: 500 for the text encoder and for keys and values, 50 for all other layers.

    Reference: Gu et al. 2023, arXiv:2305.18292, section 3.2.
    """
    asked = sum(one.weight * one.up @ part for one, part in zip(wanted, projected, strict=True))
    change = torch.zeros_like(asked).requires_grad_()
    count = max(1, gram.rows) * asked.shape[0]
    best, best_loss = change.detach().clone(), float("inf")

    def closure() -> float:
        nonlocal best, best_loss
        with torch.no_grad():
            seen = change @ gram.matrix
            loss = float((change * (seen - 2 * asked)).sum()) / count
            change.grad = 2 * (seen - asked) / count
            if loss < best_loss:
                best, best_loss = change.detach().clone(), loss
        return loss

    optimizer = torch.optim.LBFGS(
        [change],
        max_iter=iterations,
        history_size=25,
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    optimizer.step(closure)
    return best


def dense(wanted: list[Target]) -> list[torch.Tensor]:
    return [delta(one.factors) * one.strength for one in wanted]


def oracle(wanted, rows, **settings) -> torch.Tensor:
    weights = [one.weight for one in wanted]
    return fused_densely(dense(wanted), rows, weights=weights, **settings)


def close(found, wanted, rtol=1e-8):
    found = delta(found.factors) if hasattr(found, "factors") else found
    torch.testing.assert_close(found, wanted, rtol=0, atol=rtol * float(wanted.norm()) + 1e-14)


def rows_parts(wanted, rows):
    return [projected(w.factors.down, gram_of(x)) for w, x in zip(wanted, rows, strict=True)]


def whole(wanted, rows):
    return sum_of([gram_of(x) for x in rows], wanted)
