# SPDX-License-Identifier: Apache-2.0
"""Quantizes a checkpoint: reads, calibrates, quantizes and writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from vllm_glm41v_npu.quant.quantizer import calibration, report, writer
from vllm_glm41v_npu.quant.quantizer.network import Network
from vllm_glm41v_npu.quant.quantizer.observers import ESTIMATORS, ROWS, Observer, choose_rows
from vllm_glm41v_npu.quant.quantizer.plan import (
    TYPES,
    W8A8S,
    Block,
    Group,
    Plan,
    QuantizerError,
    make_plan,
)
from vllm_glm41v_npu.quant.quantizer.report import LayerReport, Report
from vllm_glm41v_npu.quant.quantizer.scheme import (
    ERROR_ROWS,
    Layer,
    Settings,
    evenly,
    quantize_group,
    relative_error,
)
from vllm_glm41v_npu.quant.quantizer.smoothing import smooth
from vllm_glm41v_npu.quant.quantizer.source import Source
from vllm_glm41v_npu.quant.quantizer.sparse import outliers

Progress = Callable[[int, int, str], None]
"""Called with the blocks done, the blocks there are, and the name of the next one."""


@dataclass(frozen=True)
class Request:
    """One order to quantize a checkpoint.

    Attributes:
        source: The folder of the float checkpoint.
        output: The folder to write; there must be nothing yet.
        type: W8A8, W8A8_DYNAMIC or W8A8S.
        dtype: float16 or bfloat16; None for the source's, or float16.
        calibration: See `calibration.load`.
        samples: The most conversations to calibrate on.
        quantize: Patterns of layers to quantize beside the default ones.
        keep_float: Patterns of layers to keep float.
        settings: The numbers; its type and dtype are those above.
        seed: Of the built-in calibration set and the choice of tokens.
    """

    source: Path
    output: Path
    type: str
    dtype: str | None = None
    calibration: Path | None = None
    samples: int = 32
    quantize: Sequence[str] = ()
    keep_float: Sequence[str] = ()
    settings: Settings = Settings()
    seed: int = 0


@torch.inference_mode()
def quantize(request: Request, progress: Progress = lambda *_: None) -> Report:
    """Write the quantized checkpoint to `request.output`, whole or not at all.

    Raises:
        QuantizerError: Something in the request cannot be used; the message says what and why.
    """
    _check(request)
    source = Source(request.source)
    settings = replace(request.settings, type=request.type, dtype=_dtype(request, source))
    plan = make_plan(source.config, request.quantize, request.keep_float)
    writer.require_space(request.output, _size(source, plan, settings))
    data = calibration.load(request.source, request.calibration, request.samples, request.seed)
    network = Network(source, data.samples)
    with writer.new_folder(request.output) as folder:
        run = _Run(source, network, plan, settings, request.seed, folder)
        layers = tuple(run.layers(progress))
        run.writer.finish()
        writer.write_config(folder, source.settings, settings.dtype)
        writer.copy_others(request.source, folder)
        result = _report(request, settings, data, layers)
        writer.write_json(folder / report.REPORT, result.as_json())
    return result


def _check(request: Request) -> None:
    """Check what can be wrong with a request by itself."""
    settings = request.settings
    if request.output.exists():
        raise QuantizerError(
            f"{request.output} exists already, and nothing is overwritten; name another output."
        )
    _require_choice("type", request.type, TYPES)
    _require_choice("estimator", settings.estimator, ESTIMATORS)
    ranges = {
        "alpha": (settings.alpha, 0.0, 1.0),
        "fraction": (settings.fraction, 0.0, 0.5),
        "sigma": (settings.sigma, 0.1, 100.0),
        "number of samples": (request.samples, 1, 10_000),
    }
    for name, (value, least, most) in ranges.items():
        if value is not None and not least <= value <= most:
            raise QuantizerError(f"The {name} is {value}; it has to be from {least} to {most}.")


def _require_choice(name: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise QuantizerError(f"There is no {name} {value!r}; choose {', '.join(choices)}.")


def _dtype(request: Request, source: Source) -> torch.dtype:
    """Return the dtype that the output runs in."""
    sparse = request.type == W8A8S
    if request.dtype is None:
        return source.dtype if source.dtype == torch.bfloat16 and not sparse else torch.float16
    dtypes = {"float16": torch.float16, "bfloat16": torch.bfloat16}
    if request.dtype not in dtypes:
        raise QuantizerError(f"The dtype is {request.dtype!r}; choose float16 or bfloat16.")
    if sparse and request.dtype != "float16":
        raise QuantizerError(
            f"{W8A8S} is made for Atlas 310P, which computes in float16; leave out --dtype."
        )
    return dtypes[request.dtype]


def _size(source: Source, plan: Plan, settings: Settings) -> int:
    """The bytes of the output's tensors; a quantized layer's small ones counted as 20 a row."""
    total = 0
    for name, entry in source.entries.items():
        values = torch.Size(entry.shape).numel()
        if name.removesuffix(".weight") in plan.modules:
            total += values + 20 * entry.shape[0]
        else:
            total += values * settings.dtype.itemsize
    return total


def _report(
    request: Request,
    settings: Settings,
    data: calibration.Calibration,
    layers: tuple[LayerReport, ...],
) -> Report:
    return Report(
        type=request.type,
        dtype=str(settings.dtype).removeprefix("torch."),
        samples=len(data.samples),
        tokens=sum(sample["input_ids"].numel() for sample in data.samples),
        unreadable=data.unreadable,
        layers=layers,
        options={
            "estimator": settings.estimator,
            "alpha": settings.alpha,
            "fraction": settings.fraction,
            "sigma": settings.sigma,
            "compensate": settings.compensate,
            "quantize": list(request.quantize),
            "keep_float": list(request.keep_float),
            "seed": request.seed,
        },
    )


class _Run:
    """Quantizes block after block, and writes what comes out."""

    def __init__(
        self,
        source: Source,
        network: Network,
        plan: Plan,
        settings: Settings,
        seed: int,
        folder: Path,
    ) -> None:
        self.source = source
        self.network = network
        self.plan = plan
        self.settings = settings
        self.seed = seed
        self.writer = writer.Writer(folder, settings.type)
        self.observers: dict[str, Observer] = {}

    def layers(self, progress: Progress) -> Iterator[LayerReport]:
        """Every quantized layer, once it is written."""
        prefixes = tuple(block.prefix for block in self.plan.blocks)
        for name in self.source.entries:
            if not name.startswith(prefixes):
                self._copy(name)
        total = len(self.plan.blocks)
        for done, (block, module) in enumerate(self.network.run(self.plan, self._observe)):
            progress(done, total, block.prefix[:-1])
            yield from self._block(block, module)
            self.observers.clear()
        progress(total, total, "")

    def _observe(self, index: int, module: str, x: Tensor) -> None:
        """`network.Observe`."""
        if module not in self.observers:
            self.observers[module] = Observer(self.settings.needs_products)
        count = max(1, ROWS // len(self.network.samples))
        self.observers[module].see(x, choose_rows(len(x), count, self.seed + index))

    def _copy(self, name: str) -> None:
        self.writer.add(name, self._float(name, self.source.read(name)))

    def _float(self, name: str, tensor: Tensor) -> Tensor:
        """Return a tensor that stays float, in the output's dtype.

        Raises:
            QuantizerError: It is too large for float16.
        """
        changed = tensor.to(self.settings.dtype)
        if not changed.isfinite().all():
            raise QuantizerError(
                f"{name!r} has values up to {tensor.abs().max():.3g}, which float16 cannot hold; "
                "use --dtype bfloat16."
            )
        return changed

    def _block(self, block: Block, module: nn.Module) -> Iterator[LayerReport]:
        done: set[str] = set()
        for group in block.groups:
            tensors, reports = self._group(block, group, module)
            for name, tensor in tensors.items():
                layer = name.rpartition(".")[0]
                quantized = layer in group.modules and not name.endswith(".bias")
                kind = self.settings.type if quantized else writer.FLOAT
                self.writer.add(block.prefix + name, tensor, kind)
                done.add(block.prefix + name)
            yield from reports
        for name in self.source.entries:
            if name.startswith(block.prefix) and name not in done:
                self._copy(name)

    def _group(
        self, block: Block, group: Group, module: nn.Module
    ) -> tuple[dict[str, Tensor], list[LayerReport]]:
        """Return a group's tensors, with its norm's, by names in the block; and its report."""
        observer = self._observer(block, group)
        linears = [module.get_submodule(name) for name in group.modules]
        weights = [layer.get_parameter("weight") for layer in linears]
        rows = evenly(observer.rows, ERROR_ROWS)
        wanted = [linear(rows, weight) for weight in weights]
        tensors: dict[str, Tensor] = {}
        alpha = None
        if group.norm is not None:
            norm = module.get_submodule(group.norm).get_parameter("weight")
            (folded, scale), alpha = smooth(norm, weights, observer, self.settings)
            tensors[f"{group.norm}.weight"] = self._float(block.prefix + group.norm, folded)
            observer = observer.smoothed(scale)
            weights = [weight * scale for weight in weights]
        layers = quantize_group(weights, observer, self.settings)
        rows = evenly(observer.rows, ERROR_ROWS)
        reports = []
        for name, part, layer, want in zip(group.modules, linears, layers, wanted, strict=True):
            full = block.prefix + name
            bias = part.bias if isinstance(part.bias, Tensor) else None
            parts = layer.tensors(full, bias, self.settings)
            tensors |= {f"{name}.{key}": tensor for key, tensor in parts.items()}
            if bias is not None:
                tensors[f"{name}.bias"] = self._float(f"{full}.bias", bias)
            error = relative_error(want, layer.output(rows))
            reports.append(_layer_report(full, layer, observer, error, alpha))
        return tensors, reports

    def _observer(self, block: Block, group: Group) -> Observer:
        observer = self.observers.get(group.modules[0])
        if observer is None:
            raise QuantizerError(
                f"{block.prefix[:-1]} cannot be calibrated, because the calibration set has "
                "neither pictures nor videos; add some."
            )
        if not (observer.low.isfinite().all() and observer.high.isfinite().all()):
            raise QuantizerError(
                f"{block.prefix}{group.modules[0]} gets inputs that are not finite, so the source "
                "itself is broken; check it."
            )
        return observer


def _layer_report(
    name: str, layer: Layer, observer: Observer, error: float, alpha: float | None
) -> LayerReport:
    static = layer.input_scale
    return LayerReport(
        name=name,
        error=error,
        low=observer.low.min().item(),
        high=observer.high.max().item(),
        input_scale=None if static is None else static.scale.item(),
        input_offset=None if static is None else int(static.offset.item()),
        clipped=0.0 if static is None else static.clipped_share(observer.rows),
        alpha=alpha,
        outliers=outliers(layer.integers).float().mean().item(),
    )
