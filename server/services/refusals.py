"""What a client is told of an error: the same status and text, whichever frontend says it."""

import logging

import grpc

from ..errors import TrimtabError, status_of

_logger = logging.getLogger(__name__)

# Bytes of an error's text; gRPC makes up to three of one when it percent-encodes, and clients drop a
# reply whose trailing metadata exceed 8 KiB: they would see RESOURCE_EXHAUSTED in place of the status.
MAX_DETAILS = 1000


def refusal(method: str, error: Exception) -> tuple[grpc.StatusCode, str]:
    """The status and text of an error that escaped a handler; a bug is logged with its traceback."""
    if not isinstance(error, TrimtabError):
        _logger.error("%s failed", method, exc_info=error)
    return status_of(error), _details(str(error) or type(error).__name__)


def _details(text: str) -> str:
    """The text, cut where it is too long: it may quote what a client sent."""
    encoded = text[:MAX_DETAILS].encode(errors="replace")[:MAX_DETAILS]
    shown = encoded.decode(errors="ignore")
    return shown + "…" if len(shown) < len(text) else shown
