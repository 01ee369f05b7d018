import signal

import pytest

from advisor import interrupts


@pytest.fixture
def watched():
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupts.watch()
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_that_was_swallowed_comes_up_again(watched, number):
    interrupts.check()
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(number)  # here a library would catch it
    with pytest.raises(KeyboardInterrupt):
        interrupts.check()


def test_a_new_command_begins_uninterrupted(watched):
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)
    interrupts.watch()
    interrupts.check()
