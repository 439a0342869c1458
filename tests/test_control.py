"""The control channel between the parent and its children: messages arrive as they were sent."""

import threading
import time

from edgesan.control import (
    ALIVE,
    CLOSED,
    NOT_RECORDED,
    RECORD_PRIVACY,
    RECORD_VERSION,
    RECORDED,
    START,
    ControlChannel,
)


def test_a_message_arrives_as_it_was_sent() -> None:
    parent, child = ControlChannel.pair()
    assert parent.receive() is None
    child.send(RECORD_VERSION, b'["default", 5]')
    child.send(ALIVE)
    assert [parent.receive(), parent.receive()] == [(RECORD_VERSION, b'["default", 5]'), (ALIVE, b"")]
    assert parent.receive() is None
    parent.send(START)
    assert child.receive() == (START, b"")
    parent.close()
    assert child.receive() == CLOSED
    child.send(ALIVE)  # nobody is there: nothing happens
    child.close()


def test_a_message_that_is_waited_for_leaves_the_others_for_later() -> None:
    parent, child = ControlChannel.pair()
    parent.send(START)
    parent.send(NOT_RECORDED, b"no room")
    assert child.wait_for(RECORDED, NOT_RECORDED) == (NOT_RECORDED, b"no room")
    assert child.wait_for(START) == (START, b"")
    parent.close()
    assert child.wait_for(START) == CLOSED
    child.close()


def test_what_is_asked_is_not_lost_however_much_waits_both_ways() -> None:
    """A parent that a slow disk holds up reads nothing, and has said much that nobody has read."""
    parent, child = ControlChannel.pair()
    for _ in range(100):  # more than a pipe holds
        child.send(ALIVE)
        parent.send(START)

    def go_on() -> None:
        time.sleep(0.2)
        while (message := parent.receive()) is None or message.kind != RECORD_PRIVACY:
            time.sleep(0.001)
        parent.send(RECORDED, message.payload)

    held_up = threading.Thread(target=go_on, daemon=True)
    held_up.start()
    assert child.ask(RECORD_PRIVACY, b"1", RECORDED, NOT_RECORDED) == (RECORDED, b"1")
    held_up.join()
    parent.close()
    assert child.ask(RECORD_PRIVACY, b"0", RECORDED) == CLOSED
    child.close()
