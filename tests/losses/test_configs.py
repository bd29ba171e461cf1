"""Every configs/loss/*.yaml composes alone and its losses can be built."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from nst.losses import TransferLoss

FOLDER = Path(__file__).resolve().parents[2] / "configs" / "loss"
SUMS = {
    "kd_at": ["ce", "kd", "at"],
    "kd_fitnet": ["ce", "kd", "fitnet"],
    "kd_nst_linear": ["ce", "kd", "nst_linear"],
    "kd_nst_poly": ["ce", "kd", "nst_poly"],
    "kd_nst_gaussian": ["ce", "kd", "nst_gaussian"],
    "kd_fitnet_nst_poly": ["ce", "kd", "fitnet", "nst_poly"],
}
WEIGHTS = {"ce": 1, "kd": 16, "at": 1000, "fitnet": 100, "nst_linear": 50, "nst_poly": 50, "nst_gaussian": 100}


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_composes_and_builds(name, tmp_path):
    lines = ["hydra:", f"  searchpath: ['{FOLDER.parent}']", "defaults:", f"  - loss: [{name}]", "  - _self_"]
    (tmp_path / "one.yaml").write_text("\n".join(lines))
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        terms = compose("one").loss
    assert list(terms) == SUMS.get(name, list(dict.fromkeys(["ce", name])))
    for key, term in terms.items():
        settings = dict(term)
        assert settings.pop("weight") == WEIGHTS.get(key, 100)
        taps = settings.pop("taps", None)
        loss = instantiate(settings)
        assert isinstance(loss, TransferLoss)
        assert (taps is None) == loss.on_logits
