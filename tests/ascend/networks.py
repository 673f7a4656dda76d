# SPDX-License-Identifier: Apache-2.0
"""What one of the two networks does on the emulated chip, found out in a process of its own.

vLLM's plugins are process-wide, so vLLM's in-tree GLM-4.1V class runs in a process whose
VLLM_PLUGINS leaves this package out, and ours in one with every plugin. `ask` starts that process,
which runs this file as a program and writes what it found as JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.ascend.sides import OURS

ROOT = Path(__file__).parents[2]
PLUGINS = "ascend,ascend_model,ascend_model_loader,ascend_kv_connector,npu_emulator"
"""All that an environment for Ascend has, but for ours."""

BATCHES = {"two sizes": [[2, 8, 12], [3, 4, 6]], "one size": [[2, 8, 12], [3, 8, 12]]}
"""Frames, rows and columns of patches of two videos."""
GRID = [1, 8, 12]
"""Those of a picture."""
LIFTED = {
    "Atlas 310P": ("npu::npu_apply_rotary_pos_emb", "aten::grid_sampler_2d", "aten::index_put_")
}
"""What a chip refuses the in-tree class."""
WAITS = "waits"
PATCH = 3 * 14 * 14


def start(side: str, module: str, *arguments: str | Path, chip: str | None = None) -> None:
    """Run `module` as a program in a process in which vLLM has the class of this side."""
    variables = os.environ | {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # so that calls and refusals are seen there
        "VLLM_PLUGINS": PLUGINS,
    }
    if side == OURS:
        del variables["VLLM_PLUGINS"]
    if chip is not None:
        variables["NPU_EMULATOR_CHIP"] = chip
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=600
    )
    if done.returncode != 0:
        raise ChildProcessError(
            f"{side}: {' '.join(command)}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        )


def ask(side: str, what: str, checkpoint: Path, out: Path) -> dict[str, Any]:
    """What `what`, a function of FUNCTIONS, finds with this side's class."""
    start(side, "tests.ascend.networks", what, checkpoint, out)
    return json.loads(out.read_text())


# ---- In the process that `ask` starts


def so_far() -> Counter[str]:
    """The calls by operator until now, and under WAITS how often the host waited for the device."""
    from npu_emulator import emulator

    return Counter(emulator.calls()) + Counter({WAITS: sum(emulator.waits().values())})


def lift_refusals() -> None:
    """Let the chip take what it refuses the in-tree class, so that its calls can be counted."""
    from npu_emulator.chips import CHIPS
    from npu_emulator.chips.rules import Value
    from npu_emulator.settings import current_chip

    chip = current_chip()
    table = dict(CHIPS[chip.device_type])
    for name in LIFTED.get(chip.title, ()):
        kept = {key: v for key, v in table[name].arguments.items() if not isinstance(v, Value)}
        table[name] = replace(table[name], arguments=kept, rules=())
    CHIPS[chip.device_type] = table


def attempt(call: Callable[[], Any]) -> dict[str, Any]:
    """What `call` returns, or why not: the chip's refusal where there is one, else the error."""
    from npu_emulator import emulator

    try:
        return {"result": call(), "error": None}
    except Exception as error:
        refused = emulator.install().refused
        return {"result": None, "error": refused[-1] if refused else f"{error}"}


def answering(checkpoint: Path) -> dict[str, Any]:
    """Ask an engine what is printed in a picture; count the calls of its decoder layers."""
    return attempt(partial(_answer, checkpoint))


def _answer(checkpoint: Path) -> dict[str, Any]:
    from PIL import Image
    from vllm import SamplingParams

    from tests.engines import engine, network_call
    from vllm_glm41v_npu.cli.ask import conversation

    picture = Image.open(ROOT / "assets" / "pictures" / "printed.png")
    messages = conversation([picture], "What number is written in the picture?")
    options: dict[str, Any] = {"limit_mm_per_prompt": {"image": 1, "video": 0}}
    # So that the decoder runs first, with nothing from the tower.
    with engine(checkpoint, max_model_len=2048, skip_mm_profiling=True, **options) as llm:
        layers = network_call(llm, _watch_layers)
        (output,) = llm.chat(messages, SamplingParams(temperature=0, max_tokens=64), use_tqdm=False)
        return {
            "text": output.outputs[0].text,
            "prefill": [steps[0] for steps in layers.values()],
            "decode": [steps[1] for steps in layers.values()],
        }


def _watch_layers(network: Any) -> dict[int, list[Counter[str]]]:
    """The calls in each forward of each decoder layer, from now on."""
    found: dict[int, list[Counter[str]]] = {}

    def enter(steps: list[Counter[str]], *_: Any) -> None:
        steps.append(so_far())

    def leave(steps: list[Counter[str]], *_: Any) -> None:
        steps.append(so_far() - steps.pop())

    for number, layer in enumerate(network.language_model.model.layers):
        found[number] = []
        layer.register_forward_pre_hook(partial(enter, found[number]))
        layer.register_forward_hook(partial(leave, found[number]))
    return found


def parts(checkpoint: Path) -> dict[str, Any]:
    """The configs of dtypes, and the parts of the network without an engine around them."""
    import torch

    dtypes = ("bfloat16", "auto")
    found = {dtype: attempt(partial(_dtype, checkpoint, dtype)) for dtype in dtypes}
    network = _build(checkpoint)
    text = network.language_model
    found["copies"] = {
        name: list(module.weight_nz.shape) if hasattr(module, "weight_nz") else None
        for name, module in (("embed_tokens", text.model.embed_tokens), ("lm_head", text.lm_head))
    }
    with torch.inference_mode():
        found["merge"] = attempt(partial(_merge, network))
        found["picture"] = attempt(partial(_encode, network))
        for batch, grids in BATCHES.items():
            found[batch] = attempt(partial(_apart, network, grids))
        found["waits"] = attempt(partial(_waits, network))
    return found


def _config(checkpoint: Path, dtype: str, **options: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    return EngineArgs(
        model=str(checkpoint),
        dtype=dtype,
        enforce_eager=True,
        max_model_len=1024,
        limit_mm_per_prompt={"image": 3, "video": 0},
        **options,
    ).create_engine_config()


def _dtype(checkpoint: Path, dtype: str) -> str:
    """The network's dtype for `--dtype` and a checkpoint that says bfloat16."""
    overrides = {"dtype": "bfloat16", "text_config": {"dtype": "bfloat16"}}
    return str(_config(checkpoint, dtype, hf_overrides=overrides).model_config.dtype)


def _build(checkpoint: Path) -> Any:
    """The network with the checkpoint's weights, as a worker has it after loading."""
    from vllm.config import set_current_vllm_config
    from vllm.model_executor.model_loader import get_model

    config = _config(checkpoint, "float16")
    context = set_current_vllm_config(config)
    context.__enter__()  # vLLM's layers ask for it when they run, too
    start_worker(config)
    return get_model(vllm_config=config)


def start_worker(config: Any) -> None:
    """What a worker does before it loads, in the context of its config."""
    from vllm.distributed import parallel_state
    from vllm.utils.network_utils import get_open_port
    from vllm_ascend.ascend_config import get_ascend_config
    from vllm_ascend.utils import register_ascend_customop, set_weight_prefetch_method

    here = f"tcp://127.0.0.1:{get_open_port()}"
    parallel_state.init_distributed_environment(1, 0, here, 0, "gloo")
    parallel_state.initialize_model_parallel(backend="gloo")
    register_ascend_customop(config)
    set_weight_prefetch_method(get_ascend_config().weight_prefetch_config)


def _pixels(network: Any, patches: int) -> Any:
    """Random patches, in the form that this network's own processor gives."""
    import torch

    generator = torch.Generator().manual_seed(patches)
    if hasattr(network.visual, "rot_pos_emb"):  # in-tree: normalised, each patch twice in time
        return torch.randn(patches, 2 * PATCH, generator=generator).half()
    return torch.randint(256, (patches, PATCH), generator=generator, dtype=torch.uint8)


def _tower(network: Any, pixels: Any, grids: list[list[int]]) -> Any:
    import torch

    return network.visual(pixels.npu(), torch.tensor(grids))


def _encode(network: Any) -> list[int]:
    """The shape of a picture's features, all finite."""
    features = _tower(network, _pixels(network, GRID[1] * GRID[2]), [GRID])
    assert features.isfinite().all()
    return list(features.shape)


def _merge(network: Any) -> bool:
    """Whether embeddings of pictures get into their places, and text keeps its own."""
    import torch

    ids = torch.arange(10).npu()
    mask = torch.arange(10) % 3 == 0  # on the host
    width = network.config.text_config.hidden_size
    pictures = torch.randn(int(mask.sum()), width).half()
    text = network.embed_input_ids(ids).cpu()
    merged = network.embed_input_ids(ids, [pictures.npu()], is_multimodal=mask).cpu()
    return torch.equal(merged[mask], pictures) and torch.equal(merged[~mask], text[~mask])


def _apart(network: Any, grids: list[list[int]]) -> float:
    """How far a batch of videos is from each of them alone, relative to the norm."""
    import torch

    sizes = [t * h * w for t, h, w in grids]
    pixels = _pixels(network, sum(sizes))
    together = _tower(network, pixels, grids).float()
    alone = [
        _tower(network, part, [grid]) for part, grid in zip(pixels.split(sizes), grids, strict=True)
    ]
    separate = torch.cat(alone).float()
    return ((together - separate).norm() / separate.norm()).item()


def _waits(network: Any) -> dict[int, int]:
    """How often the host waits for the device in one picture, by the tower's depth in blocks."""
    from npu_emulator.settings import CHIPS, current_chip

    if hasattr(network.visual, "rot_pos_emb") and current_chip() is CHIPS["310P"]:
        # The position embedding would be refused; the blocks are what counts here.
        network.visual.embeddings.forward = lambda x, *coordinates: x
    pixels = _pixels(network, GRID[1] * GRID[2])
    blocks, found = network.visual.blocks, {}
    for depth in range(1, len(blocks) + 1):
        network.visual.blocks = blocks[:depth]
        before = so_far()
        _tower(network, pixels, [GRID])
        found[depth] = (so_far() - before)[WAITS]
    return found


FUNCTIONS = {"answering": answering, "parts": parts}

if __name__ == "__main__":
    name, folder, result = sys.argv[1:]
    found = FUNCTIONS[name](Path(folder))
    Path(result).write_text(json.dumps(found))
