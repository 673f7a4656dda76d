# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import base64
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Glm4vProcessor
from vllm.config.multimodal import ImageDummyOptions
from vllm.entrypoints.chat_utils import _get_embeds_data
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO
from vllm.multimodal.processing import TimingContext

from tests.processing.conftest import MakeProcessor
from tests.processing.oracle import channels_first, random_picture
from vllm_glm41v_npu.backends import ATLAS_A2
from vllm_glm41v_npu.processing.multimodal import Glm41vMultiModalProcessor

IMAGE = "<|begin_of_image|><|image|><|end_of_image|>"
SIZES = [(60, 90), (1, 1), (500, 333)]


def run(
    processor: Glm41vMultiModalProcessor, prompt: str | list[int], data: Any, **mm_kwargs: object
) -> dict[str, Any]:
    items = processor.info.parse_mm_data({"image": data} if data is not None else {})
    return processor(prompt, items, hf_processor_mm_kwargs=mm_kwargs)


def tensors(outputs: dict[str, Any], key: str) -> list[torch.Tensor]:
    """One tensor for each picture."""
    return [item[key].data for item in outputs["mm_kwargs"]["image"]]


def assert_same_outputs(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found["prompt_token_ids"] == expected["prompt_token_ids"]
    assert found["mm_placeholders"] == expected["mm_placeholders"]
    for key in ("pixel_values", "image_grid_thw"):
        pairs = zip(tensors(found, key), tensors(expected, key), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def conversation(num_pictures: int) -> list[dict[str, Any]]:
    pictures = [{"type": "image"} for _ in range(num_pictures)]
    return [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": [*pictures, {"type": "text", "text": "What is this? 图"}]},
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Sure?"},
    ]


@pytest.mark.parametrize("num_pictures", [1, 2, 3])
def test_prompt_and_pixels_are_those_of_transformers(
    num_pictures: int, processor: Glm41vMultiModalProcessor, hf_processor: Glm4vProcessor
) -> None:
    """A placeholder too many shifts every position behind it; a wrong order swaps the pictures."""
    pictures = [random_picture(*size) for size in SIZES[:num_pictures]]
    prompt = hf_processor.apply_chat_template(
        conversation(num_pictures), add_generation_prompt=True, tokenize=False
    )
    assert prompt.count(IMAGE) == num_pictures
    expected = hf_processor(
        text=prompt, images=pictures, do_rescale=False, do_normalize=False, return_tensors="pt"
    )
    found = run(processor, prompt, pictures)

    assert found["prompt_token_ids"] == expected["input_ids"][0].tolist()
    assert torch.equal(torch.stack(tensors(found, "image_grid_thw")), expected["image_grid_thw"])
    # [h * w, 3 * 2 * 14 * 14] -> [h * w, 3, 2, 14 * 14], of which we keep one time slice
    pixels = expected["pixel_values"].reshape(-1, 3, 2, 14 * 14)[:, :, :1]
    assert torch.equal(channels_first(torch.cat(tensors(found, "pixel_values")), 1), pixels)


def test_placeholders_cover_the_picture_tokens(processor: Glm41vMultiModalProcessor) -> None:
    """vLLM writes the features of a picture over other tokens than its own."""
    found = run(processor, f"a{IMAGE}b{IMAGE}", [random_picture(*size) for size in SIZES[:2]])
    image_token = processor.info.get_hf_config().image_token_id
    positions = [idx for idx, token in enumerate(found["prompt_token_ids"]) if token == image_token]
    ranges = found["mm_placeholders"]["image"]
    covered = [idx for r in ranges for idx in range(r.offset, r.offset + r.length)]
    assert covered == positions
    grids = tensors(found, "image_grid_thw")
    assert [r.length for r in ranges] == [int(grid.prod()) // 4 for grid in grids]


def test_text_and_tokens_give_the_same(processor: Glm41vMultiModalProcessor) -> None:
    """The chat API sends tokens and profiling sends text: they would be prepared differently."""
    prompt, pictures = f"[gMASK]<sop>a{IMAGE}b", [random_picture(60, 90)]
    tokens = processor.info.get_tokenizer().encode(prompt)
    assert_same_outputs(run(processor, tokens, pictures), run(processor, prompt, pictures))


def test_text_without_pictures(processor: Glm41vMultiModalProcessor) -> None:
    """The processor needs a picture to tokenise."""
    tokens = processor.info.get_tokenizer().encode("Hello")
    assert run(processor, "Hello", None)["prompt_token_ids"] == tokens


@pytest.mark.parametrize(("prompt", "found"), [("a", 0), (IMAGE, 1), (IMAGE * 3, 3)])
@pytest.mark.parametrize("as_tokens", [False, True])
def test_count_of_placeholders(
    prompt: str, found: int, as_tokens: bool, processor: Glm41vMultiModalProcessor
) -> None:
    """An assertion deep in vLLM, or an image token without an image, instead of both numbers."""
    pictures = [random_picture(60, 90), random_picture(90, 60)]
    tokens = processor.info.get_tokenizer().encode(prompt)
    with pytest.raises(ValueError, match=rf"has {found} image placeholder.* carries 2 picture"):
        run(processor, tokens if as_tokens else prompt, pictures)


def test_one_array_is_one_picture(processor: Glm41vMultiModalProcessor) -> None:
    """vLLM takes a lone 3-D tensor for embeddings, and a 2-D array for a list of rows."""
    picture = random_picture(60, 90)
    array = np.array(picture)
    expected = run(processor, IMAGE, picture)
    for data in (array, torch.from_numpy(array).permute(2, 0, 1), array[None], [array]):
        assert_same_outputs(run(processor, IMAGE, data), expected)
    with pytest.raises(ValueError, match=r"Picture 1 of 1 .* shape \[60, 90\]"):
        run(processor, IMAGE, array[..., 0])


def test_bad_picture_is_named_by_its_place(processor: Glm41vMultiModalProcessor) -> None:
    """With many pictures, the caller cannot tell which one to mend."""
    with pytest.raises(ValueError, match="Picture 2 of 2 is 0 x 7 pixels"):
        run(processor, IMAGE * 2, [random_picture(60, 90), Image.new("RGB", (0, 7))])


@pytest.mark.parametrize("broken", [b"this is no picture", b""], ids=["text", "empty"])
def test_files_that_are_no_pictures(broken: bytes) -> None:
    """vLLM's loader, which opens what comes over HTTP, stops answering with a ValueError (400)."""
    buffer = BytesIO()
    random_picture(60, 90).save(buffer, format="JPEG")
    for data in (broken, buffer.getvalue()[:700]):
        with pytest.raises(ValueError, match="Failed to load image"):
            ImageMediaIO().load_bytes(data)


def huge_png(side: int) -> bytes:
    """A few hundred bytes that claim side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def test_decompression_bomb_by_url() -> None:
    """Pillow's own exception passes through vLLM's loader, and the server answers 500."""
    url = "data:image/png;base64," + base64.b64encode(huge_png(30_000)).decode()
    connector = MEDIA_CONNECTOR_REGISTRY.load("http")
    for fetch in (connector.fetch_image, lambda u: asyncio.run(connector.fetch_image_async(u))):
        with pytest.raises(ValueError, match="900000000 pixels.* Send a smaller picture"):
            fetch(url)


def test_loaded_file_is_turned(processor: Glm41vMultiModalProcessor) -> None:
    """A file over HTTP comes in vLLM's wrapper, and its EXIF orientation is lost there."""
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = BytesIO()
    random_picture(60, 120).save(buffer, format="PNG", exif=exif)
    media = ImageMediaIO().load_bytes(buffer.getvalue())
    upright = random_picture(60, 120).transpose(Image.Transpose.ROTATE_270)
    assert_same_outputs(run(processor, IMAGE, [media]), run(processor, IMAGE, [upright]))


# --- memory profiling ---


@pytest.fixture
def on_a_device_with_memory_to_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vllm_glm41v_npu.processing.info.current_backend", lambda: ATLAS_A2)


@pytest.mark.parametrize("max_pixels", [50176, 401_408, 2_000_000])
@pytest.mark.usefixtures("on_a_device_with_memory_to_measure")
def test_profiling_picture_has_the_most_tokens(
    max_pixels: int, make_processor: MakeProcessor
) -> None:
    """The number vLLM plans with is not what the profiling picture really makes."""
    processor = make_processor(mm_processor_kwargs={"max_pixels": max_pixels})
    inputs = processor.dummy_inputs.get_dummy_processor_inputs(8192, {"image": 1}, {})
    outputs = processor.apply(inputs, TimingContext(enabled=False))
    (placeholder,) = outputs["mm_placeholders"]["image"]
    most = processor.info.get_mm_max_tokens_per_item(8192, {"image": 1})["image"]
    assert placeholder.length == most
    assert most >= max_pixels // 784 - 1


@pytest.mark.parametrize("max_pixels", [50176, 401_408, 40_000_000])
@pytest.mark.parametrize("seq_len", [100, 8192])
@pytest.mark.usefixtures("on_a_device_with_memory_to_measure")
def test_profiling_video_has_the_most_tokens(
    max_pixels: int, seq_len: int, make_processor: MakeProcessor
) -> None:
    """The video vLLM plans with is smaller than one that a prompt can hold, or does not fit."""
    processor = make_processor(mm_processor_kwargs={"max_pixels": max_pixels})
    inputs = processor.dummy_inputs.get_dummy_processor_inputs(seq_len, {"video": 1}, {})
    outputs = processor.apply(inputs, TimingContext(enabled=False))
    (placeholder,) = outputs["mm_placeholders"]["video"]
    most = processor.info.get_mm_max_tokens_per_item(seq_len, {"video": 1})["video"]
    assert placeholder.get_num_embeds() == most
    assert placeholder.length <= seq_len
    assert most > 0.85 * min(max_pixels // 1568, seq_len)


def test_on_a_cpu_profiling_is_a_warm_up(processor: Glm41vMultiModalProcessor) -> None:
    """Start-up takes minutes for a memory that nobody measures."""
    inputs = processor.dummy_inputs.get_dummy_processor_inputs(8192, {"image": 1, "video": 1}, {})
    outputs = processor.apply(inputs, TimingContext(enabled=False))
    assert len(outputs["prompt_token_ids"]) < 200


@pytest.mark.usefixtures("on_a_device_with_memory_to_measure")
def test_profiling_picture_of_the_operator(processor: Glm41vMultiModalProcessor) -> None:
    """--limit-mm-per-prompt with a width and height is ignored."""
    options = {"image": ImageDummyOptions(count=2, width=56, height=28)}
    inputs = processor.dummy_inputs.get_dummy_processor_inputs(8192, {"image": 2}, options)
    pictures = inputs.mm_data_items["image"]
    assert [picture.size for picture in pictures] == [(56, 28)] * 2


@pytest.mark.parametrize("data", ["a.png", b"PNG", Path("a.png"), ["a.png"], 7, object()])
def test_what_is_no_picture(data: object, processor: Glm41vMultiModalProcessor) -> None:
    """A path is taken for a list of its letters ("Picture 1 of 5 is a str"), a number crashes."""
    with pytest.raises(ValueError, match="Picture 1 of 1 is a .*; expected a PIL picture"):
        processor.info.parse_mm_data({"image": data})


def test_modalities(processor: Glm41vMultiModalProcessor) -> None:
    """Promises a modality that is not there, or limits the number of pictures or videos."""
    assert dict(processor.info.supported_mm_limits) == {"image": None, "video": None}


# --- precomputed embeddings ---

HIDDEN = 256


def embeddings(*grids: tuple[int, int, int]) -> dict[str, torch.Tensor]:
    rows = sum(t * h * w // 4 for t, h, w in grids)
    return {
        "image_embeds": torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(rows)),
        "image_grid_thw": torch.tensor(grids),
    }


def test_embeddings(make_processor: MakeProcessor) -> None:
    """Embeddings are cut at the wrong rows, or the prompt gets another number of tokens."""
    processor = make_processor(enable_mm_embeds=True)
    data = embeddings((1, 4, 6), (1, 2, 2))
    outputs = run(processor, IMAGE * 2, data)
    assert [r.length for r in outputs["mm_placeholders"]["image"]] == [6, 1]
    assert torch.equal(torch.cat(tensors(outputs, "image_embeds")), data["image_embeds"])
    assert [embeds.shape[0] for embeds in tensors(outputs, "image_embeds")] == [6, 1]
    assert [grid.tolist() for grid in tensors(outputs, "image_grid_thw")] == [[1, 4, 6], [1, 2, 2]]


@pytest.mark.parametrize("grids", [[(1, 4, 6)], [(1, 4, 6), (1, 2, 2)], [(1, 4, 6), (1, 6, 4)]])
@pytest.mark.parametrize("grid_ndim", [1, 2])
def test_embeddings_of_the_chat_api(
    grids: list[tuple[int, int, int]], grid_ndim: int, make_processor: MakeProcessor
) -> None:
    """The chat API joins the dictionaries of several parts in a shape we do not read."""
    processor = make_processor(enable_mm_embeds=True)
    parts = [embeddings(grid) for grid in grids]
    for part in parts:
        part["image_grid_thw"] = part["image_grid_thw"].reshape((-1, 3)[-grid_ndim:])
    outputs = run(processor, IMAGE * len(grids), _get_embeds_data("image", parts, processor))
    for found, part in zip(tensors(outputs, "image_embeds"), parts, strict=True):
        assert torch.equal(found, part["image_embeds"])


def test_embeddings_need_leave(processor: Glm41vMultiModalProcessor) -> None:
    """Anybody may feed raw features to a server that was not started for it."""
    with pytest.raises(ValueError, match="--enable-mm-embeds"):
        run(processor, IMAGE, embeddings((1, 4, 6)))


BAD_EMBEDDINGS = {
    "no grid": ({"image_grid_thw": None}, "image_grid_thw"),
    "too few rows": (
        {"image_embeds": torch.zeros(5, HIDDEN)},
        r"\[5, 256\]; expected .*\[6, 256\]",
    ),
    "hidden size": ({"image_embeds": torch.zeros(6, 8)}, r"\[6, 8\]; expected"),
    "integers": ({"image_embeds": torch.zeros(6, HIDDEN, dtype=torch.int64)}, "is int64"),
    "odd grid": ({"image_grid_thw": torch.tensor([[1, 3, 8]])}, "multiples of 2"),
    "two in time": ({"image_grid_thw": torch.tensor([[2, 2, 6]])}, r"\(1, h, w\)"),
    "negative": ({"image_grid_thw": torch.tensor([[1, -4, -6]])}, "whole numbers"),
    "float grid": ({"image_grid_thw": torch.tensor([[1.0, 4.0, 6.0]])}, "whole numbers"),
}


@pytest.mark.parametrize("case", BAD_EMBEDDINGS)
def test_bad_embeddings(case: str, make_processor: MakeProcessor) -> None:
    """Misshapen features reach the engine and stop it for everybody."""
    changes, message = BAD_EMBEDDINGS[case]
    data = {**embeddings((1, 4, 6)), **changes}
    given = {key: value for key, value in data.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        run(make_processor(enable_mm_embeds=True), IMAGE, given)


def test_embeddings_without_dictionary(make_processor: MakeProcessor) -> None:
    """A bare tensor has no grid, so no positions: it must not pass."""
    with pytest.raises(ValueError, match="Picture 1 of 1 is a torch tensor"):
        run(make_processor(enable_mm_embeds=True), IMAGE, [torch.zeros(6, HIDDEN)])
