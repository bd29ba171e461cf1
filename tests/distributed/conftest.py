"""Starting programs on several ranks."""

import os
import socket
import subprocess
import sys

from tests.conftest import ROOT


def torchrun(*arguments: str, nodes: int = 1, ranks: int = 1) -> list[subprocess.Popen[str]]:
    """Start `torchrun` once for each node, all on this machine, `ranks` processes on each; nodes meet at a port."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--nnodes={nodes}", f"--nproc-per-node={ranks}"]
    command += ["--rdzv-backend=c10d", f"--rdzv-endpoint=localhost:{port}", "--rdzv-id=nst", "--local-addr=127.0.0.1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}"}
    return [
        subprocess.Popen(
            [*command, *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(nodes)
    ]


def output(process: subprocess.Popen[str], seconds: float = 150) -> str:
    """What a process printed, once it has ended well."""
    text = process.communicate(timeout=seconds)[0]
    assert process.returncode == 0, text
    return text
