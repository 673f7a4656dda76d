# SPDX-License-Identifier: Apache-2.0
"""Recognises a checkpoint in msModelSlim's format, and checks it before it is loaded.

`recognise` is called before vLLM looks at `--quantization`, `check` before any process loads
weights; `plugin` puts both into the settings checks, on every backend.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.backends import Backend
from vllm_glm41v_npu.checkpoint.description import METHOD, Description, is_described
from vllm_glm41v_npu.checkpoint.folder import Checkpoint, local_folder
from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes

WHOLE_FORMATS = ("auto", "hf", "safetensors")
"""Values of --load-format that read the checkpoint's own safetensors files."""

SHARDED_FORMAT = "sharded_state"
"""The value that reads shards for each tensor-parallel rank."""

SHARD_DTYPES = ("float16", "float32")
"""Dtypes that run shards of W8A8SC, which is made for float16; float32 takes any scales."""

logger = logging.getLogger(f"vllm.{__name__}")


def recognise(model_config: Any) -> None:
    """Set `--quantization` where it was left out and the checkpoint has a description."""
    if model_config.quantization is not None:
        return
    if is_described(model_config.model, model_config.revision):
        model_config.quantization = METHOD
        logger.info("%s is in msModelSlim's format: quantization=%s.", model_config.model, METHOD)


def check(vllm_config: Any, backend: Backend) -> None:
    """Check the checkpoint, if it is in this format and about to be loaded from its own files.

    Raises:
        DescriptionError, CheckpointError, ShardError, ContainerError: It cannot be loaded.
    """
    model, load_format = vllm_config.model_config, vllm_config.load_config.load_format
    if model.quantization not in (None, METHOD):
        return
    if load_format not in (*WHOLE_FORMATS, SHARDED_FORMAT):
        return
    if not is_described(model.model, model.revision):
        return
    if load_format in WHOLE_FORMATS:
        _check_whole(vllm_config)
    else:
        _check_shards(vllm_config, backend)


def _check_whole(vllm_config: Any) -> None:
    """Check a checkpoint whose layers every rank takes its share of."""
    from vllm_glm41v_npu.quant.validation import validate

    model = vllm_config.model_config
    patterns = ["*.json", "*.safetensors"]
    download_dir = vllm_config.load_config.download_dir
    folder = local_folder(model.model, patterns, model.revision, download_dir)
    description = Description.read(folder)
    assert description is not None
    shapes = checkpoint_shapes(model.hf_config)
    validate(Checkpoint(folder), description, shapes, _dtype(model))


def _check_shards(vllm_config: Any, backend: Backend) -> None:
    """Check a checkpoint that has a set of files for each rank."""
    from vllm_glm41v_npu.quant.w8a8sc.record import CANN
    from vllm_glm41v_npu.quant.w8a8sc.shards import ShardError, check_shards, verify_shard

    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    folder = Path(model.model)
    if not folder.is_dir():
        raise ShardError(
            f"{folder} is no folder, and vLLM reads {SHARDED_FORMAT} from a folder alone. "
            "Download it, and give the folder."
        )
    if parallel.pipeline_parallel_size > 1:
        raise ShardError(
            f"Shards are for tensor-parallel ranks, and {parallel.pipeline_parallel_size} "
            "pipeline stages were asked for. Start without --pipeline-parallel-size."
        )
    mode = model.multimodal_config.mm_encoder_tp_mode
    record = check_shards(folder, parallel.tensor_parallel_size, mode)
    record.check_backend(backend)
    if _dtype(model) not in SHARD_DTYPES:
        raise ShardError(
            f"The scales in {folder} were made for float16, and the network is to run in "
            f"{_dtype(model)}. Start with --dtype float16, or on a CPU with --dtype float32."
        )
    if record.codec == CANN:  # the portable decoder looks at the checksums itself
        for rank in range(record.tp_size):
            verify_shard(folder, rank)


def _dtype(model_config: Any) -> str:
    return str(model_config.dtype).removeprefix("torch.")
