"""The study of messages: the answers of all nodes to bad input, from the cases of the tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path += [str(TESTS / folder) for folder in ("support", "oracles")]
