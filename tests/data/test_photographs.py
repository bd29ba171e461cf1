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
from tests.data.samples import encode, load, noise, write_tree

from nst.data.augment import UNAUGMENTED
from nst.data.batch import Batch, Loader


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_tree(root)
    return root


def train_loader(root: Path, batch_size: int = 4, **settings: Any) -> Loader:
    return load(root).train.loader(batch_size, train=True, seed=1, **settings)


def same(batches: list[Batch], others: list[Batch]) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_are_what_their_indices_and_views_say(tree: Path) -> None:
    data = load(tree)
    assert data.classes == ("class0", "class1", "class2")
    assert (len(data.train), len(data.test), data.train.num_views) == (18, 9, None)
    batches = list(data.train.loader(4, train=True, seed=1, channels_last=True).epoch(2))
    assert torch.cat([batch.indices for batch in batches]).sort().values.equal(torch.arange(18))
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.indices // 6)
        assert torch.equal(batch.images, data.train.render(batch.indices, batch.views))
    (batch,) = data.test.loader(100, train=False).epoch(0)
    assert batch.labels.tolist() == [0] * 3 + [1] * 3 + [2] * 3
    assert batch.views.tolist() == [UNAUGMENTED] * 9


def test_workers_ranks_and_restarts_change_nothing(tree: Path) -> None:
    expected = [list(train_loader(tree).epoch(epoch)) for epoch in range(2)]
    assert not torch.equal(expected[0][0].views, expected[1][0].views)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    for workers in (1, 2):
        loader = train_loader(tree, workers=workers)
        for epoch in range(2):
            assert same(list(loader.epoch(epoch)), expected[epoch])
        assert same(list(loader.epoch(1, first_step=3)), expected[1][3:])
        next(iter(loader.epoch(0)))  # an epoch broken off does not disturb the next
        assert same(list(loader.epoch(1)), expected[1])
    assert torch.equal(state, torch.get_rng_state())
    ranks = [train_loader(tree, rank=rank, world=2).epoch(1) for rank in range(2)]
    joined = [Batch(*(torch.cat(pair) for pair in zip(*parts, strict=True))) for parts in zip(*ranks, strict=True)]
    assert same(joined, expected[1])


def test_a_cache_may_hold_some_views(tree: Path) -> None:
    train = load(tree).train
    subset = train.view_subset(2)
    batches = [b for epoch in range(8) for b in train.loader(9, train=True, views=subset).epoch(epoch)]
    assert {view for batch in batches for view in batch.views.tolist()} == {0, 1}
    loader = train.loader(9, train=True)
    second = list(loader.batches(torch.arange(len(train)), subset[:, 1].long(), loader.parts(first_step=1)))
    assert torch.equal(second[0].images, train.render(torch.arange(9, 18), torch.ones(9, dtype=torch.int64)))


def test_the_fingerprint_is_of_names_sizes_labels_and_some_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nst.data.photographs.FINGERPRINTED", 9)  # of 18
    write_tree(tmp_path / "a")
    (tmp_path / "a").rename(tmp_path / "moved")
    root = tmp_path / "moved"
    seen = [load(root).train.fingerprint, load(root, limit=17).train.fingerprint]
    paths = [root / "train" / "class1" / f"{i}.JPEG" for i in (0, 1, 2)]
    content = paths[0].read_bytes()
    paths[0].write_bytes(content[:-3] + b"\0" + content[-2:])  # read: one byte changed
    seen.append(load(root).train.fingerprint)
    paths[1].write_bytes(paths[1].read_bytes() + b"\0")  # not read: longer
    seen.append(load(root).train.fingerprint)
    paths[2].rename(paths[2].with_name("other.jpg"))
    seen.append(load(root).train.fingerprint)
    assert len(set(seen)) == 5
    write_tree(tmp_path / "a")
    assert load(tmp_path / "a").train.fingerprint == seen[0]


def test_more_workers_than_cores_are_not_started(tree: Path) -> None:
    cores, before = os.cpu_count() or 1, multiprocessing.active_children()
    loader = train_loader(tree, batch_size=18, workers=cores + 50)
    assert len(list(loader.epoch(0))) == 1
    assert len(set(multiprocessing.active_children()) - set(before)) <= cores
    with pytest.raises(ValueError, match=r"trainer\.workers: -1"):
        train_loader(tree, workers=-1)


def test_a_killed_worker_is_an_error(tree: Path) -> None:
    before = multiprocessing.active_children()
    epoch = train_loader(tree, batch_size=1, workers=1).epoch(0)
    next(epoch)
    (worker,) = (process for process in multiprocessing.active_children() if process not in before)
    worker.kill()
    with pytest.raises(RuntimeError, match="DataLoader worker"):
        list(epoch)


def test_a_schedulers_signals_leave_workers_at_work(tree: Path) -> None:
    before = multiprocessing.active_children()
    expected = list(train_loader(tree, batch_size=1).epoch(0))
    epoch = train_loader(tree, batch_size=1, workers=1).epoch(0)
    batches = [next(epoch)]
    (worker,) = (process for process in multiprocessing.active_children() if process not in before)
    server = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        for pid in (worker.pid, server):
            assert pid is not None
            os.kill(pid, number)
    assert same(batches + list(epoch), expected)


_READER = """
import multiprocessing, sys, time
from pathlib import Path
from tests.data.test_photographs import train_loader

if __name__ == "__main__":
    epoch = train_loader(Path(sys.argv[1]), batch_size=1, workers=2).epoch(0)
    next(epoch)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("killed", [True, False])
def test_workers_end_with_the_main_process(tree: Path, tmp_path: Path, killed: bool) -> None:
    """Killed, and at its end in the middle of an epoch."""
    script = tmp_path / "reader.py"
    script.write_text(_READER)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    command = [sys.executable, script, tree, "600" if killed else "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert workers
        if killed:
            assert all(map(runs, workers))
            main.kill()
        assert main.wait(300) == (-signal.SIGKILL if killed else 0)
    deadline = time.monotonic() + 30  # a fraction of a second is enough
    while any(map(runs, workers)) and time.monotonic() < deadline:
        time.sleep(0.02)
    left = [pid for pid in workers if runs(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left


def runs(pid: int) -> bool:
    """Whether a process is there and not just waiting to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be decoded"),
        (b"no image", "no JPEG"),
        (None, "truncated"),
        ("gone", "cannot be read .No such file"),
    ],
)
def test_a_bad_image_is_named(tmp_path: Path, workers: int, content: Any, message: str) -> None:
    write_tree(tmp_path)
    path = tmp_path / "train" / "class1" / "2.JPEG"
    loader = train_loader(tmp_path, workers=workers)
    if content == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-50] if content is None else content)
    with pytest.raises(ValueError, match=rf"^{path}: .*{message}"):
        list(loader.epoch(0))


def test_grey_photographs_and_their_background(tmp_path: Path) -> None:
    """One channel; and what is transparent has the colour of the key."""
    write_tree(tmp_path)
    clear = noise(1)[0].copy()
    for path in tmp_path.glob("*/class0/*"):
        path.unlink()
        path.with_suffix(".png").write_bytes(encode(clear, "PNG", "P", transparency=bytes(256)))
    grey = {"channels": 1, "mean": [0.5], "std": [0.5], "pca_noise": 0.0}
    for background, value in (((255, 255, 255), 1.0), ((0, 0, 0), -1.0)):
        data = load(tmp_path, background=list(background), **grey)
        first = data.test.render(torch.tensor([0]), torch.tensor([UNAUGMENTED]))
        assert first.shape == (1, 1, 16, 16)
        torch.testing.assert_close(first, torch.full_like(first, value))
