"""Settings that fit no data set: each an error that names its key, before anything is read."""

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
        "num_classes": [0, 10.0, "10", True, None],
        "channels": [2, "3"],
        "size": [-32, None],
        "mean": [0.5, [0.5] * 5, {"r": 0.5}, [0.5, 0.5, "0.5"], [0.5, 0.5, NAN], [124.0, 116.0, 104.0]],
        "std": [[0.5, 0.5, 0.0], [0.5, 0.5, INF]],
        "validation": [1.0, -0.1],
        "limit": [0, "all"],
        "name": ["cifar11", ["cifar10"]],
        "pad": [-1, 64],
        "flip": [1, "yes"],
        "padding_mode": ["mirror", None],
        "root": [None, "", ["data"], "a\0b", "~nobody-of-this-name/x"],
    },
    "folder": {
        "root": [None, "", 5],
        "resize": [10],
        "area": [0.5, [1.0, 0.5], [0, 1.0]],
        "aspect": [[1.0, INF], [2, 1]],
        "jitter": [1.1],
        "pca_noise": [INF],
        "interpolation": ["cubic"],
        "antialias": ["no"],
        "aspect_sampling": ["uniform"],
        "augment": ["auto", 1],
        "erase": [1.5],
        "background": ["white", [256, 0, 0], [0.5, 0.5, 0.5]],
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
