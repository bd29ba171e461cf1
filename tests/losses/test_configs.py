"""Every configs/loss/*.yaml composes alone and its losses can be built."""

import inspect

import pytest
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from tests.conftest import ROOT

from nst.losses import TransferLoss


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "configs" / "loss").glob("*.yaml")))
def test_composes_and_builds_and_every_argument_is_a_key_with_its_default(name, compose):
    """So that `loss.nst_poly.implementation=pairs` works on the command line without a plus sign."""
    terms = compose(f"loss=[{name}]").loss
    raw = OmegaConf.to_container(terms, resolve=False)
    assert "ce" in terms or name == "ce"
    for key, term in terms.items():
        settings = dict(term)
        assert settings.pop("weight") > 0
        takes_layers = "layers" in settings
        settings.pop("layers", None)
        loss = instantiate(settings)
        assert isinstance(loss, TransferLoss)
        assert takes_layers != (loss.on_logits or loss.source == "labels")
        arguments = inspect.signature(get_class(settings.pop("_target_")).__init__).parameters
        assert [*settings] == [each for each in arguments if each not in ("self", "args", "kwargs")]
        for each in {*settings} - {"kernel", "weighted"}:  # what tells the files of one class apart
            default = arguments[each].default
            of_run = raw[key][each] == f"${{trainer.{each}}}"
            assert (
                default is None
                if of_run
                else settings[each] == (list(default) if isinstance(default, tuple) else default)
            )
