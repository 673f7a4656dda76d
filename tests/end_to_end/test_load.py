# SPDX-License-Identifier: Apache-2.0
"""500 requests of all kinds, 16 at a time: each is answered right or refused; memory is flat.

The server's cache of media has 1 MB: most pictures are evicted before they are asked for again.
"""

from __future__ import annotations

import asyncio
import base64
import copy
import io
import json
import random
import re
import time
from collections.abc import Iterator
from typing import Any

import httpx
from PIL import Image

from tests.end_to_end.bad_media import FIRST, QUESTION, bad_requests, png
from tests.end_to_end.load import Job, complaints
from tests.end_to_end.servers import VIDEOS, Server, data_uri, request, video_uri
from tests.end_to_end.unfinished import UNFINISHED, fresh
from tools.tiny.evaluate import MAX_NEW_TOKENS, final_answer, heldout_sets

AT_ONCE = 16
COUNT = 500
BAD, LEAVING, SLOW, POISONED, HANGING_UP = 60, 60, 10, 100, 60
SECONDS_TO_HANG_UP = 0.5
"""At most: in the middle of the processing, in the queue, or in the answer."""
SLOW_TOKENS = 200
PICTURE_COUNT = 12
LARGE = [(448, 224), (672, 448), (896, 672)]
"""(width, height): some 300 KB, 900 KB, and more than the cache holds."""
LEAST = 0.9
"""Of the answers whose truth is known, those that are right: the checkpoint errs now and then."""
MOST_GROWTH = 96 << 20
"""Bytes of all the server's processes together, from after the first requests to after all.

Measured: 54 MiB from the half of the requests on, 82 from a quarter on.
"""


def good_requests() -> Iterator[tuple[dict[str, Any], str | None]]:
    """Bodies of texts, pictures, and videos, and what is right where that is one thing."""
    for text in ("Who are you?", "Hello!", QUESTION, "1 2 3"):
        yield request(text), None
    written = heldout_sets(PICTURE_COUNT)["written numbers"]
    for question, (picture,), answer in written:
        yield request(question, data_uri(png(picture))), answer
    yield request(QUESTION, *[data_uri(png(picture)) for _, (picture,), _ in written[:3]]), None
    for size, (question, (picture,), _) in zip(LARGE, written, strict=False):
        yield request(question, data_uri(png(picture.resize(size)))), None
    clip = video_uri((VIDEOS / "numbers.mp4").read_bytes())
    answers = json.loads((VIDEOS / "answers.json").read_text())["numbers.mp4"]
    yield request(FIRST, clip), answers["first"]
    yield request("Which number comes last?", clip), answers["last"]


def long(body: dict[str, Any]) -> dict[str, Any]:
    """Of an answer that fills a slow reader's buffers."""
    more = {"max_tokens": SLOW_TOKENS, "ignore_eos": True, "logprobs": True, "top_logprobs": 20}
    return body | more


def asked_alone(server: httpx.Client, body: dict[str, Any]) -> Job:
    """Its answer is what is expected of the same request among others."""
    response = server.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return Job(body, response.json()["choices"][0]["message"]["content"])


def with_fresh_pictures(job: Job, number: int) -> Job:
    """The same question about pictures that the server has not seen."""
    body = copy.deepcopy(job.body)
    for part in body["messages"][0]["content"][:-1]:
        data = base64.b64decode(part["image_url"]["url"].split(",")[1])
        part["image_url"]["url"] = fresh(Image.open(io.BytesIO(data)), number)
    return job._replace(body=body)


def unfinished_jobs(good: list[Job], rng: random.Random) -> list[Job]:
    """Find those with pictures of a request that ended early, and those that end themselves."""
    ways = list(UNFINISHED.values())
    pictured = [job for job in good if "image_url" in json.dumps(job.body)]
    found = []
    for number in range(POISONED + HANGING_UP):
        job = with_fresh_pictures(rng.choice(pictured), number)
        if number < POISONED:
            found.append(job._replace(before=ways[number % len(ways)](job.body)))
        else:
            seconds = rng.uniform(0, SECONDS_TO_HANG_UP)
            found.append(job._replace(client="hangs up", seconds=seconds))
            found.append(job._replace(client="stream"))
    return found


def jobs(good: list[Job], slow: Job) -> list[Job]:
    """All requests, in an order that is the same in every run."""
    rng = random.Random(0)
    bad = bad_requests()
    mixed = [Job(bad[i % len(bad)], None) for i in range(BAD)]
    mixed += [rng.choice(good)._replace(client="leaves") for _ in range(LEAVING)]
    mixed += [slow._replace(client="slow")] * SLOW
    mixed += unfinished_jobs(good, rng)
    while len(mixed) < COUNT:
        mixed.append(rng.choice(good)._replace(client=rng.choice(["whole", "stream"])))
    rng.shuffle(mixed)
    return mixed


def resident(server: Server) -> int:
    return sum(process.memory_info().rss for process in server.processes())


def assert_idle(server: httpx.Client) -> None:
    """Soon nothing is computed any more: requests end with the clients that left."""
    count = re.compile(r"^vllm:num_requests_(?:running|waiting)\{.*\} (.*)$", re.MULTILINE)
    deadline = time.monotonic() + 60
    while any(map(float, counts := count.findall(server.get("/metrics").text))):
        assert time.monotonic() < deadline, "requests are left in the engine"
        time.sleep(0.5)
    assert len(counts) == 2


def test_every_request_is_answered_right(shared_server: Server, server: httpx.Client) -> None:
    """Guards answers that depend on what else is computed, and memory that a request leaves."""
    asked = [(body | {"max_tokens": MAX_NEW_TOKENS}, truth) for body, truth in good_requests()]
    good = [asked_alone(server, body) for body, _ in asked]
    truths = [(job.expected, truth) for job, (_, truth) in zip(good, asked, strict=True) if truth]
    assert sum(final_answer(told or "") == truth for told, truth in truths) >= LEAST * len(truths)
    slow = asked_alone(server, long(good[-1].body))
    mixed = jobs(good, slow)
    first = len(mixed) // 2  # fills caches, and the allocators' free lists
    told = asyncio.run(complaints(shared_server.address, mixed[:first], AT_ONCE))
    before = resident(shared_server)
    told += asyncio.run(complaints(shared_server.address, mixed[first:], AT_ONCE))
    after = resident(shared_server)
    print(f"{len(mixed)} requests; {before >> 20} MiB after {first} of them, {after >> 20} at last")
    assert told == []
    assert_idle(server)
    assert after - before < MOST_GROWTH
