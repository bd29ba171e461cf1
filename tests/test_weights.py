"""Weights files: other people's layouts load, wrong and dangerous ones are refused with the reason."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from nst.files import write_whole
from nst.models.weights import load_weights, read_weights, save_weights


def net(classes: int = 3) -> nn.Module:
    """A network whose classifier is called fc."""
    model = nn.Sequential()
    model.add_module("conv1", nn.Conv2d(3, 4, 3))
    model.add_module("bn1", nn.BatchNorm2d(4))
    model.add_module("fc", nn.Linear(4, classes))
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def test_safetensors_round_trip_with_metadata(tmp_path: Path) -> None:
    source, target = net(), net()
    save_weights(tmp_path / "w.safetensors", source, {"arch": "x"})
    assert load_weights(target, tmp_path / "w.safetensors") == {"arch": "x"}
    assert same(source, target)


@pytest.mark.parametrize("wrapper", ["state_dict", "model", None])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", ""])
def test_published_layouts_load(tmp_path: Path, wrapper: str | None, prefix: str) -> None:
    source, target = net(), net()
    state = {prefix + k.replace("fc.", "linear."): v for k, v in source.state_dict().items()}
    torch.save({wrapper: state, "best_prec1": 93.0} if wrapper else state, tmp_path / "w.th")
    load_weights(target, tmp_path / "w.th")
    assert same(source, target)


def test_another_architecture_is_refused_by_key_and_shape(tmp_path: Path) -> None:
    model = net()
    save_weights(tmp_path / "w.safetensors", model, {})
    with pytest.raises(ValueError, match=r"fc\.weight: \[3, 4\] in the file, \[5, 4\] in the model"):
        load_weights(net(5), tmp_path / "w.safetensors")
    other = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"missing: 0\.weight.*not in the model: .*conv1"):
        load_weights(other, tmp_path / "w.safetensors")


class Evil:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, how: str) -> None:
    path, made = tmp_path / "w.pt", tmp_path / "made"
    if how == "torch":
        torch.save({"state_dict": Evil(made)}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(made), protocol=2))
    with pytest.raises(ValueError, match="refused"):
        read_weights(path)
    assert not made.exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
@pytest.mark.parametrize("keep", [0, 10, 200])
def test_truncated_files_are_named(tmp_path: Path, name: str, keep: int) -> None:
    path = tmp_path / name
    if name.endswith("safetensors"):
        save_weights(path, net(), {})
    else:
        torch.save(net().state_dict(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match=name):
        read_weights(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.pt"):
        read_weights(tmp_path / "nowhere.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    write_whole(path, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
