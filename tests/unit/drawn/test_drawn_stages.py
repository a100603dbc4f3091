"""A training stage: stopped anywhere and resumed it ends with the same bytes."""

import hashlib
from pathlib import Path

import pytest
import torch
from drawn.stages import Stage


class Walk(Stage):
    """The smallest stage with an optimiser: a quadratic, with noise from the step's number."""

    def __init__(self, folder: Path, steps: int = 30, world: str = "w") -> None:
        super().__init__(folder, "walk", world, steps)
        self.at = torch.nn.Parameter(torch.ones(5))
        self.optimizer = torch.optim.AdamW([self.at], lr=0.1)

    def state(self) -> dict:
        return {"at": self.at.detach(), "optimizer": self.optimizer.state_dict()}

    def restore(self, state: dict) -> None:
        with torch.no_grad():
            self.at.copy_(state["at"])
        self.optimizer.load_state_dict(state["optimizer"])

    def step(self, number: int) -> float:
        noise = torch.randn(5, generator=torch.Generator().manual_seed(number))
        loss = (self.at - noise).square().sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def finish(self) -> None:
        self.write_result({"at": self.at.detach()})


def digest(path: Path) -> str:
    return hashlib.sha256(torch.load(path)["at"].numpy().tobytes()).hexdigest()


@pytest.mark.parametrize("stops", [(1,), (7, 8, 29), (15,)])
def test_a_stopped_training_ends_with_the_same_bytes(tmp_path: Path, stops: tuple) -> None:
    assert Walk(tmp_path / "whole").run()
    for stop in stops:
        assert not Walk(tmp_path / "parts").run(until=stop)
    assert Walk(tmp_path / "parts").run()
    assert digest(tmp_path / "parts" / "walk.pt") == digest(tmp_path / "whole" / "walk.pt")


def test_a_checkpoint_of_another_world_is_refused(tmp_path: Path) -> None:
    Walk(tmp_path).run(until=3)
    with pytest.raises(ValueError, match="must be of the world other, got w"):
        Walk(tmp_path, world="other").run()


def test_a_finished_training_is_not_done_again(tmp_path: Path) -> None:
    Walk(tmp_path).run()
    stage = Walk(tmp_path)
    assert stage.run()
    assert stage.done == 30
