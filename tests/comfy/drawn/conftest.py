"""Put ``benchmarks/`` on the module path, for the tests of the drawn world."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[3] / "benchmarks"))
