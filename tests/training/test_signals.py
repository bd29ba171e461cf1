"""Signals: only a flag while training, as they were before and after."""

import os
import signal

import pytest

from nst.dist import Interrupted, stop_flag


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_a_flag(signum: signal.Signals) -> None:
    before = signal.getsignal(signum)
    with stop_flag() as flag:
        assert flag.signum == 0
        os.kill(os.getpid(), signum)
        assert flag.signum == signum
    assert signal.getsignal(signum) is before


def test_the_first_counts_and_a_second_sigint_stops() -> None:
    with stop_flag() as flag:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGUSR1)
        assert flag.signum == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_exit_status() -> None:
    stop = Interrupted(signal.SIGUSR1)
    assert stop.status == 138
    assert "SIGUSR1" in str(stop)
