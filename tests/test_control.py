"""The control channel between the parent and its children: messages arrive as they were sent."""

from edgesan.control import ALIVE, CLOSED, NOT_RECORDED, RECORD_VERSION, RECORDED, START, ControlChannel


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
