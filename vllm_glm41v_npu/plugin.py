# SPDX-License-Identifier: Apache-2.0
"""`register()`, the entry point that vLLM calls in every process it starts.

Importing this module loads neither torch nor vLLM; `register()` loads only what the vLLM process
that calls it has loaded already, and leaves the network unimported until vLLM asks for it.
"""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from functools import cache, partial
from typing import Any, NoReturn

from vllm_glm41v_npu import __version__, family
from vllm_glm41v_npu.backends import Backend, UnsupportedBackend, current_backend, resolve
from vllm_glm41v_npu.versions import UntestedVersions, check_versions, installed_versions, listed

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that it has its handler


def register() -> None:
    """Make vLLM serve GLM-4.1V with this package's network; safe to call again.

    Where vLLM, transformers or vllm-ascend is not of a version line this package is tested with,
    GLM-4.1V is refused when vLLM reads its config.json, and other models are served as ever;
    VLLM_GLM41V_NPU_ALLOW_UNTESTED=1 goes on all the same. On a device that is none of this
    package's backends it registers nothing, and vLLM's own class serves.
    """
    _register_once()


@cache
def _register_once() -> None:
    try:
        backend = current_backend()
    except UnsupportedBackend as unsupported:
        logger.warning("%s", unsupported)
        return
    found = installed_versions(backend.stack)
    try:
        check_versions(found)
    except UntestedVersions as untested:
        _refuse_model(untested)
        return
    for registration in REGISTRATIONS:
        registration(backend)
    auto = backend.auto_dtype or "the checkpoint's"
    _say(
        logging.INFO,
        f"vllm-glm41v-npu {__version__} serves GLM-4.1V on {backend.name} (--dtype auto is {auto})"
        f", found {listed(found)}.",
    )


def _patches(backend: Backend) -> None:
    """Patch what upstream gets wrong."""
    from vllm_glm41v_npu.patches import apply_patches

    apply_patches(backend.stack)


def _config(backend: Backend) -> None:
    """Read each form of config.json into one."""
    from vllm_glm41v_npu.processing.hf_config import register_config

    register_config()


def _network(backend: Backend) -> None:
    """Serve the architecture with this package's network."""
    from vllm.model_executor.models.registry import ModelRegistry

    ModelRegistry.register_model(family.ARCHITECTURE, family.MODEL_CLASS)


def _reasoning_parser(backend: Backend) -> None:
    """Offer `--reasoning-parser glm41v`."""
    from vllm.reasoning import ReasoningParserManager

    module, name = family.REASONING_PARSER_CLASS.split(":")
    ReasoningParserManager.register_lazy_module(family.REASONING_PARSER, module, name)


def _quantization(backend: Backend) -> None:
    """Run `--quantization ascend` with the backend's layers."""
    from vllm.model_executor.layers.quantization import register_quantization_config

    from vllm_glm41v_npu.checkpoint.description import METHOD

    config_class = resolve(backend.quantization)  # vllm-ascend registers its own when it is loaded
    register_quantization_config(METHOD)(config_class)


def _checks(backend: Backend) -> None:
    """Refuse settings and checkpoints that cannot be served, before anything is loaded."""
    from vllm_glm41v_npu.checkpoint.file_checks import check_files
    from vllm_glm41v_npu.checks import check_dtype, check_options, register_checks
    from vllm_glm41v_npu.quant.recognition import check, recognise

    register_checks(
        family.ARCHITECTURE,
        on_model=[
            partial(check_files, stack=backend.stack),
            partial(check_dtype, backend=backend),
            recognise,
        ],
        on_engine=[
            check_options,
            partial(check, backend=backend),
        ],
    )


REGISTRATIONS: tuple[Callable[[Backend], None], ...] = (
    _patches,
    _config,
    _network,
    _reasoning_parser,
    _quantization,
    _checks,
)
"""Everything that is registered with vLLM, in order; the first may import vLLM's modules."""


def _refuse_model(untested: UntestedVersions) -> None:
    """Let `untested` end every process that reads the config.json of a GLM-4.1V, and no other."""
    # Nothing of ours that builds on transformers: it may not import with this release.
    from transformers import AutoConfig, PretrainedConfig

    class RefusedConfig(PretrainedConfig):
        model_type = family.MODEL_TYPE

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> NoReturn:
            raise untested

        from_pretrained = from_dict

    AutoConfig.register(family.MODEL_TYPE, RefusedConfig, exist_ok=True)
    _say(logging.WARNING, f"Other models are served, GLM-4.1V is not: {untested}")


def _say(level: int, sentence: str) -> None:
    """Log a sentence at `level` in the process that the user started, and quietly in others."""
    in_front_end = multiprocessing.parent_process() is None
    logger.log(level if in_front_end else logging.DEBUG, "%s", sentence)
