"""Losses and gradients that are not finite: never into the weights."""

from pathlib import Path

from tests.faults.conftest import Place, Server

from nst.runs.checkpoint import Checkpoints


def test_stops_with_step_term_and_checkpoint(place: Place) -> None:
    """Also when the step comes between two log rows and a checkpoint is due first."""
    assert place.run("nan_in_step", 7, args=["trainer.log_every=5"]) == 1
    assert "step 7: the loss or its gradient is not finite; terms not finite: ce, nst_poly; " in place.text()
    assert "the last good checkpoint is" in place.text()
    assert "step-00000006.ckpt; trainer.clip_grad_norm=2 or a lower optim.lr may prevent it" in place.text()
    found = Checkpoints(place.path).latest()
    assert found is not None
    assert found[0].name == "step-00000006.ckpt"
    state = found[1]
    assert all(value.isfinite().all() for value in state["distiller"].values())


def test_first_step(place: Place) -> None:
    assert place.run("nan_in_step", 1) == 1
    assert "step 1: " in place.text()
    assert "there is no checkpoint yet" in place.text()


def test_infinite_loss_with_finite_gradient(place: Place) -> None:
    assert place.run("infinite_term", 3, "nst_poly") == 1
    assert "step 3: the loss or its gradient is not finite; terms not finite: nst_poly; " in place.text()


def test_any_rank(server: Server, tiny: list[str], tmp_path: Path) -> None:
    """No rank takes the step; the reason is reported once."""
    place = Place(server, tmp_path / "here", [*tiny, "trainer.checkpoint_every=2 steps"])
    assert place.ranks("nan_in_step", 5, 1) == [1, 1]
    texts = place.text(0) + place.text(1)
    assert texts.count("step 5: the loss or its gradient is not finite; terms not finite: ce, nst_poly") == 1
    assert texts.count("step-00000004.ckpt") == 1
    assert "Traceback" not in texts
