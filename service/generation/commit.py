"""What a generation stores of its session: snapshots while it runs, and its end.

The stream of chunks knows only a CommitPolicy. Which one is used is decided once, where the generation starts.
"""

from __future__ import annotations

import contextlib
import time
from typing import Protocol

from service.engine.stream import End
from service.errors import StoreUnavailable
from service.store.sessions import COMPLETE, Session, SessionStore, TurnRecord


class SessionLease:
    """The right to write one session, while its token is the store's."""

    def __init__(
        self, store: SessionStore, session_id: str, token: str, lease_s: float, *, is_new: bool = False
    ) -> None:
        """Take over a lease that was just acquired, or that begins with the turn.

        Args:
            store: Where it was acquired.
            session_id: The session.
            token: Goes with every write; the store has given it, or gets it with the turn that begins a new session.
            lease_s: The lease ends after this time without a renewal or a save.
            is_new: Whether the session has a new id, and the store knows nothing of it before its turn begins.
        """
        self.session_id = session_id
        self._store = store
        self._token = token
        self._lease_s = lease_s
        self._is_new = is_new
        self._exists = True  # whether the store still has the session
        self._schedule_renewal()

    def begin(self, record: TurnRecord, start: Session | None) -> None:
        """Store that a turn begins.

        Raises:
            SessionConflict: Another request has taken the session over.
            StoreUnavailable: The store does not answer.
        """
        if self._is_new:
            self._store.create_turn(self.session_id, self._token, record, self._lease_s)
            self._is_new = False
        else:
            self._exists = self._store.begin(self.session_id, self._token, record, start, self._lease_s)

    def renew_if_due(self) -> None:
        """Renew the lease when a third of its time has passed.

        Raises:
            SessionConflict: Another request has taken the session over.
        """
        if self._exists and time.monotonic() >= self._renew_at:
            self._schedule_renewal()
            with contextlib.suppress(StoreUnavailable):  # whether the text can be saved shows at its end
                self._exists = self._store.renew(self.session_id, self._token, self._lease_s)

    def save(self, session: Session) -> None:
        """Store a snapshot.

        Raises:
            SessionConflict: Another request has taken the session over.
        """
        if self._exists:
            self._schedule_renewal()
            with contextlib.suppress(StoreUnavailable):
                self._exists = self._store.save(self.session_id, self._token, session, self._lease_s)

    def commit(self, session: Session, finish_reason: str) -> bool:
        """Store the end of the turn and release the lease; return whether it was stored.

        Raises:
            SessionConflict: Another request has taken the session over.
        """
        try:
            return self._exists and self._store.commit(self.session_id, self._token, session, finish_reason)
        except StoreUnavailable:
            return False

    def abandon(self) -> None:
        """Release the lease without storing anything. It would also expire."""
        if self._is_new:  # the store knows nothing of it
            return
        with contextlib.suppress(StoreUnavailable):
            self._store.abandon(self.session_id, self._token)

    def discard(self) -> None:
        """Forget the turn and release the lease."""
        with contextlib.suppress(StoreUnavailable):
            self._store.discard(self.session_id, self._token)

    def _schedule_renewal(self) -> None:
        self._renew_at = time.monotonic() + self._lease_s / 3


class CommitPolicy(Protocol):
    """What is stored. All methods but `abandon` may raise SessionConflict: another request has the session."""

    @property
    def session_id(self) -> str | None:
        """The session that can be continued after this generation."""
        ...

    def keep_alive(self) -> None:
        """Called often while the generation runs."""
        ...

    def snapshot(self, session: Session) -> None:
        """Store the session as it is at the end of a chunk."""
        ...

    def finish(self, end: End, session: Session | None) -> bool:
        """Store the end of the generation; return whether the session is saved there.

        Args:
            end: How it ended.
            session: At the end of the text that was sent; None if not even the prompt was read.
        """
        ...

    def abandon(self) -> None:
        """Release the session without storing anything."""
        ...

    def discard(self) -> None:
        """Forget a turn of which nothing was read and nothing can be resumed: its prompt is not kept."""
        ...


class NotSaved:
    """A text that is not kept, because the session store does not answer."""

    session_id: str | None = None

    def keep_alive(self) -> None:
        """There is nothing to renew."""

    def snapshot(self, session: Session) -> None:
        """There is nowhere to store it."""

    def finish(self, end: End, session: Session | None) -> bool:
        """Return that it is not saved."""
        return False

    def abandon(self) -> None:
        """There is nothing to release."""

    def discard(self) -> None:
        """There is nothing to forget."""


class AlreadySaved(NotSaved):
    """A complete turn that is sent again: the session does not change, also if the client leaves."""

    def __init__(self, session_id: str) -> None:
        """Name the session."""
        self.session_id = session_id

    def finish(self, end: End, session: Session | None) -> bool:
        """Return that it is saved."""
        return True


class SaveTurn:
    """A turn of a session whose lease is ours."""

    def __init__(self, lease: SessionLease, start: Session | None, stored: Session | None) -> None:
        """Save with a lease, which ends with the generation.

        Args:
            lease: Of the session.
            start: The session before the turn.
            stored: The newest save of a turn that is resumed; the session is never set back before it.
        """
        self._lease = lease
        self._start = start
        self._stored = stored

    @property
    def session_id(self) -> str | None:
        """Implement CommitPolicy.session_id."""
        return self._lease.session_id

    def keep_alive(self) -> None:
        """Renew the lease in time."""
        self._lease.renew_if_due()

    def snapshot(self, session: Session) -> None:
        """Store a snapshot that is newer than what is stored."""
        if self._is_newer(session):
            self._lease.save(session)

    def finish(self, end: End, session: Session | None) -> bool:
        """Store where the text ended; of one that can be resumed from its start, where it would have begun."""
        if self._stored is not None and end.finish_reason not in COMPLETE and not self._is_newer(session):
            self._lease.abandon()  # what the client was sent is stored already
            return True
        if session is None:
            session = self._start
        if session is not None:
            return self._lease.commit(session, end.finish_reason)
        self._lease.abandon()
        return False

    def abandon(self) -> None:
        """Release the lease."""
        self._lease.abandon()

    def discard(self) -> None:
        """Forget the turn and release the lease."""
        self._lease.discard()

    def _is_newer(self, session: Session | None) -> bool:
        """Whether a session is beyond what is stored of the turn."""
        return self._stored is None or (session is not None and session.position > self._stored.position)
