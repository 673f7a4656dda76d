# SPDX-License-Identifier: Apache-2.0
"""Budgets of memory for media, of a request and of the process: loading waits until there is room.

A request's pictures and videos are loaded side by side, and none knows of the others. So memory is
taken here before it is used: for the bytes of a file, and for its decoding, as the header tells.
All is given back when the request's media have been processed, or when its client has left.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from threading import Lock
from typing import Generic, TypeVar

from vllm_glm41v_npu.processing.limits import mebibytes

REQUEST_VARIABLE = "VLLM_GLM41V_NPU_MAX_REQUEST_MB"
PROCESS_VARIABLE = "VLLM_GLM41V_NPU_MAX_MEDIA_MB"
DEFAULTS = {REQUEST_VARIABLE: 1024, PROCESS_VARIABLE: 4096}
"""Environment variables of the two budgets, and their defaults, in MiB."""

T = TypeVar("T")


class OverBudget(ValueError):
    """The media of one request need more than a request may have."""


class RequestEnded(Exception):
    """Nobody waits for this medium any more; only its loader sees this."""


@dataclass(frozen=True)
class Plan(Generic[T]):
    """A medium whose header has been read: the memory that decoding takes, and the decoding itself.

    peak: the most bytes that decoding takes, beside those of the file.
    held: the bytes that stay when it is done.
    decode: called once, in a thread; see `check_alive`.
    """

    peak: int
    held: int
    decode: Callable[[], T]


class Budget:
    """Bytes that the media of all requests together may take in this process.

    ``per_request`` of them are set aside for the oldest request, so that it always gets on,
    whatever the others hold while they wait: so nobody waits for ever.
    """

    def __init__(self, total: int, per_request: int) -> None:
        self.total, self.per_request = total, per_request
        self.used = 0
        self._lock = Lock()
        self._shares: dict[Share, None] = {}  # that have taken something, the oldest first
        self._waiting: list[Lease] = []

    @contextmanager
    def request(self) -> Iterator[Share]:
        """Count all that is loaded within the block for one request, and give it back at the end.

        A request within a request is the same one.
        """
        if (share := _CURRENT.get()) is not None and share.budget is self:
            yield share
            return
        share = Share(self)
        reset = _CURRENT.set(share)
        try:
            yield share
        finally:
            _CURRENT.reset(reset)
            self._close(share)

    def _close(self, share: Share) -> None:
        with self._lock:
            share.has_ended = True
            self._shares.pop(share, None)
            for lease in list(share.leases):
                if lease in self._waiting:  # a download waits for 0 bytes, to begin
                    self._waiting.remove(lease)
                    lease.answer(RequestEnded())
                if not lease.is_running:
                    self._give_back(lease)
            self._serve()

    def _give_back(self, lease: Lease) -> None:
        """Give back the bytes of a lease. Called under the lock."""
        if lease in lease.share.leases:
            lease.share.leases.remove(lease)
            self.used -= lease.size
            lease.size = lease.held = lease.wanted = 0

    def _serve(self) -> None:
        """Grant the leases that fit now, refuse those that never will. Called under the lock."""
        ages = {share: age for age, share in enumerate(self._shares)}
        for lease in sorted(self._waiting, key=lambda lease: ages[lease.share]):
            error = self._refusal(lease, lease.wanted)
            if error is None and not self._fits(lease, lease.wanted):
                continue
            self._waiting.remove(lease)
            if error is None:
                self.used += lease.wanted
                lease.size += lease.wanted
            lease.wanted = 0
            lease.answer(error)

    def _fits(self, lease: Lease, more: int) -> bool:
        share = lease.share
        if share.used + more > self.per_request:
            return False  # until the others of its request are decoded
        oldest = next(iter(self._shares), share)
        room = self.total if share is oldest else self.total - self.per_request
        return self.used + more <= room

    def _refusal(self, lease: Lease, more: int) -> OverBudget | None:
        """Return the error for a lease that cannot fit after its request has decoded the rest."""
        others = sum(other.held for other in lease.share.leases if other is not lease)
        if others + lease.size + more <= self.per_request:
            return None
        return OverBudget(
            "The pictures and videos of this request take more than "
            f"{self.per_request >> 20} MiB of memory together, as files and once they are decoded, "
            "the most that this server holds for one request. Send fewer or smaller ones; whoever "
            f"runs the server can set {REQUEST_VARIABLE}."
        )


class Share:
    """The part of a `Budget` that one request has."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.leases: list[Lease] = []
        self.has_ended = False

    @property
    def used(self) -> int:
        return sum(lease.size for lease in self.leases)

    async def take(self, peak: int, held: int | None = None) -> Lease:
        """Wait for ``peak`` bytes, of which ``held`` (all by default) stay until the request ends.

        Raises:
            OverBudget: The request does not have so much left, and will not have it.
            RequestEnded: The request is over.
        """
        lease = Lease(self)
        await lease.grow(peak, held)
        return lease


class Lease:
    """Bytes that one medium has taken. ``wanted`` more are waited for."""

    def __init__(self, share: Share) -> None:
        self.share = share
        self.size = self.held = self.wanted = 0
        self.is_running = False
        self._waiter: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    async def grow(self, more: int, held: int | None = None) -> None:
        """Wait for ``more`` bytes, as in `Share.take`."""
        budget = self.share.budget
        loop = asyncio.get_running_loop()
        with budget._lock:
            if self.share.has_ended:
                raise RequestEnded
            if self not in self.share.leases:
                budget._shares.setdefault(self.share)
                self.share.leases.append(self)
            self.wanted = more
            self.held += more if held is None else held
            self._waiter = loop, loop.create_future()
            budget._waiting.append(self)
            budget._serve()
        try:
            await self._waiter[1]
        except BaseException:  # refused, or the client has left
            self.release()
            raise

    def grow_now(self, more: int) -> bool:
        """Take ``more`` bytes unless they have to be waited for; return True where they were taken.

        Raises:
            OverBudget, RequestEnded: as in `Share.take`.
        """
        budget = self.share.budget
        with budget._lock:
            if self.share.has_ended:
                raise RequestEnded
            if (error := budget._refusal(self, more)) is not None:
                raise error
            if fits := budget._fits(self, more):
                budget.used += more
                self.size += more
                self.held += more
            return fits

    def shrink(self) -> None:
        """Give back the bytes that only decoding needed."""
        budget = self.share.budget
        with budget._lock:
            budget.used -= self.size - self.held
            self.size = self.held
            budget._serve()

    async def run(self, work: Callable[[], T], executor: Executor) -> T:
        """Call ``work`` in a thread of ``executor``, where `check_alive` knows this request.

        The bytes stay taken until it returns, even when the client has left meanwhile.
        """
        if self.share.has_ended:
            raise RequestEnded
        context = contextvars.copy_context()
        self.is_running = True
        future = executor.submit(context.run, work)
        future.add_done_callback(lambda _: self._finish())
        return await asyncio.wrap_future(future)

    def answer(self, error: Exception | None) -> None:
        """Wake the waiting task; callable from any thread."""
        assert self._waiter is not None
        loop, future = self._waiter

        def wake() -> None:
            if future.done():
                return
            if error is None:
                future.set_result(None)
            else:
                future.set_exception(error)

        loop.call_soon_threadsafe(wake)

    def _finish(self) -> None:
        budget = self.share.budget
        with budget._lock:
            self.is_running = False
            if self.share.has_ended:
                budget._give_back(self)
                budget._serve()

    def release(self) -> None:
        """Give all bytes back, and wait for no more."""
        budget = self.share.budget
        with budget._lock:
            if self in budget._waiting:
                budget._waiting.remove(self)
            budget._give_back(self)
            budget._serve()


_CURRENT: contextvars.ContextVar[Share | None] = contextvars.ContextVar("media", default=None)


def check_alive() -> None:
    """End a decoding that nobody waits for; called between its steps, in its thread.

    Raises:
        RequestEnded: The client has left, or another medium of the request was refused.
    """
    share = _CURRENT.get()
    if share is not None and share.has_ended:
        raise RequestEnded


@cache
def process_budget() -> Budget:
    """Return the budget of this process.

    Raises:
        ValueError: An environment variable is no number, or the process has less than a request.
    """
    total, per_request = (
        mebibytes(variable, DEFAULTS[variable]) for variable in (PROCESS_VARIABLE, REQUEST_VARIABLE)
    )
    if total < per_request:
        raise ValueError(
            f"{PROCESS_VARIABLE} is {total >> 20} MiB, less than the {per_request >> 20} MiB of "
            f"{REQUEST_VARIABLE}; expected at least as much, better several times as much."
        )
    return Budget(total, per_request)
