# SPDX-License-Identifier: Apache-2.0
"""Memory for downloads, whose size is known late or never.

While memory is waited for, no connection is open and no time limit runs: a download that finds no
memory is given up, and begins again when there is some.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar

from vllm_glm41v_npu.processing.budget import Lease, Share

_STEP = 1 << 20  # bytes that a download of unknown size takes at a time
_CURRENT: ContextVar[Lease | None] = ContextVar("download", default=None)


class NoRoom(Exception):
    """There is no memory now for ``more`` bytes of a download."""

    def __init__(self, more: int) -> None:
        super().__init__(more)
        self.more = more


async def download(share: Share, fetch: Callable[[], Awaitable[bytes]]) -> tuple[bytes, Lease]:
    """Return the bytes that ``fetch`` returns, and their lease; it calls `claim` as they come.

    Raises:
        OverBudget, RequestEnded: As in `Share.take`; and all that ``fetch`` raises.
    """
    lease = await share.take(0)
    reset = _CURRENT.set(lease)
    try:
        while True:
            try:
                return await fetch(), lease
            except NoRoom as short:
                await lease.grow(short.more)
    except BaseException:
        lease.release()
        raise
    finally:
        _CURRENT.reset(reset)


def claim(size: int, is_all: bool = False) -> None:
    """Take memory for a download of ``size`` bytes so far, or with ``is_all`` in all.

    Raises:
        OverBudget, RequestEnded: As in `Share.take`.
        NoRoom: The download is to be given up; see `download`.
    """
    lease = _CURRENT.get()
    if lease is None or size <= lease.size:
        return
    more = size - lease.size if is_all else max(size - lease.size, _STEP)
    if not lease.grow_now(more):
        raise NoRoom(more)
