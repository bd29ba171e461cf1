"""Signals and steps that are not finite: stopped at a step boundary, a documented exit status, and the same command goes on."""

from collections.abc import Callable
from signal import SIGINT, SIGTERM, SIGUSR1
from typing import Any

from tests.faults.conftest import Place
from tests.outcome import differing, outcome

STOPPED, NAN = "stopped by {} after saving; the same command continues", "the loss or its gradient is not finite; terms"
STARTS: list[tuple[tuple[Any, ...], int, int, str]] = [  # fault, exit status, newest checkpoint, what is said
    (("infinite_term", 3), 1, 0, f"step 3: {NAN} not finite: nst_poly; there is no checkpoint yet"),
    (("in_step", 2, [SIGTERM, SIGTERM, SIGUSR1]), 143, 2, STOPPED.format("SIGTERM")),
    (("in_step", 3, [SIGINT, SIGINT]), 130, 2, "stopped at once"),
    (("in_step", 4, [SIGUSR1]), 138, 4, STOPPED.format("SIGUSR1")),
    (("in_step", 5, "nan"), 1, 4, f"step 5: {NAN} not finite: ce, nst_poly; the last good checkpoint is"),
    (("signal_in_evaluation", 1, SIGTERM), 143, 6, STOPPED.format("SIGTERM")),
    (("in_step", 7, [SIGINT]), 130, 7, STOPPED.format("SIGINT")),
    (("in_step", 12, [SIGTERM]), 143, 12, STOPPED.format("SIGTERM")),
]


def test_what_ends_a_run_is_said_and_the_same_command_continues(
    make_place: Callable[..., Place], undisturbed: dict[str, Any]
) -> None:
    """Without a signal it saves at the end of an epoch only. A step that is not finite changes nothing; a second Ctrl-C saves nothing."""
    place = make_place()
    for fault, code, step, said in STARTS:
        assert place.run(*fault) == code, place.text()
        assert place.text().count(said) == 1, place.text()
        assert "Traceback" not in place.text()
        assert [path.name for path in place.checkpoints()[-1:]] == [f"step-{step:08d}.ckpt"] * (step > 0)
        assert (place.path / "diverged.json").exists() == ("not finite" in said)
    assert not (place.path / "summary.json").exists()
    assert place.run() == 0, place.text()
    assert differing(outcome(place.path), undisturbed) == []
