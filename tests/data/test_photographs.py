"""Images that are decoded as they are needed: the same batches for any number of workers, ranks and restarts; processes that end."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.samples import joined, load, same, write_tree

from nst.data.batch import UNLISTED_VIEWS, Loader


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_tree(root)
    return root


def train_loader(root: Path, batch_size: int = 4, **settings: Any) -> Loader:
    return load(root).train.loader(batch_size, train=True, seed=1, **settings)


def test_batches_are_what_their_indices_and_views_say(tree: Path) -> None:
    data = load(tree, channels=1, mean=[0.5], std=[0.5], pca_noise=0.0)
    for batch in data.train.loader(4, train=True, seed=1, channels_last=True).epoch(2):
        assert batch.images.dtype == torch.float32
        assert torch.equal(batch.labels, batch.indices // 6)
        assert torch.equal(batch.images, data.train.render(batch.indices, batch.views))
    (batch,) = data.test.loader(100, train=False).epoch(0)
    assert batch.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert batch.views.tolist() == [UNLISTED_VIEWS] * 9


def test_workers_ranks_and_restarts_change_nothing(tree: Path) -> None:
    expected = [list(train_loader(tree).epoch(epoch)) for epoch in range(2)]
    assert not torch.equal(expected[0][0].views, expected[1][0].views)
    views, state = load(tree).train.view_subset(2), torch.get_rng_state()
    loader = train_loader(tree, workers=2)
    for epoch in range(2):
        assert same(list(loader.epoch(epoch)), expected[epoch])
    assert same(list(loader.epoch(1, first_step=3)), expected[1][3:])
    next(iter(loader.epoch(0)))  # an epoch broken off does not disturb the next
    assert same(list(loader.epoch(1)), expected[1])
    assert torch.equal(state, torch.get_rng_state())
    assert same(joined([train_loader(tree, rank=rank, world=2).epoch(1) for rank in range(2)]), expected[1])
    loader = train_loader(tree, views=views)
    assert {view for epoch in range(4) for b in loader.epoch(epoch) for view in b.views.tolist()} == {0, 1}


def test_the_fingerprint_is_of_names_sizes_labels_and_some_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the images lie."""
    monkeypatch.setattr("nst.data.photographs.FINGERPRINTED", 9)  # of 18
    for name in ("a", "b"):
        write_tree(tmp_path / name)
    root = tmp_path / "b"
    seen = [load(tmp_path / "a").train.fingerprint, load(root, limit=17).train.fingerprint]
    assert load(root).train.fingerprint == seen[0]
    paths = [root / "train" / "class1" / f"{i}.JPEG" for i in (0, 1, 2)]
    content = paths[0].read_bytes()
    for change in (
        lambda: paths[0].write_bytes(content[:-3] + b"\0" + content[-2:]),  # read: one byte changed
        lambda: paths[1].write_bytes(paths[1].read_bytes() + b"\0"),  # not read: longer
        lambda: paths[2].rename(paths[2].with_name("other.jpg")),
    ):
        change()
        seen.append(load(root).train.fingerprint)
    assert len(set(seen)) == 5


def test_a_schedulers_signals_leave_a_worker_at_work_and_a_killed_one_is_an_error(tree: Path) -> None:
    before = multiprocessing.active_children()
    expected = list(train_loader(tree, batch_size=1).epoch(0))
    loader = train_loader(tree, batch_size=1, workers=1)
    epoch = loader.epoch(0)
    batches = [next(epoch)]
    (worker,) = (process for process in multiprocessing.active_children() if process not in before)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for pid in (worker.pid, forkserver._forkserver._forkserver_pid):  # type: ignore[attr-defined]
            os.kill(pid or 0, number)
    assert same(batches + list(epoch), expected)
    epoch = loader.epoch(1)
    next(epoch)
    worker.kill()
    with pytest.raises(OSError, match="a data worker died"):
        list(epoch)


READER = """
import os, sys, time
from multiprocessing import active_children

if __name__ == "__main__":
    from tests.data.samples import load

    killed = os.fork() == 0
    epoch = load(sys.argv[1]).train.loader(1, train=True, workers=1).epoch(0)
    next(epoch)
    print(int(killed), os.getpid(), *(process.pid for process in active_children()), flush=True)
    time.sleep(600 * killed)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_the_main_process(tree: Path, tmp_path: Path) -> None:
    """At its end in the middle of an epoch; and of another one, killed."""
    script, root = tmp_path / "reader.py", Path(__file__).parents[2]
    script.write_text(READER)
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    with subprocess.Popen([sys.executable, script, tree], stdout=subprocess.PIPE, text=True, env=environment) as main:
        assert main.stdout is not None
        ended, killed = sorted([int(word) for word in main.stdout.readline().split()] for _ in range(2))
        assert main.wait(300) == 0
        assert len(killed) == 3
        assert all(map(runs, killed[1:]))
        os.kill(killed[1], signal.SIGKILL)
    deadline = time.monotonic() + 30  # a fraction of a second is enough
    while (left := [pid for pid in (*killed[1:], *ended[1:]) if runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.02)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def runs(pid: int) -> bool:
    """Whether a process is there and not just waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


BAD = {b"no image": "no JPEG", "cut": "truncated", "gone": "No such file"}


@pytest.mark.parametrize(("workers", "content"), [*((0, content) for content in BAD), (2, b"no image")])
def test_a_bad_image_is_named(tmp_path: Path, workers: int, content: Any) -> None:
    write_tree(tmp_path)
    path = tmp_path / "train" / "class1" / "2.JPEG"
    loader = train_loader(tmp_path, workers=workers)
    path.write_bytes(content if isinstance(content, bytes) else path.read_bytes()[:-50])
    if content == "gone":
        path.unlink()
    with pytest.raises(ValueError, match=rf"(?=.*{path})(?=.*{BAD[content]})"):
        list(loader.epoch(0))
