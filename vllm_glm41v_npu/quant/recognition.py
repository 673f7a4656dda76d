# SPDX-License-Identifier: Apache-2.0
"""Checks by which vLLM learns that a checkpoint is in msModelSlim's format, and that it is sound.

`recognise` is called before vLLM looks at `--quantization`, `check` before any process loads
weights; `plugin` puts both into the settings checks, on every backend.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vllm_glm41v_npu.backends import Backend
from vllm_glm41v_npu.checkpoint.description import (
    DESCRIPTION,
    METHOD,
    Description,
    DescriptionError,
    find,
)
from vllm_glm41v_npu.checkpoint.folder import Checkpoint

Expects = Callable[[Any], tuple[Mapping[str, tuple[int, ...]], Callable[[str], str]]]
"""From a model's config: the shapes of a float checkpoint's tensors by their names in vLLM, and
what gives that name for one on disk."""

WHOLE_FORMATS = ("auto", "hf", "safetensors")
"""Values of --load-format that read the checkpoint's own safetensors files."""

SHARDED_FORMAT = "sharded_state"
"""Its value that reads shards for each tensor-parallel rank."""

SHARD_DTYPES = ("float16", "float32")
"""What runs shards of W8A8SC, which is made for float16; float32 takes any scales."""

logger = logging.getLogger(f"vllm.{__name__}")


def recognise(model_config: Any) -> None:
    """Set `--quantization` where it was left out and the checkpoint has a description."""
    if model_config.quantization is None and _described(model_config):
        model_config.quantization = METHOD
        logger.info("%s is in msModelSlim's format: quantization=%s.", model_config.model, METHOD)


def check(vllm_config: Any, backend: Backend, expects: Expects) -> None:
    """Validate the checkpoint, if it is in this format and about to be loaded from its own files.

    Raises:
        DescriptionError, CheckpointError, ShardError, ContainerError: It cannot be loaded.
    """
    model, load_format = vllm_config.model_config, vllm_config.load_config.load_format
    if model.quantization not in (None, METHOD):
        return
    if load_format in WHOLE_FORMATS and _described(model):
        _check_whole(vllm_config, backend, expects)
    elif load_format == SHARDED_FORMAT and _described(model):
        _check_shards(vllm_config, backend)


def _check_whole(vllm_config: Any, backend: Backend, expects: Expects) -> None:
    from vllm_glm41v_npu.quant.validation import validate

    model = vllm_config.model_config
    patterns = ["*.json", "*.safetensors"]
    download_dir = vllm_config.load_config.download_dir
    folder = local_folder(model.model, patterns, model.revision, download_dir)
    description = Description.read(folder)
    assert description is not None
    shapes, rename = expects(model.hf_config)
    validate(Checkpoint(folder), description, shapes, rename, _dtype(model))


def _check_shards(vllm_config: Any, backend: Backend) -> None:
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


def read_description(model: str, revision: str | None) -> tuple[Path, Description]:
    """The folder of a checkpoint and its description, whichever form it has.

    Raises:
        DescriptionError: There is none, or it cannot be used.
    """
    folder = local_folder(model, ["*.json"], revision)
    description = Description.read(folder)
    if description is None:
        raise DescriptionError(
            f"--quantization {METHOD} needs {DESCRIPTION}, and {model} has none. Leave "
            "--quantization out for a float checkpoint, or copy the file there."
        )
    return folder, description


def _dtype(model_config: Any) -> str:
    return str(model_config.dtype).removeprefix("torch.")


def _described(model_config: Any) -> bool:
    """Whether the checkpoint has a description; of a hub model, only the plain one is found."""
    if os.path.isdir(model_config.model):
        return find(Path(model_config.model)) is not None

    from vllm.transformers_utils.repo_utils import file_or_path_exists

    return file_or_path_exists(model_config.model, DESCRIPTION, model_config.revision)


def local_folder(
    model: str,
    patterns: Sequence[str],
    revision: str | None = None,
    download_dir: str | None = None,
) -> Path:
    """A checkpoint's folder; a hub model's files of these patterns are fetched if need be."""
    if os.path.isdir(model):
        return Path(model)

    from vllm.model_executor.model_loader import weight_utils

    found = weight_utils.maybe_download_from_modelscope(
        model, revision, download_dir, allow_patterns=list(patterns)
    )
    if found is None:
        found = weight_utils.download_weights_from_hf(model, download_dir, list(patterns), revision)
    return Path(found)
