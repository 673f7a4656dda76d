# SPDX-License-Identifier: Apache-2.0
"""Memory of media: bounded for a request and for the process, and nobody waits for ever."""

from __future__ import annotations

import asyncio
import contextvars
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from vllm_glm41v_npu.processing.budget import (
    Budget,
    Lease,
    OverBudget,
    RequestEnded,
    Share,
    check_alive,
    process_budget,
)
from vllm_glm41v_npu.processing.downloads import claim, download


@contextmanager
def _another(budget: Budget) -> Iterator[Share]:
    """A request beside the one that is open here, within which `request` would be the same."""
    context = contextvars.Context()
    request = context.run(budget.request)
    share = context.run(request.__enter__)
    try:
        yield share
    finally:
        context.run(request.__exit__, None, None, None)


async def tick() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_a_request_over_its_budget_is_refused_at_once() -> None:
    """Eight pictures of 88 megapixels in one request are decoded side by side."""

    async def work() -> None:
        budget = Budget(100, 10)
        with budget.request() as share:
            await share.take(6, 4)
            with pytest.raises(OverBudget, match="Send fewer or smaller ones"):
                await share.take(7)
            await share.take(0)
        assert budget.used == 0

    asyncio.run(work())


def test_peaks_of_one_request_wait_for_each_other() -> None:
    """Two pictures fit when decoded, and not while both are decoded: the second is refused."""

    async def work() -> None:
        with Budget(100, 10).request() as share:
            first = await share.take(8, 2)
            second = asyncio.create_task(share.take(8, 2))
            await tick()
            assert not second.done()
            first.shrink()
            await asyncio.wait_for(second, 1)
            # What grows meanwhile may leave no room for one that waits; it must not wait for ever.
            third = asyncio.create_task(share.take(6, 0))
            await tick()
            growing = asyncio.create_task(first.grow(3))
            with pytest.raises(OverBudget):
                await asyncio.wait_for(third, 1)
            second.result().shrink()
            await asyncio.wait_for(growing, 1)

    asyncio.run(work())


def test_the_process_has_no_memory_left() -> None:
    """Waiting, not failing; and the oldest request gets on however much the others hold."""

    async def work() -> None:
        budget = Budget(20, 10)

        async def request(*sizes: int) -> None:
            with budget.request() as share:
                for size in sizes:
                    await share.take(size)
                    await asyncio.sleep(0.001)

        # Each holds a part and waits for more: without a share set aside they wait for each other.
        requests = [request(4, 4, 2) for _ in range(12)]
        await asyncio.wait_for(asyncio.gather(*requests), 10)
        assert budget.used == 0

    asyncio.run(work())


def test_random_requests_stay_within_the_budget() -> None:
    """Property: in any order of takes, decodes, refusals and clients that leave, never more is
    taken than allowed, all that can end ends, and nothing stays taken."""
    rng = random.Random(0)
    budget = Budget(40, 10)
    pool = ThreadPoolExecutor(3)
    most = 0

    async def medium(share: Share) -> None:
        nonlocal most
        peak = rng.randint(1, 8)
        lease = await share.take(peak, rng.randint(0, peak))
        most = max(most, budget.used)
        assert share.used <= 10
        await lease.run(lambda: threading.Event().wait(rng.random() / 500), pool)
        lease.shrink()

    async def request() -> None:
        with budget.request() as share:
            await asyncio.gather(*(medium(share) for _ in range(rng.randint(1, 4))))

    async def work() -> None:
        tasks = []
        for _ in range(150):
            tasks.append(asyncio.create_task(request()))
            await asyncio.sleep(rng.random() / 500)
            if rng.random() < 0.3:
                rng.choice(tasks[-5:]).cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        assert {type(result) for result in done} == {type(None), OverBudget, asyncio.CancelledError}
        await asyncio.sleep(0.1)

    asyncio.run(work())
    assert 20 < most <= 40
    assert budget.used == 0 and not budget._waiting and not budget._shares


def test_a_client_that_left_ends_its_decode() -> None:
    """Its thread works on for nobody, and its memory is given back while it is still in use."""
    started, ended, go_on = threading.Event(), threading.Event(), threading.Event()
    budget = Budget(20, 10)

    def decode() -> None:
        started.set()
        go_on.wait(10)
        try:
            check_alive()
        except RequestEnded:
            ended.set()

    async def request() -> None:
        with budget.request() as share:
            lease = await share.take(5)
            await lease.run(decode, pool)

    async def work() -> None:
        task = asyncio.create_task(request())
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert budget.used == 5  # the thread has not ended
        go_on.set()
        assert await asyncio.to_thread(ended.wait, 10)

    with ThreadPoolExecutor(1) as pool:
        asyncio.run(work())
    assert budget.used == 0
    check_alive()  # outside of a request it does nothing


def test_a_refusal_ends_the_others_of_its_request() -> None:
    """asyncio.gather leaves them running when one fails."""

    async def work() -> None:
        others = []

        async def other(share: Share) -> Lease:
            await asyncio.sleep(0.01)
            return await share.take(1)

        with pytest.raises(OverBudget), Budget(100, 10).request() as share:
            others.append(asyncio.create_task(other(share)))
            await share.take(11)
        with pytest.raises(RequestEnded):
            await others[0]

    asyncio.run(work())


def test_a_request_ends_while_a_download_waits_to_begin() -> None:
    """One that is left waiting makes all later requests of the process fail."""

    async def work() -> None:
        budget = Budget(20, 10)
        with budget.request() as oldest:
            await oldest.take(1)
            with _another(budget) as second:
                await second.take(9)
                await oldest.take(9)
                with _another(budget) as third:
                    begins = asyncio.create_task(third.take(0))
                    await tick()
                    assert not begins.done()
                with pytest.raises(RequestEnded):
                    await asyncio.wait_for(begins, 1)
        with _another(budget) as last:
            await asyncio.wait_for(last.take(10), 1)
        assert budget.used == 0

    asyncio.run(work())


def test_a_download_waits_without_a_connection() -> None:
    """30 URLs of 99 MiB are held together; or a connection that waits for memory times out."""

    async def work() -> None:
        budget = Budget(300 << 20, 100 << 20)
        calls = 0

        async def fetch() -> bytes:
            nonlocal calls
            calls += 1
            claim(90 << 20, is_all=True)
            return b"file"

        holders = [asyncio.Event(), asyncio.Event()]
        ready = [asyncio.Event(), asyncio.Event()]

        async def hold(index: int) -> None:
            with budget.request() as share:
                await share.take(95 << 20)
                ready[index].set()
                await holders[index].wait()

        tasks = [asyncio.create_task(hold(index)) for index in (0, 1)]
        for event in ready:
            await event.wait()

        async def request() -> bytes:
            with budget.request() as share:
                return (await download(share, fetch))[0]

        third = asyncio.create_task(request())
        await tick()
        assert calls == 1 and not third.done()
        holders[0].set()
        assert await asyncio.wait_for(third, 1) == b"file" and calls == 2
        holders[1].set()
        await asyncio.gather(*tasks)
        assert budget.used == 0
        # More than a request may have is refused, whatever is free.
        with pytest.raises(OverBudget), budget.request() as share:
            await asyncio.gather(download(share, fetch), download(share, fetch))
        assert budget.used == 0

    asyncio.run(work())


def test_a_download_that_fails_gives_its_memory_back() -> None:
    """Guards the others of its request, which go on: they wait for nothing."""

    async def fetch() -> bytes:
        claim(5, is_all=True)
        raise ConnectionResetError

    async def work() -> None:
        budget = Budget(20, 10)
        with budget.request() as share:
            with pytest.raises(ConnectionResetError):
                await download(share, fetch)
            assert budget.used == 0
            await asyncio.wait_for(share.take(10), 1)

    asyncio.run(work())


def test_wrong_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Told in a sentence, by the name of the variable."""
    for value, message in (("x", "MAX_MEDIA_MB is 'x'"), ("5", "less than the 1024 MiB")):
        monkeypatch.setenv("VLLM_GLM41V_NPU_MAX_MEDIA_MB", value)
        with pytest.raises(ValueError, match=message):
            process_budget.__wrapped__()
