# SPDX-License-Identifier: Apache-2.0
"""Checks that a quantized checkpoint is whole and fits its description, before it is loaded.

First the headers alone: every tensor is there, in the dtype and shape that its type demands. Then
the values that would give wrong results without an error: scales, offsets, and what the parts of a
fused layer share. Weights are not read.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from itertools import islice

import torch
from safetensors import safe_open

from vllm_glm41v_npu.checkpoint.description import (
    COMPRESSED,
    DEQ_SCALE_DTYPES,
    FLOAT,
    FLOAT_ONLY,
    RULES,
    STATIC,
    Description,
    DescriptionError,
    unsupported,
)
from vllm_glm41v_npu.checkpoint.folder import FLOATS, Checkpoint, Tensor
from vllm_glm41v_npu.checkpoint.names import (
    DEQ_SCALE,
    INPUT_OFFSET,
    PER_TENSOR,
    QUANT_BIAS,
    WEIGHT_OFFSET,
    fused_layer,
    is_wrapped,
    last_part,
    layer_parts,
    network_name,
    split_name,
)
from vllm_glm41v_npu.checkpoint.shapes import Shape
from vllm_glm41v_npu.quant.scales import float_scale

LISTED = 5


class CheckpointError(ValueError):
    """A quantized checkpoint cannot be loaded; the message names the tensors and the files."""


def validate(
    checkpoint: Checkpoint,
    description: Description,
    shapes: Mapping[str, Shape],
    dtype: str,
) -> None:
    """Check everything that can be checked without reading a weight.

    Args:
        checkpoint: Its folder.
        description: Its description.
        shapes: Those of a float checkpoint, as `shapes.checkpoint_shapes` returns them.
        dtype: The network's, a name of torch's.

    Raises:
        CheckpointError: Something is missing, or not what its type demands.
    """
    for file, trouble in checkpoint.bad_files.items():
        raise CheckpointError(f"{checkpoint.folder / file} {trouble}. Copy it again.")
    if problem := unsupported(description):
        raise CheckpointError(f"{checkpoint.folder}: {problem}")
    tensors = Tensors(checkpoint, description)
    for check in (_types(description), _tensors(tensors, shapes), _dtype(tensors, dtype)):
        _raise_for(check)
    _raise_for(_values(tensors))


class Tensors:
    """The checkpoint's tensors by their names in the network.

    names: name in the network to that on disk.
    headers: name in the network to dtype, shape and file.
    description: the checkpoint's.
    """

    def __init__(self, checkpoint: Checkpoint, description: Description) -> None:
        self.folder = checkpoint.folder
        # Of a norm that is there twice, the wrapped one is loaded.
        on_disk = {network_name(name): name for name in sorted(checkpoint.tensors, key=is_wrapped)}
        self.headers = {name: checkpoint.tensors[there] for name, there in on_disk.items()}
        self.names = {**description.disk_names, **on_disk}
        self.description = description

    def called(self, name: str) -> str:
        """Return a tensor's name for messages: as on disk, with its file if it is there."""
        on_disk = repr(self.names.get(name, name))
        return f"{on_disk} in {self.headers[name].file}" if name in self.headers else on_disk

    def wrong(self, name: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> Iterator[str]:
        """Yield what is wrong with a tensor that must be there."""
        header = self.headers.get(name)
        if header is None:
            if name not in self.description.types:  # else it is named already
                yield f"{self.called(name)} {list(shape)} is in no file"
        elif header.dtype not in dtypes:
            yield f"{self.called(name)} is {header.dtype}, not {' or '.join(dtypes)}"
        elif header.shape != shape:
            yield f"{self.called(name)} has shape {list(header.shape)}, not {list(shape)}"

    def layers(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the type of each quantized layer, before parts are fused."""
        for name, kind in self.description.types.items():
            layer, suffix = split_name(name)
            if suffix == "weight" and kind in RULES:
                yield layer, kind


def _raise_for(problems: Iterator[str]) -> None:
    found = list(islice(problems, LISTED + 1))
    if found:
        more = "; and more" if len(found) > LISTED else ""
        raise CheckpointError(
            f"The quantized checkpoint cannot be loaded: {'; '.join(found[:LISTED])}{more}. Copy "
            "it again, or quantize again, with the description and the weights of one run."
        )


def _types(description: Description) -> Iterator[str]:
    """Yield the tensors of a type that only shards have."""
    for name, kind in description.on_disk.items():
        if kind == COMPRESSED:
            yield (
                f"{description.file} gives {name!r} the type {kind}, which is only in shards for "
                "each tensor-parallel rank (--load-format sharded_state)"
            )


def _tensors(tensors: Tensors, shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Yield tensors that are missing, or of a wrong dtype or shape."""
    described = tensors.description.types
    for name in sorted(described.keys() - tensors.headers.keys()):
        yield f"{tensors.description.file} names {tensors.called(name)}, which is in no file"
    for name, shape in shapes.items():
        layer, suffix = split_name(name)
        kind = described.get(f"{layer}.weight", described.get(name))
        if kind is None:
            yield f"{tensors.description.file} has no type for {tensors.called(name)}"
        elif kind == FLOAT:
            yield from tensors.wrong(name, tuple(FLOATS), shape)
        elif suffix == "weight":
            yield from _quantized(tensors, layer, kind, shape)


def _quantized(tensors: Tensors, layer: str, kind: str, shape: tuple[int, ...]) -> Iterator[str]:
    """Yield what is wrong with a quantized layer, whose weight has the shape `shape` in float."""
    weight = f"{layer}.weight"
    if len(shape) != 2 or last_part(layer) in FLOAT_ONLY:
        yield f"{tensors.called(weight)} is {kind}; it must be {FLOAT}, as nothing computes it so"
        return
    for suffix, rule in RULES[kind].items():
        name = f"{layer}.{suffix}"
        if rule.required or name in tensors.headers:
            yield from tensors.wrong(name, rule.dtypes, rule.sizes(*shape))
    fused = fused_layer(layer)
    if fused != layer and layer == layer_parts(fused)[0]:  # the first part speaks for all
        try:
            tensors.description.layer_type(fused)
        except DescriptionError as error:
            yield str(error)


def _dtype(tensors: Tensors, dtype: str) -> Iterator[str]:
    """Check that the scales were made for the dtype to run in; float32 takes either."""
    scales: dict[str, str] = {}  # dtype that it was made for: one such tensor
    for layer, kind in tensors.layers():
        if kind in STATIC:
            name = f"{layer}.{DEQ_SCALE}"
            scales.setdefault(DEQ_SCALE_DTYPES[tensors.headers[name].dtype], name)
    if len(scales) > 1:
        listed = ", ".join(f"{tensors.called(name)} for {made}" for made, name in scales.items())
        yield f"its scales were made for different dtypes: {listed}"
    elif scales.keys() - {dtype, "float32"} and dtype != "float32":
        ((made, name),) = scales.items()
        raise CheckpointError(
            f"{tensors.called(name)} was made for {made}, and the network is to run in {dtype}, "
            f"which would misread it. Start with --dtype {made}, or on a CPU with --dtype float32."
        )


def _values(tensors: Tensors) -> Iterator[str]:
    """Yield wrong scales and offsets, and values that differ between parts of a fused layer."""
    with ExitStack() as stack:
        read = _reader(tensors, stack)
        shared: dict[str, dict[str, float]] = defaultdict(dict)
        for layer, kind in tensors.layers():
            for suffix in RULES[kind].keys() - {"weight", "bias", QUANT_BIAS}:
                name = f"{layer}.{suffix}"
                if name not in tensors.headers:
                    continue
                value = read(name)
                yield from (f"{tensors.called(name)} {trouble}" for trouble in _bad(suffix, value))
                if suffix in PER_TENSOR:  # parts of a fused layer take the same input
                    shared[f"{fused_layer(layer)}.{suffix}"][name] = value.item()
        for name, values in shared.items():
            if len(set(values.values())) > 1:
                listed = ", ".join(f"{tensors.called(one)} {x:.8g}" for one, x in values.items())
                yield f"the parts of {split_name(name)[0]} take one input, but differ: {listed}"


def _reader(tensors: Tensors, stack: ExitStack) -> Callable[[str], torch.Tensor]:
    """Return a function that reads one tensor as float32."""
    files: dict[str, safe_open] = {}

    def read(name: str) -> torch.Tensor:
        header: Tensor = tensors.headers[name]
        if header.file not in files:
            path = tensors.folder / header.file
            files[header.file] = stack.enter_context(safe_open(path, framework="pt"))
        value = files[header.file].get_tensor(tensors.names[name])
        return float_scale(value)

    return read


def _bad(suffix: str, value: torch.Tensor) -> Iterator[str]:
    """Yield what is wrong with a scale or an offset, read as float32."""
    if suffix.endswith("scale"):
        bad = ~(value.isfinite() & (value > 0))
        if bad.any():
            found = value[bad][0].item()
            yield f"holds {found:.6g} ({int(bad.sum())} such); finite positive scales are needed"
    elif suffix == WEIGHT_OFFSET and value.any():
        yield "is not zero; weights quantized symmetrically are needed"
    elif suffix == INPUT_OFFSET and not (value.round() == value.clamp(-128, 127)).all():
        yield f"is {value.flatten()[0].item():.6g}; a whole number from -128 to 127 is needed"
