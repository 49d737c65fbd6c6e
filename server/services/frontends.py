"""Which gRPC transport answers: the native one needs a module that is not built everywhere."""

import logging
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING

import grpc

from trimtab._native.data_plane import DataPlane

from ..config import ConfigError
from .handlers import Handler
from .portable_frontend import PortableFrontend
from .transport_options import TransportOptions

if TYPE_CHECKING:
    from .native_frontend import NativeFrontend

_logger = logging.getLogger(__name__)

_MODULE = "trimtab._native.grpc_frontend"


def choose_frontend(name: str) -> "tuple[type[NativeFrontend | PortableFrontend], str]":
    """The class of the frontend that the setting names, and the name of the one that was taken.

    Raises ConfigError where the native one was asked for and cannot be had.
    """
    if name == "portable":
        return PortableFrontend, "portable"
    try:
        from .native_frontend import NativeFrontend
    except ImportError as error:
        absent = find_spec(_MODULE) is None
        if name == "native":
            why = "was not built here" if absent else f"cannot be loaded: {error}"
            raise ConfigError(
                f"[server] frontend = native: it {why}. Install libgrpc++ with its headers and "
                "pkg-config (Debian: libgrpc++-dev pkg-config) and then trimtab again, from "
                "source; or choose portable"
            ) from error
        if not absent:
            _logger.warning("the native frontend cannot be loaded, taking portable: %s", error)
        return PortableFrontend, "portable"
    return NativeFrontend, "native"


def inference_frontend(
    name: str,
    address: str,
    handlers: Mapping[str, Handler],
    options: TransportOptions,
    plane: DataPlane,
) -> "tuple[NativeFrontend | PortableFrontend, str]":
    """The frontend of the inference port, and which one it is. Raises ConfigError."""
    _, taken = choose_frontend(name)
    if taken == "portable":
        return PortableFrontend(address, handlers, options=options), taken
    from .native_frontend import NativeFrontend

    return NativeFrontend(address, handlers, options=options, inference=plane), taken


def transport_version(name: str) -> str:
    """Of the gRPC library behind that frontend."""
    if name == "native":
        from trimtab._native import grpc_frontend

        return grpc_frontend.version()
    return grpc.__version__
