import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.data.samples import encode, noise, write_shard, write_tree

from nst.data.augment import UNAUGMENTED
from nst.data.batch import Batch, Loader
from nst.data.dataset import Dataset
from nst.data.folder import load_folder


def load(root: Path | str, **changes: Any) -> Dataset:
    settings: dict[str, Any] = {
        "name": "folder", "num_classes": 3, "channels": 3, "size": 16, "mean": [0.5] * 3, "std": [0.25] * 3, "root": str(root),
        "validation": 0.0, "limit": None, "resize": 20, "area": [0.08, 1.0], "aspect": [0.75, 1.3333], "jitter": 0.4,
        "pca_noise": 0.1, "flip": True, "label_column": "label", "unpacked": None,
    }  # fmt: skip
    return load_folder(**(settings | changes))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    write_tree(root)
    return root


def train_loader(root: Path, batch_size: int = 4, **settings: Any) -> Loader:
    return load(root).split("train").loader(batch_size, train=True, seed=1, **settings)


def same(batches: list[Batch], others: list[Batch]) -> bool:
    return len(batches) == len(others) and all(
        torch.equal(a, b) for one, other in zip(batches, others, strict=True) for a, b in zip(one, other, strict=True)
    )


def test_batches_are_what_their_indices_and_views_say(tree: Path) -> None:
    data = load(tree)
    assert data.classes == ("class0", "class1", "class2")
    assert (len(data.train), len(data.test), data.train.num_views) == (18, 9, None)
    batches = list(data.split("train").loader(4, train=True, seed=1, channels_last=True).epoch(2))
    assert torch.cat([batch.indices for batch in batches]).sort().values.equal(torch.arange(18))
    for batch in batches:
        assert batch.images.dtype == torch.float32
        assert batch.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(batch.labels, batch.indices // 6)
        assert torch.equal(batch.images, data.train.render(batch.indices, batch.views))


def test_evaluation_is_the_centre_in_order(tree: Path) -> None:
    (batch,) = load(tree).split("test").loader(100, train=False).epoch(0)
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


def test_a_store_may_hold_some_views(tree: Path) -> None:
    data = load(tree)
    subset = data.train.view_subset(2)
    batches = [b for epoch in range(8) for b in data.split("train").loader(9, train=True, views=subset).epoch(epoch)]
    assert {view for batch in batches for view in batch.views.tolist()} == {0, 1}
    swept = list(data.split("train").loader(9, train=True).sequential(subset[:, 1], first_step=1))
    assert torch.equal(swept[0].images, data.train.render(torch.arange(9, 18), torch.ones(9, dtype=torch.int64)))


def test_validation_and_limit(tree: Path) -> None:
    data = load(tree, validation=0.3, limit=6)
    assert data.val is not None
    assert data.val.labels.bincount().tolist() == [2, 2, 2]
    assert data.train.labels.bincount().tolist() == [2, 2, 2]
    assert data.fingerprint == load(tree, validation=0.3, limit=6).fingerprint != load(tree).fingerprint


def test_more_workers_than_cores_are_not_started(tree: Path) -> None:
    cores, before = os.cpu_count() or 1, multiprocessing.active_children()
    loader = train_loader(tree, batch_size=18, workers=cores + 50)
    assert len(list(loader.epoch(0))) == 1
    assert len(set(multiprocessing.active_children()) - set(before)) <= cores
    with pytest.raises(ValueError, match=r"trainer\.workers: -1"):
        train_loader(tree, workers=-1)


def test_a_killed_worker_is_an_error_within_seconds(tree: Path) -> None:
    before = multiprocessing.active_children()
    epoch = train_loader(tree, batch_size=1, workers=1).epoch(0)
    next(epoch)
    (worker,) = (process for process in multiprocessing.active_children() if process not in before)
    worker.kill()
    start = time.monotonic()
    with pytest.raises(RuntimeError, match=r"a data worker process died.*trainer\.workers \(now 1\)"):
        list(epoch)
    assert time.monotonic() - start < 15


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
    worker.terminate()  # the second one counts
    worker.join(10)
    assert worker.exitcode is not None
    assert same(list(train_loader(tree, batch_size=1, workers=1).epoch(0)), expected)


_READER = """
import multiprocessing, sys, time
from pathlib import Path
from tests.data.test_folder import train_loader

if __name__ == "__main__":
    epoch = train_loader(Path(sys.argv[1]), batch_size=1, workers=2).epoch(0)
    next(epoch)
    print(*(process.pid for process in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_workers_end_with_a_killed_main_process(tree: Path, tmp_path: Path) -> None:
    script = tmp_path / "reader.py"
    script.write_text(_READER)
    root = Path(__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'src'}"}
    with subprocess.Popen([sys.executable, script, tree], stdout=subprocess.PIPE, text=True, env=environment) as main:
        assert main.stdout is not None
        workers = [int(pid) for pid in main.stdout.readline().split()]
        assert workers
        assert all(map(runs, workers))
        main.kill()
    deadline = time.monotonic() + 30  # a fraction of a second is enough; before, they stayed for good
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


def test_folders_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"data\.root=.*nowhere: no such folder. Expected train/<class>"):
        load(tmp_path / "nowhere")
    (tmp_path / "train").mkdir()
    with pytest.raises(ValueError, match="it holds neither class folders nor parquet shards"):
        load(tmp_path)
    (tmp_path / "val").mkdir()
    with pytest.raises(ValueError, match="train: no class folders"):
        load(tmp_path)
    write_tree(tmp_path / "more")
    root = tmp_path / "more"
    with pytest.raises(ValueError, match=r"train: 3 class folders, but data\.num_classes=4"):
        load(root, num_classes=4)
    (root / "val" / "other").mkdir()
    (root / "val" / "other" / "a.png").write_bytes(encode(noise(1)[0]))
    with pytest.raises(ValueError, match=r"val: a folder of class other, which .*train lacks"):
        load(root)
    shutil.rmtree(root / "val" / "other")
    shutil.rmtree(root / "train" / "class1")
    (root / "train" / "class1").mkdir()
    with pytest.raises(ValueError, match="train: no images in class folder class1"):
        load(root)


def test_what_a_class_folder_holds_besides_images_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tree(tmp_path)
    load(tmp_path)
    assert not caplog.records
    (tmp_path / "train/class1/more").mkdir()
    (tmp_path / "train/class1/more/a.png").write_bytes(encode(noise(1)[0]))
    for name in ("b.tif", ".hidden"):
        (tmp_path / "train/class2" / name).touch()
    assert len(load(tmp_path).train) == 18
    assert [record.message.partition(" are: ")[2] for record in caplog.records] == ["class1/more, class2/b.tif"]


def test_classes_without_a_test_image_are_named(tmp_path: Path, shards: Path) -> None:
    root = shards.parent / "tree"
    for name in ("class0", "class2"):
        shutil.rmtree(root / "val" / name)
    with pytest.raises(ValueError, match=r"val: no folder of class class0, class2, which .*train has"):
        load(root)
    (root / "val" / "class0").mkdir()
    with pytest.raises(ValueError, match="val: no images in class folder class0"):
        load(root)
    write_shard(
        shards / "data" / "validation-00000-of-00001.parquet", [encode(noise(1)[0])] * 4, [0, 0, 2, 2], image="image"
    )
    with pytest.raises(ValueError, match=r"no test image of class 1 \(class1\)"):
        load(shards)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    write_tree(tmp_path)
    path = tmp_path / "train" / "class1" / "7.jpg"
    path.symlink_to(tmp_path / "gone.jpg")
    with pytest.raises(ValueError, match=rf"^{path}: not a file"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("changes", "key"),
    [({"channels": 1, "mean": [0.5], "std": [0.5]}, "channels"), ({"area": [1]}, "area"), ({"limit": 2}, "limit")],
)
def test_settings_are_checked_before_anything_is_read(changes: dict[str, Any], key: str) -> None:
    with pytest.raises(ValueError, match=f"data.{key}"):
        load("nowhere", **changes)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """The images of a tree as shards: 18 training images in two shards, 9 for validation, and a test part without labels."""
    tree = tmp_path / "tree"
    write_tree(tree)
    files = {part: sorted((tree / part).glob("*/*")) for part in ("train", "val")}
    encoded = {part: [path.read_bytes() for path in paths] for part, paths in files.items()}
    labels = {part: [int(path.parent.name[-1]) for path in paths] for part, paths in files.items()}
    root = tmp_path / "hub" / "data"
    names = ["class0", "class1", "class2"]
    write_shard(
        root / "train-00000-of-00002.parquet", encoded["train"][:10], labels["train"][:10], image="image", names=names
    )
    write_shard(root / "train-00001-of-00002.parquet", encoded["train"][10:], labels["train"][10:], image="image")
    write_shard(root / "validation-00000-of-00001.parquet", encoded["val"], labels["val"], image="image")
    write_shard(root / "test-00000-of-00001.parquet", encoded["val"], [-1] * 9, image="image")
    return tmp_path / "hub"


def test_shards_give_what_the_class_folders_give(shards: Path) -> None:
    data, again = load(shards), load(shards)
    tree = load(shards.parent / "tree")
    assert data.classes == tree.classes
    for split in ("train", "test"):
        for train in (True, False):
            loaders = (
                d.split(split).loader(4, train=train, seed=1, workers=w) for d, w in ((data, 1), (tree, 0), (again, 0))
            )
            first, *others = (list(loader.epoch(0)) for loader in loaders)
            assert all(same(first, other) for other in others)
    assert data.fingerprint == again.fingerprint
    assert (
        sorted(path.suffix for path in (shards / "unpacked").iterdir() if path.suffix) == [".images"] * 2 + [".npz"] * 2
    )


@pytest.mark.parametrize(("names", "told"), [(["class0", "class2", "class1"], "'class2'"), (["class0"], "missing")])
def test_both_parts_of_the_shards_must_number_the_classes_alike(shards: Path, names: list[str], told: str) -> None:
    path = shards / "data" / "validation-00000-of-00001.parquet"
    encoded = [encode(image) for image in noise(3)]
    write_shard(path, encoded, [0, 1, 2], image="image", names=names)
    with pytest.raises(ValueError, match=f"class 1 is 'class1' in the training images, {told} in the test images"):
        load(shards)


def test_a_bad_row_of_a_shard_is_named(shards: Path) -> None:
    path = shards / "data" / "train-00001-of-00002.parquet"
    encoded = [encode(image) for image in noise(8)]
    write_shard(path, encoded, [0, 1, 2, 0, 1, 5, 0, 1], image="image")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet, row 5: label 5, but .*allows 0 to 2"):
        load(shards)
    write_shard(path, [*encoded[:5], encoded[5][:99], *encoded[6:]], [0, 1, 2, 0, 1, 2, 0, 1], image="image")
    with pytest.raises(ValueError, match=r"^\S*train-00001-of-00002\.parquet, row 5: the image cannot be decoded"):
        list(load(shards).split("train").loader(4, train=True, workers=1).epoch(0))
    write_shard(path, [*encoded[:5], None, *encoded[6:]], [0, 1, 2, 0, 1, 2, 0, 1], image="image")
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet, row 5: no value in column 'image'"):
        load(shards)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"train-00001-of-00002\.parquet: cannot be read as parquet"):
        load(shards)
    assert not list((shards / "unpacked").glob("train*.npz.tmp"))


def test_unpacking_needs_a_place(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shards / "file").write_bytes(b"")
    with pytest.raises(ValueError, match=r"file: cannot unpack there .*data\.unpacked=… names another folder"):
        load(shards, unpacked=str(shards / "file"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    with pytest.raises(ValueError, match=r"0\.0 GB are free"):
        load(shards)


def test_a_damaged_unpacked_file_is_named(shards: Path) -> None:
    load(shards)
    (images,) = (shards / "unpacked").glob("train-*.images")
    images.write_bytes(images.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"train-\w+\.images: missing or of the wrong size; delete .*npz"):
        load(shards)
