"""Connections as a network that has gone leaves them."""

import ctypes
import socket

SO_ATTACH_FILTER = 26  # Linux, asm-generic/socket.h; not in Python's socket module
DROP = (ctypes.c_ubyte * 8)(0x06)  # one instruction of a socket filter (linux/filter.h): return 0, keep nothing


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def fall_silent(sock: socket.socket) -> None:
    """From now on nothing reaches `sock`, and so it acknowledges nothing: to its peer it is half-open."""
    program = _Program(1, ctypes.cast(DROP, ctypes.c_void_p))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, bytes(program))
