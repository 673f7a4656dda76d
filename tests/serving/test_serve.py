# SPDX-License-Identifier: Apache-2.0
"""`glm41v serve`: settings of MindIE's server as a `vllm serve` command."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from vllm_glm41v_npu.cli import app
from vllm_glm41v_npu.serving.mindie.config import CHECKED, TRANSLATED, WITHOUT_MEANING

SEED: dict[str, Any] = {
    "ServerConfig": {"httpsEnabled": False, "port": 1040},
    "BackendConfig": {
        "npuDeviceIds": [[0, 1]],
        "ModelDeployConfig": {
            "maxSeqLen": 10240,
            "maxInputTokenLen": 10240,
            "truncation": False,
            "ModelConfig": [
                {
                    "modelInstanceType": "Standard",
                    "modelName": "glm4v",
                    "modelWeightPath": "/data_mm/weights/GLM-4.1V-9B-Thinking",
                    "worldSize": 2,
                    "npuMemSize": 15,
                    "trustRemoteCode": False,
                }
            ],
        },
    },
}
SEEDS_COMMAND = (
    "ASCEND_RT_VISIBLE_DEVICES=0,1 vllm serve /data_mm/weights/GLM-4.1V-9B-Thinking "
    "--served-model-name glm4v --host 127.0.0.1 --port 1040 --tensor-parallel-size 2 "
    "--max-model-len 10240 --kv-cache-memory-bytes 15G --reasoning-parser glm41v "
    "--shutdown-timeout 60"
)
ROUTES = " --middleware vllm_glm41v_npu.serving.mindie.MindIERoutes"
GUARD = " --middleware vllm_glm41v_npu.serving.guard.Guard"


def serve(*arguments: str | Path, dry: bool = True) -> Result:
    words = ["serve", *map(str, arguments)]
    return CliRunner().invoke(app, words[:1] + ["--dry-run"] * dry + words[1:])


def changed(path: str, value: Any, base: dict[str, Any] = SEED) -> dict[str, Any]:
    """A config with one key changed, or another one added."""
    config = json.loads(json.dumps(base))
    *groups, name = path.split(".")
    place = config
    for group in groups:
        place = place.setdefault(group, {})
        place = place[0] if isinstance(place, list) else place
    place[name] = value
    return config


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(config: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    return write


def test_the_seeds_settings_as_options() -> None:
    """Guards each option's place in the command, and that MindIE's route is off by default."""
    options = ["--name", "glm4v", "--port", "1040", "--device-ids", "0, 1", "--world-size", "2"]
    options += ["--max-seq-len", "10240", "--max-input-len", "10240", "--no-truncation"]
    options += ["--kv-memory-gb", "15", "--no-trust-remote-code"]
    result = serve(*options, "/data_mm/weights/GLM-4.1V-9B-Thinking")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == f"{SEEDS_COMMAND}{GUARD}\n"


def test_the_seeds_config(write: Any) -> None:
    """Guards the same from the file, with what every key means."""
    result = serve("--config", write(SEED))
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{SEEDS_COMMAND}{ROUTES}{GUARD}\n"
    lines = result.stderr.splitlines()
    assert "BackendConfig.npuDeviceIds = [[0, 1]]: ASCEND_RT_VISIBLE_DEVICES" in lines
    assert (
        'BackendConfig.ModelDeployConfig.ModelConfig.modelInstanceType = "Standard": '
        "no meaning here (there is one type)" in lines
    )
    assert len(lines) == 12


def test_options_come_before_the_config(write: Any) -> None:
    """Guards which of two values counts, and options of vLLM's after the --."""
    options = ["--config", str(write(SEED)), "--port", "8080", "--device-ids", "3", "--world-size"]
    options += ["1", "--no-mindie-routes", "--no-reasoning", "--trust-remote-code", "--no-guard"]
    options += ["--shutdown-timeout", "5"]
    result = serve(*options, "--", "--enforce-eager")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith("ASCEND_RT_VISIBLE_DEVICES=3 vllm serve /data_mm/weights/")
    assert "--port 8080 --tensor-parallel-size 1 --max-model-len 10240 " in result.stdout
    assert result.stdout.endswith(" 15G --shutdown-timeout 5 --trust-remote-code --enforce-eager\n")
    assert "middleware" not in result.stdout


def test_the_schedule(write: Any) -> None:
    """Guards maxIterTimes, for the OpenAI routes and for MindIE's, and the other limits."""
    config = SEED
    for name, value in (
        ("maxIterTimes", 512),
        ("maxBatchSize", 200),
        ("maxPrefillTokens", 8192),
        ("cacheBlockSize", 128),
        ("prefillTimeMsPerReq", 150),
    ):
        config = changed(f"BackendConfig.ScheduleConfig.{name}", value, config)
    result = serve("--config", write(config))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        "ASCEND_RT_VISIBLE_DEVICES=0,1 VLLM_GLM41V_NPU_MINDIE_MAX_ITER_TIMES=512 vllm serve "
    )
    expected = (
        "--override-generation-config '{\"max_new_tokens\": 512}' --max-num-seqs 200 "
        "--max-num-batched-tokens 8192 --block-size 128"
    )
    assert expected in result.stdout


def test_vllm_takes_the_command(write: Any) -> None:
    """Guards the names of options, and the forms of their values."""
    from vllm.entrypoints.openai.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    config = changed("BackendConfig.ScheduleConfig.maxIterTimes", 512)
    line = serve("--config", write(config), "--trust-remote-code").stdout
    words = shlex.split(line)
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(words[words.index("serve") + 1 :])
    assert parsed.kv_cache_memory_bytes == 15 << 30
    assert parsed.override_generation_config == {"max_new_tokens": 512}
    assert parsed.middleware == [word for pair in (ROUTES, GUARD) for word in pair.split()[1:]]
    assert parsed.shutdown_timeout == 60
    assert (parsed.tensor_parallel_size, parsed.max_model_len) == (2, 10240)


def test_memory_as_much_as_is_free(write: Any) -> None:
    """Guards MindIE's -1."""
    config = changed("BackendConfig.ModelDeployConfig.ModelConfig.npuMemSize", -1)
    assert "kv-cache" not in serve("--config", write(config)).stdout


MINDIES = {
    "ServerConfig": """ipAddress managementIpAddress port managementPort metricsPort maxLinkNum
        allowAllZeroIpListening httpsEnabled fullTextEnabled tlsCaPath tlsCaFile tlsCert tlsPk
        tlsCrlPath tlsCrlFiles managementTlsCaFile managementTlsCert managementTlsPk
        managementTlsCrlPath managementTlsCrlFiles metricsTlsCaFile metricsTlsCert metricsTlsPk
        metricsTlsCrlPath metricsTlsCrlFiles inferMode interCommTLSEnabled interCommPort
        interCommTlsCaPath interCommTlsCaFiles interCommTlsCert interCommPk interCommTlsCrlPath
        interCommTlsCrlFiles openAiSupport tokenTimeout e2eTimeout distDPServerEnabled
        layerwiseDisaggregated layerwiseDisaggregatedRoleType HealthCheckConfig""",
    "BackendConfig": """backendName modelInstanceNumber npuDeviceIds tokenizerProcessNumber
        multiNodesInferEnabled multiNodesInferPort interNodeTLSEnabled interNodeTlsCaPath
        interNodeTlsCert interNodeTlsPk kvPoolConfig""",
    "BackendConfig.ModelDeployConfig": "maxSeqLen maxInputTokenLen truncation",
    "BackendConfig.ModelDeployConfig.ModelConfig": """modelInstanceType modelName modelWeightPath
        worldSize cpuMemSize npuMemSize backendType trustRemoteCode async_scheduler_wait_time
        kv_trans_timeout kv_link_timeout models plugin_params""",
    "BackendConfig.ScheduleConfig": """templateType templateName cacheBlockSize maxPrefillBatchSize
        maxPrefillTokens prefillTimeMsPerReq prefillPolicyType decodeTimeMsPerReq decodePolicyType
        maxBatchSize maxIterTimes maxPreemptCount supportSelectBatch maxQueueDelayMicroseconds
        maxFirstTokenWaitTime maxN""",
}


@pytest.mark.parametrize(
    "key", [f"{group}.{name}" for group, names in MINDIES.items() for name in names.split()]
)
def test_every_key_of_mindies_file_is_known(key: str) -> None:
    """Guards against "unknown" for a key of the config.json that MindIE comes with."""
    known = key in TRANSLATED or key in CHECKED
    assert known + any(key.startswith(begin) for begin in WITHOUT_MEANING) == 1


def test_an_unknown_key_is_said(write: Any) -> None:
    """Guards against a setting that is dropped in silence."""
    result = serve("--config", write(changed("BackendConfig.maxWishes", 3)))
    assert "BackendConfig.maxWishes = 3: unknown, and not used\n" in result.stderr


def test_an_input_limit_is_not_kept_to() -> None:
    """Guards the note about what vLLM cannot do; at the whole length there is nothing to say."""
    result = serve("model", "--max-seq-len", "2560", "--max-input-len", "2048")
    assert result.exit_code == 0
    assert "The longest input is 2048 tokens, and that is not kept to" in result.stderr
    assert serve("model", "--max-seq-len", "2560", "--max-input-len", "2559").stderr == ""


REFUSED: dict[str, tuple[str, Any]] = {
    "https": ("ServerConfig.httpsEnabled is true; it has to be false", True),
    "two instances": ("modelInstanceNumber is 2; it has to be 1", 2),
    "two machines": ("multiNodesInferEnabled is true; it has to be false", True),
    "truncation": ("truncation is -1; it has to be off", -1),
    "split": ('inferMode is "dmi"; it has to be standard', "dmi"),
    "port": ('ServerConfig.port is "1040"; expected a number of 1 or more', "1040"),
    "trust": ("trustRemoteCode is 1; expected true or false", 1),
    "memory": ("npuMemSize is 0; expected a number of 1 or more", 0),
    "two lists of ids": ("npuDeviceIds is [[0], [1]]; expected one list of ids", [[0], [1]]),
    "ids": ('npuDeviceIds is [["0"]]; expected one list of ids', [["0"]]),
    "world": ("2 device ids (0, 1) for a world size of 1", 1),
    "many": ("The world size is 4; GLM-4.1V has two KV heads, so it takes 1, 2", [[0, 1, 2, 3]]),
}
PATHS = {
    "https": "ServerConfig.httpsEnabled",
    "two instances": "BackendConfig.modelInstanceNumber",
    "two machines": "BackendConfig.multiNodesInferEnabled",
    "truncation": "BackendConfig.ModelDeployConfig.truncation",
    "split": "ServerConfig.inferMode",
    "port": "ServerConfig.port",
    "trust": "BackendConfig.ModelDeployConfig.ModelConfig.trustRemoteCode",
    "memory": "BackendConfig.ModelDeployConfig.ModelConfig.npuMemSize",
    "two lists of ids": "BackendConfig.npuDeviceIds",
    "ids": "BackendConfig.npuDeviceIds",
    "world": "BackendConfig.ModelDeployConfig.ModelConfig.worldSize",
    "many": "BackendConfig.npuDeviceIds",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_served(write: Any, case: str) -> None:
    """Guards against a server that does less than its config says, HTTPS above all."""
    message, value = REFUSED[case]
    config = changed(PATHS[case], value)
    if case == "many":
        config = changed("BackendConfig.ModelDeployConfig.ModelConfig.worldSize", 4, config)
    result = serve("--config", write(config))
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("# comment\n{}", "is not JSON"),
        ({}, "has no BackendConfig"),
        ({"BackendConfig": {"ModelDeployConfig": {"ModelConfig": []}}}, "a list of one model"),
        ({"BackendConfig": {}}, "There is no model to serve"),
    ],
)
def test_files_that_are_no_config(write: Any, config: Any, message: str) -> None:
    """Guards against a traceback."""
    result = serve("--config", write(config))
    assert result.exit_code == 2
    assert message in result.stderr


def test_wrong_options(tmp_path: Path) -> None:
    """Guards the options that no file is needed for."""
    for words, message in (
        (["--config", str(tmp_path / "none")], "cannot be read (No such file or directory)"),
        (["model", "--device-ids", "0;1"], "--device-ids is '0;1'; expected numbers such as 0,1"),
        (["model", "--truncation"], "send truncate_prompt_tokens in the requests"),
        ([], "There is no model to serve"),
    ):
        result = serve(*words)
        assert result.exit_code == 2
        assert message in result.stderr


def test_it_becomes_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Guards the program, its arguments and its environment; and a sentence without vLLM."""
    ran: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: ran.append(arguments))
    result = serve("model", "--device-ids", "1", "--no-reasoning", dry=False)
    assert result.exit_code == 0
    ((program, arguments, environment),) = ran
    assert Path(program).name == "vllm"
    assert arguments == shlex.split(result.stdout)[1:]
    assert environment["ASCEND_RT_VISIBLE_DEVICES"] == "1"
    assert environment["PATH"] == os.environ["PATH"]
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    result = serve("model", dry=False)
    assert result.exit_code == 1
    assert "vllm is not installed" in result.stderr
