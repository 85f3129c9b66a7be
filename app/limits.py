"""Who may ask for how much: requests per visitor and minute, and jobs that can be stopped."""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

MOST_VISITORS = 20_000


class TooMany(ValueError):
    """A visitor asked too often; the message says when to come back."""


class RateLimit:
    """At most ``most`` calls per visitor in any ``seconds``; memory is bounded, the longest unseen are forgotten."""

    def __init__(
        self, most: int, what: str, *, seconds: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.most, self.what, self.seconds, self.clock = most, what, seconds, clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[str, deque[float]] = OrderedDict()

    def take(self, visitor: str) -> None:
        """Count one call of ``visitor``; :class:`TooMany` where that is one too many (which is then not counted)."""
        now = self.clock()
        with self._lock:
            times = self._seen.setdefault(visitor, deque())
            self._seen.move_to_end(visitor)
            while times and times[0] <= now - self.seconds:
                times.popleft()
            if len(times) >= self.most:
                wait = times[0] + self.seconds - now
                raise TooMany(f"{self.most} {self.what} in {self.seconds:.0f} s are allowed; try again in {wait:.0f} s")
            times.append(now)
            while len(self._seen) > MOST_VISITORS:
                self._seen.popitem(last=False)


def visitor_of(request: Any, *, behind_proxy: bool) -> str:
    """The name that limits count by: who is logged in, or else the address.

    ``behind_proxy``: the last entry of ``X-Forwarded-For``, which the proxy wrote; earlier ones anybody can write.
    """
    if request is None:
        return "in-process"
    if getattr(request, "username", None):
        return f"user:{request.username}"
    if behind_proxy:
        forwarded = dict(request.headers).get("x-forwarded-for", "")
        if forwarded:
            return f"address:{forwarded.split(',')[-1].strip()}"
    client = getattr(request, "client", None)
    return f"address:{getattr(client, 'host', None) or 'unknown'}"


class Cancelled(ValueError):
    """The visitor pressed Stop, or went away."""


class Jobs:
    """One job per session, which another request of the same session may stop."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stops: dict[str, threading.Event] = {}

    def start(self, session: str) -> threading.Event:
        """The event that tells the new job of ``session`` to stop; an earlier job of it is stopped."""
        with self._lock:
            self._stop(session)
            self._stops[session] = event = threading.Event()
            return event

    def stop(self, session: str) -> bool:
        """Whether there was a job to stop."""
        with self._lock:
            return self._stop(session)

    def finish(self, session: str, event: threading.Event) -> None:
        """Forget the job that ``event`` belongs to."""
        with self._lock:
            if self._stops.get(session) is event:
                del self._stops[session]

    def _stop(self, session: str) -> bool:
        event = self._stops.pop(session, None)
        if event is not None:
            event.set()
        return event is not None


def unless_stopped(event: threading.Event) -> None:
    """:class:`Cancelled` once ``event`` is set."""
    if event.is_set():
        raise Cancelled("Stopped. Nothing was kept.")
