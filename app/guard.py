"""A small ASGI middleware in front of Gradio: no uploads, no fetching of URLs, bounded requests, a strict policy.

Nothing in the app takes a file, so the upload route, which Gradio always opens, is shut. The content policy makes the
page work offline and keeps anything that slipped through escaping from loading or sending anything elsewhere. Pages of
other sites are refused whatever the host is: Gradio's ``strict_cors`` looks at this machine's own names only, and lets
any site read what a logged-in visitor may read once the app has another address.
"""

from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LARGEST_BODY = 64 * 1024  # bytes; the longest prompt is some 4 kB
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; media-src 'self'; "
        "object-src 'none'; base-uri 'self'; form-action 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


class Guard:
    """Wraps the app; refuses with 403 or 413 and a sentence, and adds ``HEADERS`` to every answer.

    ``behind_proxy``: the address that visitors use may also stand in ``X-Forwarded-Host``.
    """

    def __init__(
        self, app: Callable[..., Awaitable[None]], largest_body: int = LARGEST_BODY, *, behind_proxy: bool = False
    ) -> None:
        self.app, self.largest_body, self.behind_proxy = app, largest_body, behind_proxy

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = refused(scope["path"]) or foreign(scope["headers"], self.behind_proxy)
        if refusal is not None:
            await _answer(send, 403, refusal)
            return
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            await self.app(scope, receive, _with_headers(send))
            return
        body, complete = bytearray(), False
        while not complete:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            complete = not message.get("more_body", False)
            if len(body) > self.largest_body:
                await _answer(send, 413, f"the request is larger than {self.largest_body} bytes, and nothing here is")
                return
        await self.app(scope, _replay(bytes(body), receive), _with_headers(send))


def refused(path: str) -> str | None:
    """Why ``path`` is not served, or None."""
    plain = unquote(path).lower()
    if "/upload" in plain:
        return "this app takes no files: type a prompt instead"
    if "proxy=" in plain or ("file=" in plain and "://" in plain.split("file=", 1)[1]):
        return "this app fetches nothing from elsewhere"
    return None


def foreign(headers: Iterable[tuple[bytes, bytes]], behind_proxy: bool) -> str | None:
    """Why a request of another site's page is not answered; None for one of this page, or of a program."""
    sent = {name.lower(): value.decode("latin-1") for name, value in headers}
    origin = sent.get(b"origin")
    own = {sent.get(b"host", "")} | ({sent.get(b"x-forwarded-host", "")} if behind_proxy else set())
    if origin is None or (origin.partition("://")[2] or "none") in own:
        return None
    return "this app answers its own page and programs, not the pages of other sites"


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
            message["headers"] = [*message.get("headers", []), *extra]
        await send(message)

    return sending


async def _answer(send: Send, status: int, text: str) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await _with_headers(send)({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
