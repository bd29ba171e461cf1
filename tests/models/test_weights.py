"""Weights files: as people have them they load, wrong and dangerous ones are refused with the reason."""

import argparse
import logging
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from nst.models.parts import Network
from nst.models.weights import load_weights, read_weights, save_weights

State = dict[str, Tensor]


def net(classes: int = 3) -> Network:
    """A network whose classifier is called fc."""
    return Network(conv1=nn.Conv2d(3, 4, 3), bn1=nn.BatchNorm2d(4), fc=nn.Linear(4, classes))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, b.state_dict()[k]) for k, v in a.state_dict().items())


def under(prefix: str, state: State) -> State:
    return {prefix + key: value for key, value in state.items()}


def renamed(state: State, name: str) -> State:
    return {key.replace("fc.", f"{name}."): value for key, value in state.items()}


def flat(content: Any, name: str = "") -> State:
    result: State = {}
    for key, value in content.items():
        if isinstance(value, dict):
            result |= flat(value, f"{name}{key}.")
        elif isinstance(value, Tensor):
            result[f"{name}{key}"] = value.clone()
    return result


OTHER = dict(net().state_dict())  # of the same architecture
ADAM = {"state": {0: {"step": torch.ones(()), "exp_avg": torch.ones(4)}}, "param_groups": [{"lr": 0.1}]}
HABITS: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "linear": lambda s: renamed(s, "linear"),
    "head": lambda s: renamed(s, "head"),
    "DataParallel": lambda s: under("module.", s),
    "compiled, then DDP": lambda s: under("module._orig_mod.", s),
    "three times": lambda s: under("model._orig_mod.module.", s),
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best_acc1": 93.0},
    "model": lambda s: {"model": s, "epoch": 240, "accuracy": torch.tensor([72.3]), "optimizer": ADAM},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": ADAM},
    "net": lambda s: {"net": s, "acc": 95.5, "epoch": 199},
    "a run's checkpoint": lambda s: {"progress": {"step": 3}, "optimizer": ADAM, "distiller": under("student.", s)},
    "nested": lambda s: {"checkpoint": {"model": {"state_dict": under("module.", s)}}},
    "ema alone": lambda s: {"ema": under("module.", s), "updates": 9},
    "averaged": lambda s: under("module.", s) | {"n_averaged": torch.tensor(5)},
    "with its average": lambda s: {"state_dict": s, "state_dict_ema": OTHER},
    "average first": lambda s: {"model_ema": under("module.", OTHER), "model": s},
    "Lightning and a teacher": lambda s: {"state_dict": under("model.", s) | under("teacher.", OTHER)},
    "arguments": lambda s: {"model": s, "opt": argparse.Namespace(lr=0.1, name="a")},
    "numpy": lambda s: {"state_dict": s, "best": np.float64(93.1), "epoch": np.int64(3)},
    "no counters": lambda s: {key: value for key, value in s.items() if not key.endswith("num_batches_tracked")},
    "a part compiled alone": lambda s: {key.replace("bn1.", "bn1._orig_mod."): value for key, value in s.items()},
    "sharded parts": lambda s: under("_fsdp_wrapped_module.", {k.replace("bn1.", "bn1._fsdp_wrapped_module."): v for k, v in s.items()}),
    "counted operations": lambda s: s | {"total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
    "half": lambda s: {key: value.half() if value.is_floating_point() else value for key, value in s.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", ["pt", "old", "safetensors"])
def test_files_as_people_have_them(tmp_path: Path, kind: str) -> None:
    """Whatever they are called: the content says what it is."""
    path = tmp_path / ("w.bin" if kind == "safetensors" else "w.safetensors")
    for habit, content_of in HABITS.items():
        source, target = net().half().float(), net()
        content = content_of(source.state_dict())
        if kind == "safetensors":  # which has no dictionaries inside: their names are prefixes
            save_file(flat(content), path)
        else:
            torch.save(content, path, _use_new_zipfile_serialization=kind == "pt")
        load_weights(target, path)
        assert same(source, target), habit


class Tied(nn.Module):
    """Two layers with one weight, and a child whose name is a prefix that wrappers leave."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.model.weight


class WithState(nn.Linear):
    """Has state of its own beside its weights."""

    def __init__(self, state: Any = None) -> None:
        super().__init__(2, 2)
        self.own = torch.randn(3) if state is None else state

    def get_extra_state(self) -> Any:
        return self.own

    def set_extra_state(self, state: Any) -> None:
        self.own = state


@pytest.mark.parametrize("make", [net, lambda: AveragedModel(net()), Tied, WithState])
def test_what_is_saved_loads_with_its_metadata(tmp_path: Path, make: Callable[[], nn.Module]) -> None:
    source, target = make(), make()
    save_weights(str(tmp_path / "w.safetensors"), source, {"arch": "x"})
    assert load_weights(target, str(tmp_path / "w.safetensors")) == {"arch": "x"}
    assert same(source, target)
    if isinstance(target, Tied):
        assert target.second.weight is target.model.weight
        once = {k: v for k, v in source.state_dict().items() if k != "second.weight"}  # as other tools write them
        torch.save(once, tmp_path / "once.pt")
        load_weights(again := Tied(), tmp_path / "once.pt")
        assert same(source, again)
    with pytest.raises(ValueError, match="its state _extra_state is a dict"):
        save_weights(tmp_path / "x", WithState({"count": 1}))


def test_of_two_states_one_is_named_and_a_key_chooses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, average, target, path = net(), net(), net(), tmp_path / "w.pt"
    torch.save({"state_dict_ema": average.state_dict(), "state_dict": under("module.", plain.state_dict())}, path)
    with caplog.at_level(logging.WARNING):
        load_weights(target, path)
    assert same(plain, target)
    assert "weights_key=state_dict_ema" in caplog.text
    load_weights(target, path, key="state_dict_ema")
    assert same(average, target)
    with pytest.raises(ValueError, match=r"no state best .*state_dict_ema, state_dict"):
        load_weights(target, path, key="best")
    torch.save(under("online.", plain.state_dict()) | under("momentum.", average.state_dict()), path)
    with pytest.raises(ValueError, match=r"online and momentum.*weights_key=online"):
        load_weights(target, path)


def test_parts_that_stay_new(tmp_path: Path) -> None:
    """A student of other classes starts from weights; whatever else does not fit is an error."""
    source, target = net(5), net(3)
    before = target.fc.weight.clone()
    torch.save({"model": under("module.", renamed(source.state_dict(), "head"))}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"fc\.weight: \[5, 4\] in the file, \[3, 4\] in the model"):
        load_weights(target, tmp_path / "w.pt")
    load_weights(target, tmp_path / "w.pt", drop=["fc"])
    assert torch.equal(target.conv1.weight, source.conv1.weight)
    assert torch.equal(target.fc.weight, before)
    with pytest.raises(ValueError, match=r"drop=\['fcc'\]: "):
        load_weights(target, tmp_path / "w.pt", drop=["fcc"])


class Evil:
    """Unpickling it would make a folder in the working folder."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("made",)


def test_a_pickle_that_runs_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Evil(), "a.pt")
    Path("b.pt").write_bytes(pickle.dumps(Evil(), protocol=2))
    torch.save({"path": Path("a"), "model": net().state_dict()}, "c.pt")
    for name, code in (("a", "posix.mkdir"), ("b", "posix.mkdir"), ("c", "pathlib")):
        with pytest.raises(ValueError, match=rf"{name}\.pt could run code \({code}"):
            read_weights(f"{name}.pt")
    assert not Path("made").exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "old.pt"])
def test_damaged_files_are_read_or_a_clear_error(tmp_path: Path, name: str) -> None:
    path, draw = tmp_path / name, random.Random(0)
    if name == "w.safetensors":
        save_weights(path, net())
    else:
        torch.save({"model": net().state_dict()}, path, _use_new_zipfile_serialization=name == "w.pt")
    whole, errors = path.read_bytes(), []
    contents = [bytearray(c) for c in (b"", whole[:200], b"version https://git-lfs.github.com/spec/v1", *[whole] * 60)]
    for content in contents:
        for _ in range(draw.choice([1, 2, 10]) if len(content) == len(whole) else 0):
            content[draw.randrange(min(len(content), 1500))] = draw.randrange(256)
        path.write_bytes(content)
        try:
            load_weights(net(), path)
        except ValueError as error:
            errors.append(str(error))
    assert len(errors) > 20
    assert all(str(path) in text for text in errors)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    with pytest.raises(ValueError, match=r"w\.pt does not exist"):
        load_weights(net(), path)
    for content, message in (
        ([1, 2], r"holds no state dict \(found list\)"),
        ({"0.weight": torch.ones(2, 2)}, r"missing: conv1\.weight.*and \d more; not in the model: 0\.weight"),
        (OTHER | {"fc.weight": torch.ones(3, 4, dtype=torch.int8)}, r"no floats, .*: fc\.weight: torch\.int8"),
        (OTHER | {"fc.weight": torch.full((3, 4), torch.nan)}, r"not a number: fc\.weight"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=message):
            load_weights(net(), path)
