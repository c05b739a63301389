"""Signals end a block where it may end, save when asked, and restore everything afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from maw.runtime import signals


@pytest.fixture(autouse=True)
def not_ignored():
    """As in a process that a shell has started in the foreground."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_block(number, code):
    before = signal.getsignal(number)

    def block():
        with signals.handlers():
            send(number)
            raise AssertionError("the signal came too late")

    with pytest.raises(signals.Stopped) as stopped:
        block()
    assert stopped.value.exit_code == code and stopped.value.name in ("SIGTERM", "SIGINT")
    assert signal.getsignal(number) is before and not signals.stop_asked()


class Closing:
    """What does something when it goes, as the tables of `datasets` do."""

    def __init__(self, act):
        self.act = act

    def __del__(self):
        self.act()


def test_a_signal_inside_a_destructor_is_raised_at_the_next_check_and_says_nothing(monkeypatch):
    told = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: told.append(unraisable.exc_type))
    with signals.handlers():
        Closing(lambda: send(signal.SIGTERM))
        Closing(lambda: 1 / 0)
        with pytest.raises(signals.Stopped):
            signals.check()
    assert told == [ZeroDivisionError]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_a_library_made_another_error_of_is_still_one(number):
    """As an import of a module in C does: "ImportError: initialization failed"."""

    def imported():
        with signals.handlers():
            try:
                send(number)
            except signals.Stopped:
                raise ImportError("initialization failed") from None

    with pytest.raises(signals.Stopped) as caught:
        imported()
    assert caught.value.number == number and isinstance(caught.value.__cause__, ImportError)
    with pytest.raises(ImportError), signals.handlers():
        raise ImportError("without a signal it stays what it is")


def test_another_error_is_not_hidden_by_a_signal_that_waits():
    """Such as a full disk during the save that the stop waits for."""

    def save():
        with signals.handlers(), signals.held_back():
            send(signal.SIGTERM)
            raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        save()


def test_what_is_held_back_comes_at_the_next_check():
    done = []

    def block():
        with signals.held_back():
            with signals.held_back():
                send(signal.SIGTERM)
                done.append("the step")
            done.append("the save")
        assert signals.stop_asked()
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "the next one ends the process at once"
        with signals.held_back():
            signals.check()
            done.append("too much")

    with signals.handlers(), pytest.raises(signals.Stopped):
        block()
    assert done == ["the step", "the save"]
    signals.check()


def test_a_warning_asks_for_one_save():
    with signals.handlers():
        assert not signals.save_asked()
        send(signal.SIGUSR1)
        assert signals.save_asked() and not signals.save_asked()
        signals.check()


def test_what_was_ignored_stays_so():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.handlers():
        send(signal.SIGINT)
        assert not signals.stop_asked() and signal.getsignal(signal.SIGINT) == signal.SIG_IGN


def test_other_threads_install_nothing():
    before, found = signal.getsignal(signal.SIGTERM), []

    def run():
        with signals.handlers():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_the_process_at_once(number):
    """Even where the first one is held back for ever."""
    code = (
        "import time\nfrom maw.runtime import signals\n"
        "with signals.handlers(), signals.held_back():\n    print('here', flush=True)\n"
        "    while not signals.stop_asked():\n        time.sleep(0.01)\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        assert child.stdout.readline() == "held\n"
        started = time.monotonic()
        child.send_signal(number)
        assert child.wait(30) == -number and time.monotonic() - started < 2
