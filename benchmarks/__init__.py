"""Speed and memory, measured: `python -m benchmarks`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `nst` has it; read when torch is imported
