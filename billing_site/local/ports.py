"""Which TCP ports of this machine are free, and which answer."""

import os
import socket
import urllib.error
import urllib.request

LOCALHOST = "127.0.0.1"


def why_unusable(port: int) -> str | None:
    """Why a server could not listen on this port now, on loopback or on every address; None if it could."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOCALHOST, port))
        except OSError as error:
            return os.strerror(error.errno or 0).lower()
    return None


def free(wanted: int = 0) -> int:
    """``wanted`` if it is free, else any free port. Nobody holds it for us: bind soon."""
    if wanted and not why_unusable(wanted):
        return wanted
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        return int(probe.getsockname()[1])


def answers(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((LOCALHOST, port)) == 0


def serves(url: str) -> bool:
    """Whether anything but a server error comes back over HTTP."""
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500
    except (OSError, ValueError):
        return False
