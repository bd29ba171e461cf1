"""train.py for torchrun: `faulty.py '[fault of the first start, …]' <arguments of train.py>`; a fault may be null."""

import json
import os
import runpy
import sys
from pathlib import Path

from tests.faults import injections

if __name__ == "__main__":
    fault = json.loads(sys.argv.pop(1))[int(os.environ["TORCHELASTIC_RESTART_COUNT"])]
    if fault is not None:
        getattr(injections, fault[0])(*fault[1:])
    runpy.run_path(str(Path(__file__).parents[2] / "train.py"), run_name="__main__")
