"""The socket that the service listens on."""

import socket

from tokforget.service.server import bind
from tokforget.service.settings import Settings


def test_an_answer_does_not_wait_for_its_head_to_be_acknowledged():
    """The body of an answer is a packet of its own, and without this option it came 40 ms later."""
    with bind(Settings(port=0)) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
