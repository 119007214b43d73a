"""The seam for file writers: work that takes long, done beside the program that asks for it.

This is the one place on these floors that knows threads. In the simulator, and in tests, the work
is done at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from psgrad.errors import ProtocolError

R = TypeVar("R")


class Writer(Protocol[R]):
    """One piece of work at a time; ``R`` is its result, never None."""

    @property
    def busy(self) -> bool:
        """Whether work was submitted whose outcome ``poll`` has not given yet."""
        ...

    def submit(self, work: Callable[[], R]) -> None:
        """Begins ``work``; raises ``ProtocolError`` while ``busy``."""
        ...

    def poll(self) -> R | None:
        """The result, once, when the work is done; else None. Raises what the work has raised."""
        ...

    def finish(self) -> None:
        """Waits until the work is done, if there is any; ``poll`` then has its outcome."""
        ...


class InlineWriter(Generic[R]):
    """Works inside of ``submit``; what that raises is kept for ``poll`` as well."""

    def __init__(self) -> None:
        self._job: _Job[R] | None = None

    @property
    def busy(self) -> bool:
        """As in ``Writer``."""
        return self._job is not None

    def submit(self, work: Callable[[], R]) -> None:
        """As in ``Writer``."""
        _refuse_two(self.busy)
        self._job = _Job(work)
        self._job.run()

    def poll(self) -> R | None:
        """As in ``Writer``."""
        job, self._job = self._job, None
        return None if job is None else job.outcome()

    def finish(self) -> None:
        """There is nothing to wait for."""


class ThreadWriter(Generic[R]):
    """Works in a thread, one for each piece. A process that ends does not wait for it."""

    def __init__(self) -> None:
        self._job: _Job[R] | None = None
        self._thread: threading.Thread | None = None

    @property
    def busy(self) -> bool:
        """As in ``Writer``."""
        return self._job is not None

    def submit(self, work: Callable[[], R]) -> None:
        """As in ``Writer``."""
        _refuse_two(self.busy)
        job = _Job(work)
        thread = threading.Thread(target=job.run, name="psgrad-writer", daemon=True)
        thread.start()
        self._job, self._thread = job, thread

    def poll(self) -> R | None:
        """As in ``Writer``."""
        if self._job is None or self._thread is None or self._thread.is_alive():
            return None
        job, self._job, self._thread = self._job, None, None
        return job.outcome()

    def finish(self) -> None:
        """As in ``Writer``."""
        if self._thread is not None:
            self._thread.join()


class ToldWriter(Generic[R]):
    """A writer that is done when it is told so: what is done then follows from that alone.

    ``below`` does the work; where there is none, somebody else does the same work elsewhere, and
    ``begin`` has it done here after all.
    """

    def __init__(self, below: Writer[R] | None = None) -> None:
        self._below = below
        self._work: Callable[[], R] | None = None
        self._told: R | None = None

    @property
    def busy(self) -> bool:
        """As in ``Writer``."""
        return self._work is not None

    def submit(self, work: Callable[[], R]) -> None:
        """As in ``Writer``."""
        _refuse_two(self.busy)
        self._work = work
        if self._below is not None:
            self._below.submit(work)

    def outcome(self) -> R | None:
        """What ``tell`` is to be called with, once; raises what the work has raised."""
        return None if self._below is None else self._below.poll()

    def tell(self, result: R) -> None:
        """The work is done."""
        self._told = result

    def poll(self) -> R | None:
        """As in ``Writer``."""
        told, self._told = self._told, None
        if told is not None:
            self._work = None
        return told

    def finish(self) -> None:
        """As in ``Writer``."""
        if self._below is not None:
            self._below.finish()

    def begin(self, below: Writer[R]) -> None:
        """Work is done here from now on, by ``below``: also that which is under way."""
        self._below = below
        if self._work is not None and self._told is None:
            below.submit(self._work)


class _Job(Generic[R]):
    """A piece of work and, when it has run, its result or its error."""

    def __init__(self, work: Callable[[], R]) -> None:
        self._work = work
        self._result: R | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._result = self._work()
        except BaseException as error:  # of another thread: told where it is asked for
            self._error = error

    def outcome(self) -> R | None:
        if self._error is not None:
            raise self._error
        return self._result


def _refuse_two(busy: bool) -> None:
    if busy:
        raise ProtocolError("a writer was given work before the last result was asked for")
