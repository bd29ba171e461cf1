"""Settings that fit no data set: each an error that names its key, before anything is read."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from tests.conftest import ROOT

from nst import build
from nst.config import EvaluateConfig

NAN, INF = float("nan"), float("inf")

BAD: dict[str, dict[str, list[Any]]] = {
    "digits": {"size": [16], "root": ["data", 5], "limit": [5], "pad": [-1, 64]},
    "cifar10": {
        "num_classes": [0, 10.0, "10", True, None, 2**70],
        "channels": [0, 2, "3", None],
        "size": [-32, 32.0, "32", True, None],
        "mean": [0.5, [], [0.5] * 5, None, {"r": 0.5}, [0.5, 0.5, None], [0.5, 0.5, "0.5"], [0.5, 0.5, NAN]],
        "std": [[0.5] * 5, [0.5, 0.5, 0.0], [0.5, 0.5, -1], [0.5, 0.5, 1e-300], [0.5, 0.5, INF]],
        "validation": [1.0, -0.1, "0.1", True, None, NAN],
        "limit": [0, 40.0, "all", True],
        "name": ["cifar11", "..", "", None, 7, ["cifar10"]],
        "pad": [-1, 4.0, "4", True, 64, 2**70],
        "flip": [1, "yes", None],
        "padding_mode": ["mirror", 5, None],
        "root": [None, "", " ", ["data"], "a\0b", "~nobody-of-this-name/x"],
    },
    "folder": {
        "root": [None, "", 5, "a\0b", "~nobody-of-this-name/x"],
        "resize": [0, 10, 256.0, "256", True],
        "size": [0, 224.0, None],
        "area": [0.5, [1], [0.5, "1"], [NAN, 1.0], [1.0, 0.5], [0, 1.0], [0.5, 1.5], None, "01"],
        "aspect": [1, [1], [0.0, 1.0], [1.0, INF], [2, 1], None],
        "jitter": ["0.4", -0.1, 1.1, NAN, None],
        "pca_noise": ["0.1", -1, NAN, INF, None],
        "interpolation": ["cubic", None],
        "antialias": ["no", None],
        "aspect_sampling": ["uniform", None],
        "augment": ["auto", 1],
        "erase": [1.5, "often", None],
        "background": ["white", [255, 255], [256, 0, 0], [0.5, 0.5, 0.5], None],
        "pad": [-1, 4.0, "4", 64],
    },
}


def dataset(config: str, **changes: Any) -> Any:
    node: Any = OmegaConf.to_container(OmegaConf.load(ROOT / "configs" / "data" / f"{config}.yaml"))
    needed = {"num_classes": 12, "root": "."} if config == "folder" else {}
    return build.dataset(EvaluateConfig(data={**node, **needed, **changes}))


@pytest.mark.parametrize(("config", "key"), [(config, key) for config, keys in BAD.items() for key in keys])
def test_each_bad_value_is_an_error_that_names_its_key(config: str, key: str) -> None:
    for value in BAD[config][key]:
        with pytest.raises(ValueError, match=rf"data\.{key}\b") as caught:
            dataset(config, **{key: value})
        assert caught.value.__cause__ is None or isinstance(caught.value.__cause__.__cause__, ValueError), value


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images" / "learn").mkdir(parents=True)
    with pytest.raises(ValueError, match="~/images: there is no test part"):
        dataset("folder", root="~/images")
