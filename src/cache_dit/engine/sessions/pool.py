"""The open requests of one transformer: at most so many, and the longest unused one is closed first."""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable

from cache_dit.engine.sessions.session import Session

logger = logging.getLogger(__name__)


class SessionPool:
    """The sessions of one transformer by their requests' keys, for any number of threads.

    A session is never freed under a forward that uses it: one that is closed meanwhile (by another thread, or to make
    room) is freed when the forward ends. All that is done here takes the same time however many sessions are open; the
    keys of threads are looked through, of which there are as many as threads that run.
    """

    def __init__(self) -> None:
        #: The open ones, the longest unused first.
        self.sessions: OrderedDict[Hashable, Session] = OrderedDict()
        #: The one that was opened last, open or not.
        self.latest: Session | None = None
        self._threads: set[tuple[Hashable, threading.Thread]] = set()
        self._lock = threading.Lock()

    def open(
        self, key: Hashable, make: Callable[[], Session], *, limit: int, thread: threading.Thread | None = None
    ) -> tuple[Session, list[Session]]:
        """The session of a request, made where it is missing.

        Args:
            key: the request's key.
            make: makes the session.
            limit: how many may be open.
            thread: the thread whose own calls these are, where they belong to no named request.

        Returns:
            The session, and those that ended because of it.
        """
        with self._lock:
            if key in self.sessions:
                return self.sessions[key], []
            ended = self._without_dead_threads()
            opened = self.sessions[key] = self.latest = make()
            if thread is not None:
                self._threads.add((key, thread))
            crowded = []
            while len(self.sessions) > limit:
                key = next(iter(self.sessions))
                ended.append(self._close(key))
                crowded += [] if ended[-1].finished else [key]
        for key in crowded:
            logger.warning("more than max_sessions=%d requests are open: closed the longest unused one, %r", limit, key)
        return opened, ended

    def hold(self, key: Hashable, session: Session) -> None:
        """A forward begins: until ``release`` the session's tensors stay, and it is the one that was used last."""
        with self._lock:
            session.users += 1
            if self.sessions.get(key) is session:
                self.sessions.move_to_end(key)

    def release(self, session: Session) -> None:
        """A forward has ended."""
        with self._lock:
            session.users -= 1
            if session.closed or session.unwanted:
                self._tidy(session)

    def free(self, session: Session) -> None:
        """Free a session's tensors as soon as no forward uses them."""
        with self._lock:
            session.unwanted = True
            self._tidy(session)

    def close(self, key: Hashable, only: Session | None = None) -> Session | None:
        """End a request, if it is open (and if its session is ``only``, where that is given); gives its session."""
        with self._lock:
            session = self.sessions.get(key)
            if session is None or session is not (only or session):
                return None
            return self._close(key)

    def close_all(self) -> list[Session]:
        """End all requests; gives their sessions."""
        with self._lock:
            return [self._close(key) for key in list(self.sessions)]

    def _close(self, key: Hashable) -> Session:
        session = self.sessions.pop(key)
        session.closed = True
        self._tidy(session)
        return session

    @staticmethod
    def _tidy(session: Session) -> None:
        if (session.closed or session.unwanted) and not session.users:
            session.unwanted = False
            session.free()

    def _without_dead_threads(self) -> list[Session]:
        """A thread that has ended will not go on with its request."""
        dead = [(key, thread) for key, thread in self._threads if not thread.is_alive()]
        self._threads.difference_update(dead)
        return [self._close(key) for key, _ in dead if key in self.sessions]
