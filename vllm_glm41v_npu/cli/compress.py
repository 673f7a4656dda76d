# SPDX-License-Identifier: Apache-2.0
"""`glm41v compress`: from W8A8S to W8A8SC, in shards for each tensor-parallel rank."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vllm_glm41v_npu.checkpoint.folder import BadFile, Checkpoint, read_header
from vllm_glm41v_npu.cli.terminal import fail

if TYPE_CHECKING:
    from vllm_glm41v_npu.checkpoint.description import Description
    from vllm_glm41v_npu.quant.w8a8sc.compressor import Encode, Layer
    from vllm_glm41v_npu.quant.w8a8sc.ranks import Sink

CHIP_DTYPE = "float16"
"""The only dtype of Atlas 310P, and so of W8A8S."""


class Codec(str, Enum):
    """The writer of the compressed stream."""

    portable = "portable"
    cann = "cann"


def compress(
    source: Annotated[
        Path, typer.Argument(help="A W8A8S checkpoint, or shards of one that vLLM saved.")
    ],
    output: Annotated[Path, typer.Argument(help="A new folder for the shards.")],
    tp: Annotated[int, typer.Option(min=1, help="Tensor-parallel ranks to serve with.")] = 1,
    codec: Annotated[
        Codec,
        typer.Option(
            help="portable is decoded when loading, anywhere; cann is for Atlas 310P alone, "
            "which decodes it when computing."
        ),
    ] = Codec.portable,
    cann_compressor: Annotated[
        Path | None, typer.Option(help="CANN's compress_excutor, where it is not found.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace shards of an earlier run in OUTPUT.")
    ] = False,
) -> None:
    """Compress the weights of a W8A8S checkpoint without loss; vLLM loads the result with
    --load-format sharded_state.

    OUTPUT appears when all is written. Exits with 1 where something cannot be read or written.
    """
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    from vllm_glm41v_npu.quant.w8a8sc.cann import CompressorError

    try:
        name, encode = _encoder(codec, cann_compressor)
        report = run(source, output, tp, name, encode, overwrite)
    except (CompressorError, OSError, ValueError) as error:
        fail(str(error), code=1)
    typer.echo(summary(report, output))


def run(
    source: Path, output: Path, tp_size: int, codec: str, encode: Encode, overwrite: bool = False
) -> dict[str, Any]:
    """Write the shards of `source` to `output`, and return the report, also written there.

    Raises:
        ValueError: `source` cannot be used, or `output` not be written.
    """
    from vllm_glm41v_npu.checkpoint.description import Description
    from vllm_glm41v_npu.quant.w8a8sc.compressor import (
        Compressor,
        check_description,
        copy_small_files,
        new_folder,
    )
    from vllm_glm41v_npu.quant.w8a8sc.sources import is_saved, shard_saved

    if not source.is_dir():
        raise ValueError(f"{source} is no folder; a W8A8S checkpoint was expected.")
    with new_folder(output, source, overwrite) as folder:
        description = check_description(Description.read(source), source)
        with progress(source) as advance:
            compressor = Compressor(folder, tp_size, codec, encode, advance)
            if is_saved(source):
                biased = shard_saved(source, tp_size, compressor.add)
            else:
                config = _checked_config(source, description)
                biased = shard_checkpoint(source, config, tp_size, compressor.add)
        copy_small_files(source, folder)
        return compressor.finish(_entries(description, biased))


def _encoder(codec: Codec, cann_compressor: Path | None) -> tuple[str, Encode]:
    """Return the codec's name in the record, and its function that encodes one weight."""
    from vllm_glm41v_npu.quant.w8a8sc import cann, portable
    from vllm_glm41v_npu.quant.w8a8sc.record import CANN, PORTABLE

    if codec is Codec.portable:
        return PORTABLE, portable.encode
    return CANN, partial(cann.encode, compressor=cann.find_compressor(cann_compressor))


def _checked_config(source: Path, description: Description) -> Any:
    """Return the config of a checkpoint, once its files are checked."""
    from transformers import AutoConfig

    from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes
    from vllm_glm41v_npu.processing.hf_config import register_config
    from vllm_glm41v_npu.quant.validation import validate

    register_config()
    config = AutoConfig.from_pretrained(source)
    validate(Checkpoint(source), description, checkpoint_shapes(config), CHIP_DTYPE)
    return config


def shard_checkpoint(source: Path, config: Any, tp_size: int, sink: Sink) -> bool:
    """Give `sink` every rank's tensors of a checkpoint with its names on disk.

    Args:
        source: A W8A8S checkpoint of msModelSlim's, checked before.
        config: Its config.
        tp_size: Number of ranks.
        sink: What takes the tensors.

    Returns:
        Whether RMSNorms have biases.

    Raises:
        ShardingError: So many ranks cannot share it.
        WeightError: A tensor is unknown, misshapen, or missing.
    """
    from vllm_glm41v_npu.models.convert import Layout, convert
    from vllm_glm41v_npu.processing.grid import PatchGeometry
    from vllm_glm41v_npu.processing.pixel_settings import ImageSettings
    from vllm_glm41v_npu.quant.w8a8sc.ranks import share_out
    from vllm_glm41v_npu.quant.w8a8sc.sources import Tensors

    geometry = PatchGeometry.from_vision_config(config.vision_config)
    settings = ImageSettings.from_pretrained(str(source), None, geometry)
    tensors = Tensors.of_checkpoint(source)
    biased = tensors.biased_norms()
    stream = convert(tensors.items(biased), Layout(config, settings, quantized=True))
    share_out(stream, config, tp_size, sink, biased)
    return biased


def _entries(description: Description, norm_biases: bool) -> dict[str, Any]:
    """Return the description's entries for the tensors in the shards.

    vllm-ascend gives every RMSNorm a bias where any name holds "norm.bias". So where the RMSNorms
    have none, the entry of the merger's LayerNorm is left out too.
    """
    from vllm_glm41v_npu.checkpoint.names import is_norm_bias, plain_name

    types = {
        plain_name(name): kind
        for name, kind in description.on_disk.items()
        if norm_biases or not is_norm_bias(name)
    }
    return {**description.extras, **types}


@contextmanager
def progress(source: Path) -> Iterator[Callable[[Layer], None]]:
    """Show a bar on the terminal; yields a function to call after each weight."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Compressing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=int8_bytes(source))
        yield lambda layer: bar.advance(task, layer.original)


def int8_bytes(source: Path) -> int:
    """Return the bytes of the int8 matrices in all weight files of a folder.

    Raises:
        ValueError: One cannot be read.
    """
    total = 0
    for path in source.glob("*.safetensors"):
        try:
            tensors = read_header(path).values()
        except BadFile as error:
            raise ValueError(f"{path} {error}. Copy it again.") from error
        total += sum(t.size for t in tensors if t.dtype == "I8" and len(t.shape) == 2)
    return total


def summary(report: dict[str, Any], output: Path) -> str:
    sizes = report["bytes"]
    return (
        f"{output}: {len(report['layers'])} weights of {sizes['original'] / 1e6:,.1f} MB in "
        f"{sizes['compressed'] / 1e6:,.1f} MB ({report['ratio']:.1%}; their entropy is "
        f"{report['entropy_ratio']:.1%}), {sizes['all_tensors'] / 1e6:,.1f} MB with all else. "
        f"Serve with --load-format sharded_state --quantization ascend --tensor-parallel-size "
        f"{report['tensor_parallel_size']}."
    )
