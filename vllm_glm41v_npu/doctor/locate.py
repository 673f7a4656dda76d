# SPDX-License-Identifier: Apache-2.0
"""The place of a checkpoint, named by a folder or by a name on the hub."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vllm_glm41v_npu.checkpoint.folder import Json
from vllm_glm41v_npu.doctor import child
from vllm_glm41v_npu.doctor.finding import Finding, fail, ok, warn
from vllm_glm41v_npu.planning.kv_cache import HUB_NAME


def locate(model: str, environ: Mapping[str, str], seconds: float) -> tuple[Path | None, Finding]:
    """Return the folder of a checkpoint named by path or hub name, and a finding about it."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path, ok("model", str(path))
    if path.exists():
        return None, fail("model", f"{path} is a file", "Give the folder that holds config.json.")
    if not HUB_NAME.fullmatch(model):
        return None, fail("model", f"there is no folder {path}", "Check the path.")
    if environ.get("VLLM_USE_MODELSCOPE", "").lower() in ("1", "true"):
        advice = "Give the folder that ModelScope downloads to, which is not looked up here."
        return None, warn("model", f"{model} is no folder, and VLLM_USE_MODELSCOPE is set", advice)
    return _from_hub(model, child.ask({"hub": model}, environ, min(seconds, 60.0))["hub"])


def _from_hub(model: str, answer: Json) -> tuple[Path | None, Finding]:
    nowhere = f"{model} is neither a folder nor in the local cache"
    download = f"Download it where there is a network: `hf download {model}`."
    if answer.get("offline"):
        found = f"{nowhere}, and HF_HUB_OFFLINE is set"
        return None, fail("model", found, f"Unset HF_HUB_OFFLINE, or check the path. {download}")
    if "error" in answer:
        found = f"{nowhere}, and the hub does not give its config.json ({answer['error']})"
        return None, warn("model", found, f"Check the name. {download}")
    folder = Path(answer["config"]).parent
    how = "only its config.json, now downloaded" if answer["fetched"] else "in the local cache"
    return folder, ok("model", f"{model}, {how}: {folder}")
