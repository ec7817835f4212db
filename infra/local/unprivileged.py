"""Runs a server as another user than root, because PostgreSQL refuses to run as root (Linux only).

The child keeps one capability, and only if it needs it: to search directories. A clone under /root or the private temporary
directory of a test is closed to other users, and the server's files are below it.
"""

import ctypes
import os
import pwd
import struct
from collections.abc import Callable
from pathlib import Path

CANDIDATES = ("thrones", "postgres", "nobody")
PR_SET_KEEPCAPS, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 8, 47, 2
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH = 1, 2  # containers often have only the first
SYS_CAPGET_CAPSET = {"x86_64": (125, 126), "aarch64": (90, 91)}
_libc = ctypes.CDLL(None, use_errno=True)


def unprivileged_user(data: Path) -> pwd.struct_passwd:
    """The user for the server: the owner of its data if there is data, else the first candidate that exists."""
    if data.exists() and data.stat().st_uid != 0:
        return pwd.getpwuid(data.stat().st_uid)
    known = {entry.pw_name: entry for entry in pwd.getpwall()}
    return next(known[name] for name in CANDIDATES if name in known)


def run_as(user: pwd.struct_passwd, *paths: Path) -> Callable[[], None]:
    """What the child runs before exec: it switches to `user`, who can still reach `paths`."""
    searching = not all(_open_to_all(path) for path in paths)

    def switch_user() -> None:
        if searching:
            _libc.prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
        os.setgroups([])
        os.setgid(user.pw_gid)
        os.setuid(user.pw_uid)
        os.umask(0o077)
        if searching:
            _keep_searching()

    return switch_user


def _open_to_all(path: Path) -> bool:
    """Whether every user can reach `path` (but perhaps not read it)."""
    return all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents if parent.exists())


def _keep_searching() -> None:
    get, put = SYS_CAPGET_CAPSET[os.uname().machine]
    header = struct.pack("=Ii", CAPABILITY_VERSION_3, 0)
    sets = ctypes.create_string_buffer(24)  # twice (effective, permitted, inheritable), 32 bits each
    _libc.syscall(get, header, sets)
    permitted = struct.unpack("=6I", sets.raw)[1]
    wanted = CAP_DAC_READ_SEARCH if permitted & (1 << CAP_DAC_READ_SEARCH) else CAP_DAC_OVERRIDE
    bit = 1 << wanted
    _libc.syscall(put, header, struct.pack("=6I", bit, bit, bit, 0, 0, 0))
    _libc.prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, wanted, 0, 0)
