"""What words' attention outside a mask costs, cell by cell; and the released masked loss."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_penalty(maps: list[Tensor], mask: Tensor, fill_mask: bool) -> list[float]:
    """Return each row's cost, a loop over rows, sizes, words and cells in float64."""
    found = []
    for row in range(mask.shape[0]):
        total = 0.0
        for one in maps:
            words, height, width = one.shape[1:]
            inside = {}
            for y in range(height):
                for x in range(width):
                    at = (y * mask.shape[2] // height, x * mask.shape[3] // width)
                    inside[y, x] = float(mask[row, 0][at])
            if all(value != 0 for value in inside.values()):
                continue
            for word in range(words):
                highest = max(float(value) for value in one[row, word].flatten())
                shares = {at: float(one[row, word][at]) / highest for at in inside}
                if fill_mask and word == words - 1:
                    apart = [(shares[at] - value) ** 2 for at, value in inside.items()]
                    total += sum(apart) / len(apart)
                else:
                    outside = [shares[at] for at, value in inside.items() if value == 0]
                    total += sum(outside) / len(outside)
        found.append(total)
    return found


def released_masked_loss(predicted: Tensor, target: Tensor, mask: Tensor) -> float:
    """Return the released code's masked loss, ``(batch, channel, h, w)`` and ``(batch, h, w)``."""
    batch = []
    for row in range(predicted.shape[0]):
        above = below = 0.0
        for y in range(mask.shape[1]):
            for x in range(mask.shape[2]):
                below += float(mask[row, y, x])
                for channel in range(predicted.shape[1]):
                    error = float(predicted[row, channel, y, x] - target[row, channel, y, x])
                    above += float(mask[row, y, x]) * error**2
        batch.append(above / below)
    return sum(batch) / len(batch)


def wave(shape: tuple[int, ...], a: float, phase: float) -> Tensor:
    """Return ``sin(a k + phase)`` over the flat index k, float64."""
    count = torch.Size(shape).numel()
    return torch.sin(a * torch.arange(count, dtype=torch.float64) + phase).reshape(shape)
