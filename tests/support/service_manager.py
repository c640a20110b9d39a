"""A stand-in for the service manager: a socket that receives the messages of a service."""

from __future__ import annotations

import contextlib
import socket


def kernel_address(address: str) -> str:
    """Return an address as the kernel takes it: @ stands for the abstract namespace."""
    return f"\0{address[1:]}" if address.startswith("@") else address


class Manager:
    """The socket of a service manager."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(kernel_address(address))
        self._socket.settimeout(0)

    def received(self) -> list[list[str]]:
        """Return the lines of each datagram since the last call."""
        datagrams = []
        while True:
            try:
                datagrams.append(self._socket.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return datagrams

    def crowd(self) -> None:
        """Fill the socket, so that it accepts nothing until `received` is called."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
            others.settimeout(0)
            with contextlib.suppress(BlockingIOError):
                while True:
                    others.sendto(b"X=1", kernel_address(self.address))

    def close(self) -> None:
        self._socket.close()
