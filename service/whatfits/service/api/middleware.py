"""What wraps every request: whom it was sent to, a limit on its size, security headers, a problem document for the unexpected."""

from http import HTTPStatus
from urllib.parse import urlsplit

import structlog
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from whatfits.service.problems import INTERNAL_ERROR, MISDIRECTED, build_problem_response
from whatfits.service.settings import is_loopback

# Plotly writes style elements and style attributes of its own, hence 'unsafe-inline' for styles alone.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode("ascii")),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class LoopbackHostMiddleware:
    """Answers only what was sent to this machine by a loopback name.

    While there are no API keys, a page of another site must not reach the server through a name that resolves to
    127.0.0.1, and a port that was published too widely by mistake must not look as if it worked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _names_loopback(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
            return
        detail = (
            "This server has no API keys yet, so it answers only requests sent to localhost, 127.0.0.1 or [::1]; "
            "from another machine, use a tunnel such as ssh -L 8000:127.0.0.1:8000."
        )
        response = build_problem_response(MISDIRECTED, detail=detail, instance=scope["path"])
        await response(scope, receive, send)


def _names_loopback(host_header: str) -> bool:
    """Whether a Host header (RFC 9110, section 7.2: a host, perhaps a port) names this machine."""
    try:
        return is_loopback(urlsplit(f"//{host_header}").hostname or "")
    except ValueError:
        return False


class SecurityHeadersMiddleware:
    """Adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *SECURITY_HEADERS]
            await send(message)

        await self.app(scope, receive, send_with_headers)


class BodyLimitMiddleware:
    """Refuses to read a request body larger than the limit, whether its length is announced or not."""

    def __init__(self, app: ASGIApp, *, max_body_bytes: int) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stated = Headers(scope=scope).get("content-length", "0") if scope["type"] == "http" else "0"
        announced = int(stated) if stated.isdecimal() else 0
        received = 0

        async def receive_within_limit() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if max(announced, received) > self.max_body_bytes:
                raise HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
            return message

        await self.app(scope, receive_within_limit, send)


class UnexpectedErrorMiddleware:
    """Answers an unexpected exception with a 500 problem document and logs it; the client sees no traceback."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = False

        async def watch_start(message: Message) -> None:
            nonlocal started
            started = started or message["type"] == "http.response.start"
            await send(message)

        try:
            await self.app(scope, receive, watch_start)
        except Exception:
            structlog.get_logger().exception("request.failed", method=scope["method"], path=scope["path"])
            if started:
                raise
            detail = "The server met a problem of its own while answering; its log has the details."
            response = build_problem_response(INTERNAL_ERROR, detail=detail, instance=scope["path"])
            await response(scope, receive, send)
