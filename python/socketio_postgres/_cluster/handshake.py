"""How a Python socket looks to peers that fetch it: the `handshake` object of Socket.IO.

Node's `RemoteSocket` and Admin UI read `headers` and `data` without checking that they are objects, Go decodes
into typed structs: every field below has the one type that all of them accept.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

__all__ = ["handshake"]


def handshake(environ: Mapping[str, Any], issued: float) -> dict[str, Any]:
    """The handshake of a client from its WSGI-style `environ`.

    Args:
        environ: As python-socketio keeps it; the ASGI scope or aiohttp request inside is preferred.
        issued: When the client connected, in seconds since 1970.

    Returns:
        `headers` (lower-case names), `time`, `address`, `xdomain`, `secure`, `issued` (integer milliseconds), `url`,
        `query` (single values flattened) and `auth` (empty: it holds secrets).
    """
    headers = _headers(environ)
    query_string = _text(environ.get("QUERY_STRING"))
    query = parse_qs(query_string, keep_blank_values=True)
    url = _text(environ.get("RAW_URI") or environ.get("PATH_INFO"))
    if "?" not in url and query_string:
        url += "?" + query_string
    return {
        "headers": headers,
        "time": time.strftime("%a %b %d %Y %H:%M:%S GMT+0000", time.gmtime(issued)),
        "address": _address(environ),
        "xdomain": "origin" in headers,
        "secure": _scheme(environ) in {"https", "wss"},
        "issued": int(issued * 1000),
        "url": url,
        "query": {name: values[0] if len(values) == 1 else values for name, values in query.items()},
        "auth": {},
    }


def _headers(environ: Mapping[str, Any]) -> dict[str, str]:
    scope = environ.get("asgi.scope")
    if scope is not None:
        return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
    headers = {
        name[5:].replace("_", "-").lower(): _text(value) for name, value in environ.items() if name.startswith("HTTP_")
    }
    for name in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        if environ.get(name):
            headers[name.replace("_", "-").lower()] = _text(environ[name])
    return headers


def _text(value: Any) -> str:
    """What a driver of Engine.IO put into the environ, where WSGI has a string."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return "" if value is None else str(value)


def _address(environ: Mapping[str, Any]) -> str:
    # python-engineio's ASGI and aiohttp drivers write 127.0.0.1 into REMOTE_ADDR for every client.
    scope = environ.get("asgi.scope")
    if scope is not None and scope.get("client"):
        return str(scope["client"][0])
    request = environ.get("aiohttp.request")
    if request is not None and request.remote:
        return str(request.remote)
    return _text(environ.get("REMOTE_ADDR"))


def _scheme(environ: Mapping[str, Any]) -> str:
    scope = environ.get("asgi.scope")
    if scope is not None:
        return str(scope.get("scheme", ""))
    return str(environ.get("wsgi.url_scheme", ""))
