"""Weights files: other people's layouts load, wrong and dangerous ones are refused with the reason."""

import argparse
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nst.files import write_whole
from nst.models.weights import check_saveable, load_weights, read_weights, save_weights


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


def torch_bytes(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def rewritten(content: bytes, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip of `torch.save` with parts changed and right checksums."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w", compression) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return file.getvalue()


def zipped_pickle(opcodes: bytes) -> bytes:
    """A zip of `torch.save` whose content is this pickle."""
    return rewritten(
        torch_bytes({"w": torch.zeros(1)}),
        lambda name, part: b"\x80\x02" + opcodes + b"." if name.endswith("data.pkl") else part,
    )


def number(value: int) -> bytes:
    raw = value.to_bytes(8, "little", signed=True)
    return b"\x8a" + bytes([len(raw)]) + raw


def claiming(numbers: int) -> bytes:
    """An old file of `torch.save` whose only storage claims this many numbers."""
    content = torch_bytes({"w": torch.zeros(77)}, _use_new_zipfile_serialization=False)
    assert content.count(b"K\x4d") >= 2
    return content.replace(b"K\x4d", b"J" + struct.pack("<i", numbers))


NESTED = b"K\x01" + b"2\x86" * 60  # (t, t) of (t, t) of ..., 60 deep: as a key it would be hashed 2^60 times
BOMBS = {
    "zeros, compressed": lambda: rewritten(
        torch_bytes({"w": torch.zeros(10_000_000)}), lambda _, part: part, zipfile.ZIP_DEFLATED
    ),
    "a call that allocates": lambda: zipped_pickle(b"cbuiltins\nbytearray\n" + number(10**11) + b"\x85R"),
    "a tensor by its class": lambda: zipped_pickle(b"ctorch\nFloatTensor\n" + number(10**11) + b"\x85R"),
    "a key that takes for ever": lambda: zipped_pickle(b"}" + NESTED + b"K\x01s"),
    "a storage larger than its part": lambda: rewritten(
        torch_bytes({"w": torch.zeros(77)}),
        lambda name, part: part.replace(b"K\x4d", b"J\xff\xff\xff\x7f") if name.endswith("data.pkl") else part,
    ),
    "a storage larger than its file": lambda: claiming(2**31 - 1),
    "two parts of one name": lambda: torch_bytes({"w": torch.zeros(1)}).replace(b"/version", b"/data/0\0"[:8]),
}


@pytest.mark.parametrize("kind", BOMBS)
def test_small_files_that_would_fill_the_memory_are_refused(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before torch loads them."""

    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("loaded")

    monkeypatch.setattr(torch, "load", load)
    path = tmp_path / "w.pt"
    path.write_bytes(BOMBS[kind]())
    with pytest.raises(ValueError, match=r"w\.pt (is damaged|holds)") as error:
        read_weights(path)
    assert "loaded" not in str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
def test_mutated_files_are_read_or_a_clear_error(tmp_path: Path, name: str) -> None:
    path, draw = tmp_path / name, random.Random(0)
    save_weights(path, net(), {"mean": "0.5", "std": "0.1"})
    if name != "w.safetensors":
        path.write_bytes(torch_bytes({"model": net().state_dict()}, _use_new_zipfile_serialization=name == "w.pt"))
    whole, errors = path.read_bytes(), []
    for _ in range(150):
        content = bytearray(whole)
        for _ in range(draw.choice([1, 2, 10])):
            content[draw.randrange(min(len(content), 1500))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            load_weights(net(), path)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 100
    assert all(str(path) in text for text in errors)


def test_what_is_no_weights_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    path.write_text("Weights: see the other folder.\n")
    with pytest.raises(
        ValueError, match=r"w\.pt is damaged or no torch file: it does not begin as files of torch\.save do"
    ):
        read_weights(path)
    with pytest.raises(ValueError, match="it is a folder"):
        read_weights(tmp_path)
    torch.save([1, 2], path)
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(path)
    torch.save({k: v.to_sparse() for k, v in net().state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"torch\._utils\._rebuild_sparse_tensor"):
        read_weights(path)
    torch.save({k: v.int() for k, v in net().state_dict().items()}, path)
    with pytest.raises(ValueError, match=r"conv1\.weight: torch\.int32 in the file, torch\.float32 in the model"):
        load_weights(net(), path)


def test_settings_beside_the_weights_are_refused_with_the_remedy(tmp_path: Path) -> None:
    """As published checkpoints have them; what the message says makes a file that loads."""
    source, target = net(), net()
    torch.save({"opt": argparse.Namespace(lr=0.1), "model": source.state_dict()}, tmp_path / "old.pth")
    with pytest.raises(ValueError, match=r"\(argparse\.Namespace\).*save the state dict alone") as error:
        read_weights(tmp_path / "old.pth")
    code = str(error.value).partition("by its key: ")[2]
    exec(code.replace("'old.pth'", f"'{tmp_path}/old.pth'").replace("'new.pth'", f"'{tmp_path}/new.pth'"))
    load_weights(target, tmp_path / "new.pth")
    assert same(source, target)


def test_plain_values_beside_the_weights_are_read(tmp_path: Path) -> None:
    source, target = net(), net()
    optimizer = torch.optim.Adam(source.parameters())
    beside = {"best": 1.5, "size": torch.Size([1, 2]), "type": torch.float16, "seen": {1, 2}, "raw": b"abc"}
    torch.save({"optimizer": optimizer.state_dict(), "state_dict": source.state_dict(), **beside}, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt")
    assert same(source, target)


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight


def test_shared_weights_are_saved_and_shared_again(tmp_path: Path) -> None:
    source, target = Tied(), Tied()
    save_weights(tmp_path / "w.safetensors", source, {})
    load_weights(target, tmp_path / "w.safetensors")
    assert same(source, target)
    assert target.second.weight is target.first.weight
    once = {k: v for k, v in source.state_dict().items() if k != "second.weight"}  # as other tools write them
    torch.save(once, tmp_path / "once.pt")
    other = Tied()
    load_weights(other, tmp_path / "once.pt")
    assert same(source, other)


class WithState(nn.Linear):
    """Has state of its own beside its weights."""

    def __init__(self, state: Any) -> None:
        super().__init__(2, 2)
        self.own = state

    def get_extra_state(self) -> Any:
        return self.own

    def set_extra_state(self, state: Any) -> None:
        self.own = state


def test_state_of_a_models_own(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", WithState(torch.ones(3)), {})
    target = WithState(torch.zeros(3))
    load_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target.own, torch.ones(3))
    with pytest.raises(ValueError, match=r"WithState: its state _extra_state is a dict"):
        check_saveable(WithState({"count": 1}))
