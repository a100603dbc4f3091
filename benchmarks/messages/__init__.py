"""The messages study: all nodes' answers to bad input, collected with the cases of the tests."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parents[2] / "tests"
sys.path += [str(TESTS / folder) for folder in ("support", "oracles")]
