# SPDX-License-Identifier: Apache-2.0
"""The tiny checkpoint as msModelSlim quantizes it, to stand beside what `glm41v quantize` makes.

msModelSlim 26.1.0 needs transformers 4.53.0, so it has an environment of its own, on top of .venv:

    python3.11 -m venv .venv-msmodelslim
    .venv-msmodelslim/bin/pip install --no-deps msmodelslim==26.1.0 transformers==4.53.0 \\
        tokenizers==0.21.4 huggingface-hub==0.36.0 accelerate easydict wcmatch bracex pygtrie scipy
    echo "$PWD/.venv/lib/python3.11/site-packages" \\
        > .venv-msmodelslim/lib/python3.11/site-packages/torch.pth
    .venv/bin/python -m benchmarks.msmodelslim_reference inputs FOLDER
    .venv-msmodelslim/bin/python -m benchmarks.msmodelslim_reference quantize FOLDER W8A8
    .venv-msmodelslim/bin/python -m benchmarks.msmodelslim_reference quantize FOLDER W8A8S
    .venv/bin/python -m benchmarks.quantized_accuracy --beside FOLDER/W8A8 FOLDER/W8A8S

The settings are those of msModelSlim's example for GLM-4.1V: outliers by m2, activations by method
2, lm_head, down_proj and the vision tower in float. The calibration set is the one that
`glm41v quantize` has built in, but for its videos, which the example has none of.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

TINY = Path(__file__).resolve().parents[1] / "assets" / "glm41v-tiny"
SOURCE, INPUTS = "source", "inputs.pt"
TYPES: dict[str, dict[str, Any]] = {
    "W8A8": {"w_bit": 8, "a_bit": 8},
    "W8A8S": {"w_bit": 4, "a_bit": 8, "is_lowbit": True, "fraction": 0.01, "use_sigma": True},
}
DTYPE = torch.float16
POSITIONAL = ("input_ids", "attention_mask", *[None] * 8, "pixel_values", None, "image_grid_thw")
"""Arguments of `forward` in transformers 4.53.0, all of which msModelSlim counts; one None more."""


def write_inputs(folder: Path) -> None:
    """The float checkpoint in float16, with transformers 4.53.0's config, and what it is shown."""
    from vllm_glm41v_npu.quant.quantizer import calibration

    source = folder / SOURCE
    shutil.copytree(TINY, source)
    config = json.loads((TINY / "config.json").read_text())
    text = config["text_config"]
    rope = text.pop("rope_parameters")
    text |= {key: rope.pop(key) for key in ("partial_rotary_factor", "rope_theta")}
    text["rope_scaling"] = rope
    config |= {"torch_dtype": "float16", "text_config": text}
    (source / "config.json").write_text(json.dumps(config, indent=2))
    weights = load_file(TINY / "model.safetensors")
    weights = {name: tensor.to(DTYPE) for name, tensor in weights.items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    samples = calibration.load(TINY, None, 32, seed=0).samples
    shown = [sample for sample in samples if "pixel_values_videos" not in sample]
    torch.save([dict(sample) for sample in shown], folder / INPUTS)


def quantize(folder: Path, kind: str) -> None:
    """Have msModelSlim quantize `folder`/source to a folder named after the type."""
    from msmodelslim.pytorch.llm_ptq.anti_outlier import AntiOutlier, AntiOutlierConfig
    from msmodelslim.pytorch.llm_ptq.llm_ptq_tools import Calibrator, QuantConfig
    from transformers import Glm4vForConditionalGeneration

    source, output = folder / SOURCE, folder / kind
    os.chdir(folder)  # where it leaves a file or two of its own
    model = Glm4vForConditionalGeneration.from_pretrained(source, torch_dtype=DTYPE).eval()
    inputs = [
        [None if name is None else sample.get(name) for name in (*POSITIONAL, None)]
        for sample in torch.load(folder / INPUTS)
    ]
    in_float = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and (".visual." in name or "down_proj" in name)
    ]
    bits = {key: TYPES[kind][key] for key in ("w_bit", "a_bit")}
    with torch.autocast("cpu", DTYPE):
        smoothing = AntiOutlierConfig(**bits, anti_method="m2", dev_type="cpu")
        AntiOutlier(model, calib_data=inputs, cfg=smoothing).process()
        settings = QuantConfig(
            **TYPES[kind], disable_names=in_float, dev_type="cpu", act_method=2, mm_tensor=False
        )
        calibrator = Calibrator(model, settings, calib_data=inputs, disable_level="L0")
        calibrator.run()
    calibrator.save(str(output), save_type=["ascendV1"])
    for path in source.glob("*.j*"):
        shutil.copyfile(path, output / path.name)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="msModelSlim's own output for the tiny checkpoint."
    )
    parser.add_argument("step", choices=["inputs", "quantize"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("type", choices=TYPES, nargs="?")
    args = parser.parse_args()
    if args.step == "inputs":
        write_inputs(args.folder)
    else:
        quantize(args.folder.resolve(), args.type)


if __name__ == "__main__":
    main()
