"""Says why an address cannot be had, which gRPC only writes to standard error."""

import socket
from errno import EADDRINUSE


def check_free(address: str) -> None:
    """Raises OSError, which names the address and the reason."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.getaddrinfo(
            host.strip("[]") or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, target in found[:1]:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(target)
    except OSError as error:
        hint = "; choose another port, or 0 for a free one" if error.errno == EADDRINUSE else ""
        raise OSError(f"cannot listen on {address}: {error.strerror}{hint}") from error
