"""Starting programs on several ranks."""

import os
import socket
import subprocess
import sys

from tests.conftest import ROOT


def torchrun(*arguments: str, nodes: int = 1, ranks: int = 1) -> str:
    """Run `torchrun` once for each node, all on this machine, `ranks` processes on each; nodes meet at a port. What they printed."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=nst", "--local-addr=127.0.0.1"]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    to = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    started = [subprocess.Popen([*command, *arguments], env=env, **to) for _ in range(nodes)]
    texts = [process.communicate(timeout=200)[0] for process in started]
    assert not any(process.returncode for process in started), texts
    return "".join(texts)
