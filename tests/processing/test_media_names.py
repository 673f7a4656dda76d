# SPDX-License-Identifier: Apache-2.0
"""Names and hashes that callers give to media never stand for other media."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from vllm.entrypoints import chat_utils
from vllm.entrypoints.serve.disagg import mm_serde
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.inputs import MultiModalFeatureSpec, MultiModalKwargsItem, PlaceholderRange
from vllm.multimodal.processing import ProcessorInputs
from vllm.renderers.base import BaseRenderer
from vllm.v1.engine.input_processor import InputProcessor

from tests.processing.oracle import random_picture
from vllm_glm41v_npu.patches import media_names

URL = "data:image/png;base64,AAAA"
OURS = SimpleNamespace(model_type="glm4v")


@pytest.fixture(autouse=True)
def patched() -> None:
    media_names.apply()


def hashes(processor: Any, pictures: list[Any], names: list[str | None], **options: Any) -> Any:
    """The hashes of a request's pictures, under these names."""
    data = {"image": pictures}
    items = processor.info.parse_mm_data(data)
    caches = SimpleNamespace(
        model_config=SimpleNamespace(multimodal_config=None, hf_config=OURS),
        _validate_mm_uuids=lambda *_: None,
    )
    marked = BaseRenderer._process_mm_uuids(caches, data, items, {"image": names}, "0")
    return ProcessorInputs("", items, marked, options).get_mm_hashes("model")["image"]


def test_a_name_changes_nothing(processor: Any) -> None:
    """Two pictures under one name are one picture for vLLM."""
    first, second = random_picture(56, 84, 1), random_picture(56, 84, 2)
    plain = hashes(processor, [first, second], [None, None])
    assert len({*plain}) == 2
    assert hashes(processor, [first, second], ["same", "same"]) == plain
    assert hashes(processor, [first, second], ["", plain[0]]) == plain
    assert hashes(processor, [second], ["same"]) == plain[1:]


def test_none_stands_for_what_its_name_was_given_last(processor: Any) -> None:
    """A program sends a picture once, and then by name; options of the processing count too."""
    pictures = [random_picture(56, 84, seed) for seed in range(2)]
    for picture in pictures:
        given = hashes(processor, [picture], ["mine"])
        small = hashes(processor, [picture], ["mine"], max_pixels=25088)
        assert hashes(processor, [None], ["mine"]) == given
        assert hashes(processor, [None], ["mine"], max_pixels=25088) == small != given
    with pytest.raises(VLLMValidationError, match="No image was given under the name 'yours'"):
        hashes(processor, [None], ["yours"])
    with pytest.raises(VLLMValidationError, match="'mine'.* with these options"):
        hashes(processor, [None], ["mine"], max_pixels=50176)


def test_names_that_vllm_makes_up_stay(processor: Any) -> None:
    """Guards its saving of the hashing where nothing is cached."""
    items = processor.info.parse_mm_data({"image": [random_picture(56, 84)]})
    inputs = ProcessorInputs("", items, {"image": ["renderer0-mm-1-image-0"]})
    assert inputs.get_mm_hashes("model") == {"image": ["renderer0-mm-1-image-0"]}


def test_vllm_still_takes_a_name_for_the_content(processor: Any) -> None:
    """Tells when vLLM binds names to contents, and the patch can go."""
    trusting = ProcessorInputs.get_mm_hashes.__wrapped__
    items = processor.info.parse_mm_data({"image": [random_picture(56, 84)]})
    assert trusting(ProcessorInputs("", items, {"image": ["same"]}), "model") == {"image": ["same"]}


class Parser:
    """vLLM's parser of a message's parts: keeps the pictures and their names."""

    model_config = SimpleNamespace(enable_prompt_embeds=False, hf_config=OURS)

    def __init__(self) -> None:
        self.given: list[tuple[Any, Any]] = []

    def parse_image(self, url: Any, uuid: Any = None) -> None:
        self.given.append((url, uuid))

    parse_image_pil = parse_video = parse_image_embeds = parse_image

    def mm_placeholder_storage(self) -> dict[str, list[str]]:
        return {}


def parse(part: dict[str, Any]) -> list[tuple[Any, Any]]:
    parser: Any = Parser()
    chat_utils._parse_chat_message_content_part(
        part, parser, wrap_dicts=True, interleave_strings=False
    )
    return parser.given


@pytest.mark.parametrize("uuid", ["a", "", 5, ["a"]])
def test_a_name_beside_a_picture_is_left_out(uuid: Any) -> None:
    """A client is answered with another's picture of that name."""
    part = {"type": "image_url", "image_url": {"url": URL}, "uuid": uuid}
    assert parse(part) == [(URL, None)]
    assert parse({"type": "video_url", "video_url": {"url": URL}, "uuid": uuid}) == [(URL, None)]
    picture = Image.new("RGB", (1, 1))
    assert parse({"type": "image_pil", "image_pil": picture, "uuid": uuid}) == [(picture, None)]
    assert parse({"type": "input_image", "detail": "auto", "image_url": URL, "uuid": uuid}) == [
        (URL, None)
    ]
    assert parse({"type": "text", "text": "a", "uuid": uuid}) == []


@pytest.mark.parametrize(
    "rest",
    [
        {"type": "image_url", "image_url": None},
        {"type": "image_url", "image_url": {"url": None}},
        {"type": "image_url", "image_url": {"url": ""}},
        {"type": "image_url", "image_url": {}},
        {"type": "image_url", "image_url": ""},
        {"type": "image_url"},
        {"image_url": None},
        {"type": "image_pil", "image_pil": None},
        {"type": "image_embeds", "image_embeds": None},
        {"type": "input_image", "image_url": None},
        {"type": "input_image"},
        {"type": "video_url", "video_url": None},
        {"type": "audio_url", "audio_url": None},
    ],
)
def test_a_name_alone_is_refused(rest: dict[str, Any]) -> None:
    """A client asks for the picture that another has sent."""
    with pytest.raises(VLLMValidationError, match="send the picture or video itself"):
        parse({**rest, "uuid": "known"})


def processed(item: Any, *, trusts_clients: bool) -> MultiModalFeatureSpec:
    """The feature of a request for tokens with media that the client processed."""
    feature = MultiModalFeatureSpec(item, "image", "known", PlaceholderRange(0, 1), "known")
    check = media_names._checking_processed(
        lambda processor: SimpleNamespace(mm_features=[feature]),
    )
    settings = SimpleNamespace(enable_mm_embeds=trusts_clients)
    config = SimpleNamespace(multimodal_config=settings, hf_config=OURS)
    return check(SimpleNamespace(model_config=config)).mm_features[0]


def test_processed_media_are_named_by_their_content() -> None:
    """A client puts its own tensors under the hash of a picture that others ask about."""
    sent = [mm_serde.encode_mm_kwargs_item(MultiModalKwargsItem.dummy(size)) for size in (3, 4)]
    items = [mm_serde.decode_mm_kwargs_item(data) for data in (*sent, sent[0])]
    with pytest.raises(VLLMValidationError, match="--enable-mm-embeds"):
        processed(items[0], trusts_clients=False)
    with pytest.raises(VLLMValidationError, match="send the medium itself"):
        processed(None, trusts_clients=True)
    names = []
    for item in items:
        item["dummy"].data.fill_(1)
        feature = processed(item, trusts_clients=True)
        assert feature.identifier == feature.mm_hash != "known"
        names.append(feature.identifier)
    assert names[0] == names[2] != names[1]
    assert processed(MultiModalKwargsItem.dummy(), trusts_clients=False).identifier == "known"


def test_processed_media_pass_the_check() -> None:
    """Guards the place of the check: vLLM may rename the method that makes requests."""
    assert hasattr(InputProcessor.process_inputs, "__wrapped__")
