# SPDX-License-Identifier: Apache-2.0
"""The doctor's word on the type of a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doctor.machines import (
    BFLOAT16,
    say,
    write_weights,
)
from vllm_glm41v_npu import doctor
from vllm_glm41v_npu.quant.w8a8sc.record import LAYOUT, RECORD, Record

LAYER = "model.language_model.layers.0.self_attn.q_proj."


def quantize(folder: Path, kind: str, deq_scale: str, **names: str) -> None:
    """Put what msModelSlim writes for one layer in the place of the weights."""
    floats = {"F32": "BF16", "I64": "F16"}[deq_scale]
    (folder / "model.safetensors").unlink()
    tensors = {
        f"{LAYER}weight": ("I8", [256, 256]),
        f"{LAYER}deq_scale": (deq_scale, [256]),
        f"{LAYER}quant_bias": ("I32", [256]),
        "lm_head.weight": (floats, [320, 256]),
    }
    write_weights(folder / f"quant_model_weight_{kind.lower()}.safetensors", tensors)
    description = {"version": "1.0.0", "model_quant_type": kind}
    description |= {name: kind for name in tensors} | {"lm_head.weight": "FLOAT"} | names
    (folder / "quant_model_description.json").write_text(json.dumps(description))
    config = json.loads((folder / "config.json").read_text())
    config["dtype"] = {"BF16": "bfloat16", "F16": "float16"}[floats]
    (folder / "config.json").write_text(json.dumps(config))


def test_w8a8(machine, copy):
    """Guards against a type that is not told, and against its scales being misread in silence:
    int64 of float16 are all zeros in bfloat16, and the other way round."""
    quantize(copy, "W8A8", "F32")
    computes = {"FAKE_VLLM": BFLOAT16}
    found = {finding.name: finding for finding in doctor.examine(machine(copy, **computes))}
    assert "msModelSlim W8A8 (tensors: 3 W8A8, 1 FLOAT)" in found["checkpoint type"].found
    assert found["checkpoint type"].status == "ok"
    assert "loads on CPU without --quantization" in found["checkpoint type"].found
    assert found["dtype"].found.startswith("bfloat16 by --dtype auto")
    assert found["weights"].status == "ok"
    config = json.loads((copy / "config.json").read_text()) | {"dtype": "float16"}
    (copy / "config.json").write_text(json.dumps(config))
    finding = say(machine(copy, **computes), "dtype")
    assert finding.status == "warn"
    assert "--dtype bfloat16" in finding.advice


def test_w8a8_of_bfloat16_on_a_310p(ascend, machine, copy):
    """Guards against all zeros on a chip that only computes in float16."""
    quantize(copy, "W8A8", "F32")
    finding = say(machine(copy, device="npu", chip="_310P"), "dtype")
    assert finding.status == "fail"
    assert "made for bfloat16, and Atlas 310P runs in float16" in finding.found


def test_w8a8s(ascend, machine, copy):
    """Guards against a refusal of what either chip runs."""
    quantize(copy, "W8A8S", "I64")
    on_310p = machine(copy, device="npu", chip="_310P")
    for where in (machine(copy, device="npu"), on_310p):
        assert "only Atlas 310P" not in say(where, "checkpoint type").found
    assert say(on_310p, "dtype").found.startswith("float16 by --dtype auto")


def test_description_of_other_weights(machine, copy):
    """Guards against a description copied from another run, and a type that nobody reads."""
    quantize(copy, "W8A8", "I64", **{"lm_head.bias": "FLOAT"})
    assert "1 tensors that no file has: lm_head.bias" in say(machine(copy), "description").found
    text = (copy / "quant_model_description.json").read_text()
    (copy / "quant_model_description.json").write_text(text.replace('"W8A8"', '"W4A4"'))
    assert "not supported for these tensors: W4A4" in say(machine(copy), "checkpoint type").found
    mindie = copy / "quant_model_description_w8a8.json"
    (copy / "quant_model_description.json").rename(mindie)
    assert "not supported for these tensors: W4A4" in say(machine(copy), "checkpoint type").found


def test_mindie_form(ascend, machine, copy):
    """Guards a form that loads on every backend."""
    quantize(copy, "W8A8", "F32")
    plain = copy / "quant_model_description.json"
    plain.rename(copy / "quant_model_description_w8a8.json")
    for where in (machine(copy), machine(copy, device="npu")):
        finding = say(where, "checkpoint type")
        assert finding.status == "ok"
        assert "loads on" in finding.found


@pytest.mark.parametrize(
    ("codec", "device", "says"),
    [
        ("portable-1", "cpu", "on CPU with --load-format sharded_state --tensor-parallel-size 2"),
        ("portable-1", "310P", "--codec cann"),
        ("cann", "310P", "on Atlas 310P with --load-format sharded_state --tensor-parallel-size 2"),
        ("cann", "cpu", "--codec portable"),
        ("cann", "A2", "Atlas A2 does not"),
        (None, "cpu", "no record of how they were made"),
    ],
)
def test_shards(ascend, machine, copy, codec, device, says):
    """Guards against a stream that another decoder wrote, and tells the ranks that were split."""
    quantize(copy, "W8A8SC", "I64")
    if codec is not None:
        path = copy / "quant_model_description.json"
        record = Record(codec, 2, "weights", (), LAYOUT).to_json()
        path.write_text(json.dumps(json.loads(path.read_text()) | {RECORD: record}))
    chip = {"cpu": {}, "A2": {"device": "npu"}, "310P": {"device": "npu", "chip": "_310P"}}
    finding = say(machine(copy, **chip[device]), "checkpoint type")
    assert says in (finding.advice or finding.found)
    assert finding.status == ("ok" if "tensor-parallel-size" in says else "fail")


GROUP = {"weights": {"type": "int", "num_bits": 4}, "input_activations": None}
W4A16 = {"quant_method": "compressed-tensors", "config_groups": {"group_0": GROUP}}
FP8 = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"type": "float"}}}}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128}
MLX = {"bits": 4, "group_size": 64}


@pytest.mark.parametrize(
    ("config", "device", "said"),
    [
        ({"quant_method": "compressed-tensors"}, "cpu", None),
        ({"quant_method": "compressed-tensors"}, "npu", None),
        (W4A16, "cpu", None),
        (W4A16, "npu", "compressed-tensors with W4A16, which vllm-ascend does not run"),
        (FP8, "cpu", "compressed-tensors with FP8, for which vLLM has no kernel"),
        (AWQ, "cpu", None),
        (AWQ, "npu", "quantized by awq, and on Ascend compressed-tensors load"),
        (AWQ | {"bits": 8}, "cpu", "awq with 8 bits, and vLLM computes 4 on CPUs"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "cpu", None),
        ({"quant_method": "bitsandbytes"}, "cpu", "whose packed weights have no rows"),
        ({"quant_method": "quark"}, "cpu", "quantized by quark, and on CPUs"),
        (
            {"quant_method": "ascend"},
            "cpu",
            "ascend by its config.json, and there is no quant_model",
        ),
        (MLX, "cpu", "quantized by MLX, which only runs on Apple's machines"),
    ],
)
def test_other_tools_checkpoints(ascend, machine, copy, config, device, said):
    """Guards against an "ok" for what the start refuses, and the other way round."""
    content = json.loads((copy / "config.json").read_text())
    content["text_config"]["quantization_config"] = config
    (copy / "config.json").write_text(json.dumps(content))
    environ = {} if device == "npu" else {"VLLM_PLUGINS": "glm41v_npu"}
    finding = say(machine(copy, device=device, **environ), "checkpoint type")
    assert finding.status == ("ok" if said is None else "fail")
    assert said is None or (said in finding.found and finding.advice)
