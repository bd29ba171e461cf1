"""Every configs/loss/*.yaml composes alone and its losses can be built."""

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf

from nst.losses import TransferLoss

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "loss"
OTHER_THAN_DEFAULT = {"kernel", "weighted"}  # what tells the files of one class apart


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_composes_and_builds(name, tmp_path):
    lines = ["hydra:", f"  searchpath: ['{FOLDER.parent}']", "defaults:", f"  - loss: [{name}]", "  - _self_"]
    lines += ["trainer: {epochs: 240}"]
    (tmp_path / "one.yaml").write_text("\n".join(lines))
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        terms = compose("one").loss
    assert "ce" in terms or name == "ce"
    for term in terms.values():
        settings = dict(term)
        assert settings.pop("weight") > 0
        takes_layers = "layers" in settings
        settings.pop("layers", None)
        loss = instantiate(settings)
        assert isinstance(loss, TransferLoss)
        assert takes_layers != (loss.on_logits or loss.source == "labels")


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_every_argument_is_a_key_with_its_default(name):
    """So that `loss.nst_poly.implementation=pairs` works on the command line without a plus sign."""
    for term in OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml")).values():
        if not isinstance(term, dict):
            continue  # a sum names other files
        arguments = inspect.signature(get_class(term["_target_"]).__init__).parameters
        keys = {key: value for key, value in term.items() if key not in ("weight", "layers", "_target_")}
        assert [*keys] == [key for key in arguments if key not in ("self", "args", "kwargs")]
        for key, value in keys.items():
            default = arguments[key].default
            if value == f"${{trainer.{key}}}":
                assert default is None
            elif key not in OTHER_THAN_DEFAULT:
                assert value == (list(default) if isinstance(default, tuple) else default)
