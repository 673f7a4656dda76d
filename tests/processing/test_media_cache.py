# SPDX-License-Identifier: Apache-2.0
"""Whatever becomes of requests, the engine has the media of each that it is handed."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import ModelConfig
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import (
    MultiModalProcessorOnlyCache,
    MultiModalProcessorSenderCache,
    MultiModalReceiverCache,
)
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.utils.cache import LRUCache
from vllm.v1.engine import EngineCoreOutputs, FinishReason
from vllm.v1.engine.core import EngineCoreProc
from vllm.v1.engine.output_processor import OutputProcessor
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from tests.processing.conftest import MakeProcessor
from tests.processing.handing import Ends, request_of
from tests.processing.oracle import random_picture
from tests.processing.test_processor import IMAGE, run
from vllm_glm41v_npu.patches.media_cache.orders import with_orders
from vllm_glm41v_npu.patches.media_cache.receiver import MissingMedia, ReceiverCache
from vllm_glm41v_npu.patches.media_cache.sender import handing_over

SIDES = [(28, 56), (56, 84), (112, 140), (280, 280)]
"""Of pictures that take up to 59 KB when processed."""

ROOM = 100_000
"""Bytes: for one of the largest of these, and some others."""

MakeEnds = Callable[..., tuple[Ends, Any]]


@pytest.fixture
def make_ends(make_processor: MakeProcessor, model_config: ModelConfig) -> MakeEnds:
    """make_ends(capacity in bytes, ...): both ends, and a processor with the front end's cache."""

    def make(capacity: int = ROOM, **options: Any) -> tuple[Ends, Any]:
        ends = Ends(model_config, capacity, **options)
        return ends, make_processor(cache=ends.front)

    return make


def same(arrived: Any, pictures: list[Any], plain: Any) -> bool:
    """Whether the engine has just the tensors of these pictures."""
    expected = run(plain, IMAGE * len(pictures), pictures)["mm_kwargs"]["image"]
    return len(arrived) == len(expected) and all(
        found.keys() == want.keys()
        and all(torch.equal(found[key].data, want[key].data) for key in want)
        for found, want in zip(arrived, expected, strict=True)
    )


@pytest.mark.parametrize("kind", ["lru", "shm"])
def test_a_refused_request_leaves_nothing_behind(
    kind: str, make_ends: MakeEnds, processor: Any
) -> None:
    """The picture of a request that was refused after processing fails for everybody else."""
    ends, ours = make_ends(kind=kind)
    picture = random_picture(56, 84)
    run(ours, IMAGE, picture)  # and never sent
    for _ in range(3):
        assert same(ends.send(run(ours, IMAGE, picture)), [picture], processor)
    assert ends.sent_tensors == 1


def test_vllms_own_caches_still_disagree(
    make_processor: MakeProcessor, model_config: ModelConfig
) -> None:
    """Tells when vLLM's caches survive a refusal and a touch, and the patch can go."""
    ours = make_processor(cache=MultiModalProcessorSenderCache(model_config))
    run(ours, IMAGE, random_picture(56, 84))
    request = request_of(run(ours, IMAGE, random_picture(56, 84)))
    with pytest.raises(AssertionError, match="Expected a cached item"):
        MultiModalReceiverCache(model_config).get_and_update_features(request.mm_features)
    cache: LRUCache[str, int] = LRUCache(1)
    cache.touch("never added")
    assert "never added" in cache.order  # an eviction would now go on for ever


def test_any_mixture_of_fates(make_ends: MakeEnds, processor: Any) -> None:
    """Requests refused, overtaken, copied, failed in the sending, and caches cleared meanwhile."""
    ends, ours = make_ends()
    rng = random.Random(0)
    seen = [random_picture(*rng.choice(SIDES), seed) for seed in range(12)]
    waiting: list[tuple[list[Any], Any]] = []
    sent = 0
    for _ in range(400):
        fate = rng.random()
        if fate < 0.5 or not waiting:
            pictures = rng.choices(seen, k=rng.randint(1, 3))
            waiting.append((pictures, run(ours, IMAGE * len(pictures), pictures)))
        elif fate < 0.6:
            waiting.pop(rng.randrange(len(waiting)))
        elif fate < 0.63:
            ends.front.clear_cache()
            ends.engine.clear_cache()
        elif fate < 0.7:
            _, inputs = waiting.pop()
            fail_in_sending(ends, inputs, arrives=rng.random() < 0.5)
        else:
            pictures, inputs = waiting.pop(rng.randrange(len(waiting)))
            assert same(ends.send(inputs, copies=rng.randint(1, 2)), pictures, processor)
            sent += len(pictures)
    assert ends.sent_tensors < sent
    del inputs
    waiting.clear()
    ends.send(run(ours, IMAGE, seen[0]))
    assert 0 < ends.held_bytes() <= ROOM


def fail_in_sending(ends: Ends, inputs: Any, arrives: bool) -> None:
    receive = ends.preprocess_add_request

    def fail(request: Any) -> Any:
        if arrives:
            receive(request)
        raise OSError("planted")

    ends.engine_core = type("Core", (), {"preprocess_add_request": staticmethod(fail)})
    with pytest.raises(OSError, match="planted"):
        ends.send(inputs)
    ends.engine_core = ends


@pytest.mark.parametrize("servers", [1, 2])
def test_eviction_ends(servers: int, make_ends: MakeEnds, processor: Any) -> None:
    """Pictures larger than the cache, alone and beside others, loop for ever or are refused."""
    ends, ours = make_ends(40_000, servers=servers)
    sizes = [(112, 140), (280, 280), (56, 84)]
    for round_ in range(4):
        pictures = [random_picture(*size, seed=round_) for size in sizes for _ in range(2)]
        for some in ([pictures[2]], pictures, [pictures[0]], [pictures[2]]):
            inputs = run(ours, IMAGE * len(some), some)
            assert same(ends.send(inputs), some, processor)


def test_what_the_engine_has_is_not_sent_nor_processed_again(
    make_ends: MakeEnds, processor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture seen before is slow: of a sent request, and of one that waits to be sent."""
    ends, ours = make_ends()
    picture = random_picture(280, 280)
    first = run(ours, IMAGE, picture)
    monkeypatch.setattr(ours, "_process_pictures", lambda *args: pytest.fail("processed again"))
    second = run(ours, IMAGE, picture)
    assert same(ends.send(second), [picture], processor)
    assert same(ends.send(first), [picture], processor)
    del first, second
    third = run(ours, IMAGE * 2, [picture, picture])
    assert not any(third["mm_kwargs"]["image"])  # no tensors in this process any more
    assert same(ends.send(third), [picture] * 2, processor)
    assert ends.sent_tensors == 1
    assert ends.front.make_stats(delta=True) == (3, 4)
    assert ends.front.make_stats(delta=True) == (0, 0)


def test_an_evicted_picture_stays_for_a_request_on_its_way(
    make_ends: MakeEnds, processor: Any
) -> None:
    """Between the processing of a request and its sending, others push its picture out."""
    ends, ours = make_ends()
    picture = random_picture(280, 280, 1)
    ends.send(run(ours, IMAGE, picture))
    on_its_way = run(ours, IMAGE, picture)
    for seed in range(2, 5):
        ends.send(run(ours, IMAGE, random_picture(280, 280, seed)))
    assert same(ends.send(copy.deepcopy(on_its_way)), [picture], processor)
    assert same(ends.send(on_its_way), [picture], processor)


def test_a_loss_in_the_engine_costs_one_request(make_ends: MakeEnds, processor: Any) -> None:
    """An engine that lacks a medium fails every request with it, or none but the first two."""
    ends, ours = make_ends()
    pictures = [random_picture(56, 84, 1), random_picture(56, 84, 2)]
    ends.send(run(ours, IMAGE, pictures[0]))
    ends.engine._items.clear()  # planted
    with pytest.raises(MissingMedia, match="1 of the request's pictures"):
        ends.send(run(ours, IMAGE * 2, pictures))
    assert same(ends.send(run(ours, IMAGE * 2, pictures)), pictures, processor)


def test_the_engine_tells_the_front_end_what_it_lacks(make_ends: MakeEnds, processor: Any) -> None:
    """Between processes an exception does not travel: the reason of the request's end does."""
    ends, ours = make_ends()
    picture = random_picture(56, 84)
    ends.send(run(ours, IMAGE, picture))
    request = request_of(run(ours, IMAGE, picture))
    ends.engine._items.clear()  # planted
    core: Any = SimpleNamespace(output_queue=Queue())
    with handing_over(request):
        try:
            ends.engine.get_and_update_features(request.mm_features)
        except MissingMedia:
            EngineCoreProc._handle_request_preproc_error(core, request)
    _, outputs = core.output_queue.get_nowait()
    told = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(outputs)).outputs
    assert [(output.request_id, output.finish_reason) for output in told] == [
        (request.request_id, FinishReason.ERROR)
    ]
    OutputProcessor(None, log_stats=False).process_outputs(told)
    assert same(ends.send(run(ours, IMAGE, picture)), [picture], processor)


def test_orders_after_a_missing_medium_are_carried_out() -> None:
    """One lost medium makes others lost: those of the same request would not be kept."""

    def feature(item: MultiModalKwargsItem) -> MultiModalFeatureSpec:
        return MultiModalFeatureSpec(item, "image", "a", PlaceholderRange(0, 1))

    receiver = ReceiverCache()
    with pytest.raises(MissingMedia) as caught:
        receiver.get_and_update_features(
            [
                feature(with_orders({}, 7, [])),
                feature(with_orders(MultiModalKwargsItem.dummy(), 8, [])),
            ]
        )
    assert caught.value.numbers == [7]
    assert list(receiver._items) == [8]


@pytest.mark.parametrize("forge", ["hash alone", "orders"])
def test_nobody_gets_what_another_has_sent(forge: str, make_ends: MakeEnds) -> None:
    """A client that hands in processed media asks for another's by hash or by number."""
    ends, ours = make_ends()
    inputs = run(ours, IMAGE, random_picture(56, 84))
    ends.send(inputs)
    (number,) = ends.engine._items
    stolen = None if forge == "hash alone" else with_orders({}, number, [])
    inputs["mm_kwargs"]["image"] = [stolen]
    with pytest.raises(VLLMValidationError, match="by its hash alone"):
        ends.send(inputs)


def test_requests_in_several_threads(make_ends: MakeEnds, processor: Any) -> None:
    """Guards --renderer-num-workers: threads that look up, add and evict at the same time."""
    ends, ours = make_ends()
    seen = [random_picture(*SIDES[seed % 4], seed) for seed in range(10)]

    def prepare(seed: int) -> tuple[list[Any], Any]:
        pictures = random.Random(seed).choices(seen, k=2)
        return pictures, run(ours, IMAGE * 2, pictures)

    with ThreadPoolExecutor(4) as threads:
        for pictures, inputs in threads.map(prepare, range(100)):
            assert same(ends.send(inputs), pictures, processor)


def test_vllms_cache_without_an_engine_refuses_large_pictures(
    make_processor: MakeProcessor, model_config: ModelConfig
) -> None:
    """Tells when vLLM's other cache takes what is larger than itself, and ours can go."""
    cache = MultiModalProcessorOnlyCache(model_config)
    cache._cache = LRUCache(100, getsizeof=lambda item: 101)
    with pytest.raises(ValueError, match="too large"):
        run(make_processor(cache=cache), IMAGE, random_picture(56, 84))
