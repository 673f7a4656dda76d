# SPDX-License-Identifier: Apache-2.0
"""Rows of aten operators: what the aclnn call behind each one takes.

Both chips share them; a chip without bfloat16 drops that dtype, and its own file changes the few
rows that differ in more. The dtypes are those of the call's document and of the lists in its source
(`op_api/aclnn_*.cpp`) in the folder that a row names. Where a document leaves the Atlas inference
series (310P) out although the source has a list for it (add, sub, div, exp, layer norm, gather,
scatter and others), the source decides: without these no model would run there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from npu_emulator.chips.conditions import dtype_of, same_dtype
from npu_emulator.chips.rules import Operator, Rule, Tensor

HALVES = "float16 bfloat16"
FLOATS = f"float32 {HALVES}"
DOUBLES = f"float64 {FLOATS}"
INTEGERS = "int8 int16 int32 int64 uint8"
NUMBERS = f"{DOUBLES} {INTEGERS}"
REAL = f"{NUMBERS} bool"
COMPLEX = "complex64 complex128"
UNSIGNED = "uint16 uint32 uint64"
WORDS = {
    "floats": FLOATS,
    "doubles": DOUBLES,
    "integers": INTEGERS,
    "numbers": NUMBERS,
    "real": REAL,
    "complex": COMPLEX,
    "unsigned": UNSIGNED,
    "all": f"{REAL} {COMPLEX} {UNSIGNED}",
}
"""Sets of dtypes in the tables below, which have plain names of dtypes too."""
ENDINGS = {
    "arithmetic": ".Tensor .Scalar .out _.Tensor _.Scalar",
    "comparison": ".Tensor .Scalar .Tensor_out .Scalar_out _.Tensor _.Scalar",
    "bits": ".Tensor .Scalar .Tensor_out .Scalar_out",
    "power": ".Tensor_Scalar .Tensor_Tensor .Scalar .Tensor_Scalar_out .Tensor_Tensor_out "
    ".Scalar_out _.Scalar _.Tensor",
    "modes": ".Tensor_mode .Scalar_mode .out_mode _.Tensor_mode _.Scalar_mode",
    "clamp": "= .out _ .Tensor .Tensor_out _.Tensor",
    "unary": "= .out _",
    "out": "= .out",
    "values": "= .values",
}
"""What "add:arithmetic" stands for: that name with each of these endings ("=" for none)."""

# An entry a line, continued by indented lines: folder | dtypes | operators | arguments' own dtypes.
# A tensor without dtypes of its own has one of the entry's.
MATH = """\
math/add | real complex | add:arithmetic
math/sub | real complex | sub:arithmetic rsub.Tensor rsub.Scalar
math/mul | real complex | mul:arithmetic
math/div | real complex | div:arithmetic div:modes
math/floor_div | real | floor_divide floor_divide.Scalar floor_divide.out floor_divide_.Tensor
    floor_divide_.Scalar
math/floor_mod | doubles int32 int64 | remainder:comparison remainder.Scalar_Tensor
math/mod | numbers | fmod:comparison
math/addcmul | doubles int8 uint8 int32 int64 | addcmul:unary
math/addcdiv | doubles int64 | addcdiv:unary
math/pow | real complex | pow:power
math/equal | real complex | eq:comparison
math/not_equal | real complex | ne:comparison logical_xor:out
math/greater | real uint16 | gt:comparison
math/greater_equal | real uint16 | ge:comparison
math/less | real uint16 | lt:comparison
math/less_equal | real uint16 | le:comparison
math/tensor_equal | real unsigned | equal
math/logical_and | real complex | logical_and:unary
math/logical_or | real complex | logical_or:unary
math/logical_not | real | logical_not:unary
math/bitwise_and | integers bool uint16 | bitwise_and:bits bitwise_and_.Tensor bitwise_and_.Scalar
math/bitwise_or | integers bool uint16 | bitwise_or:bits __ior__.Tensor __ior__.Scalar
math/bitwise_xor | integers bool uint16 | bitwise_xor:bits bitwise_xor_.Tensor bitwise_xor_.Scalar
math/bitwise_not | integers bool | bitwise_not:unary
math/maximum | real | maximum:out
math/minimum | real | minimum:out
math/exp | doubles int64 bool complex | exp:unary
math/erf | doubles int64 bool | erf:unary
math/tanh | floats integers bool | tanh:unary
math/sqrt | real complex | sqrt:unary
math/rsqrt | real complex | rsqrt:unary
math/reciprocal | real complex | reciprocal:unary
math/log | real complex | log:unary
math/sin | real complex | sin:unary
math/cos | real complex | cos:unary
math/abs | real | abs:unary
math/neg | doubles int8 int32 int64 complex | neg:unary
math/sign | doubles int32 int64 bool | sign:unary
math/round | doubles int32 int64 | round:unary
math/floor | numbers | floor:unary
math/ceil | doubles | ceil:unary
math/trunc | floats | trunc:unary
math/is_finite | real | isfinite
math/nan_to_num | floats integers bool | nan_to_num:unary
math/reduce_sum | real complex | sum sum.dim_IntList sum.IntList_out
math/reduce_prod | real complex | prod prod.dim_int prod.int_out
math/reduce_mean | numbers complex | mean mean.dim mean.out
math/reduce_max | real | max amax:out
math/reduce_min | real | min amin:out
math/arg_max_with_value | floats int64 bool | max.dim max.dim_max
math/arg_min_with_value | floats int64 bool | min.dim min.dim_min
math/arg_max_v2 | numbers | argmax:out
math/arg_min | numbers | argmin:out
math/reduce_all | real | all all.dim all.out all.all_out
math/reduce_any | real | any any.dim any.out any.all_out
math/reduce_log_sum_exp | floats integers bool | logsumexp:out
math/cumsum | numbers complex | cumsum:out
math/sort | floats integers bool | sort sort.stable sort.values sort.values_stable argsort
    argsort.stable
math/topk | numbers | topk:values
math/select | all | where.self where.self_out | condition=bool,uint8
math/search_sorted | float64 float32 float16 integers | searchsorted.Tensor searchsorted.Scalar
    bucketize.Tensor
math/tile | all | repeat
math/one_hot | int32 int64 | one_hot
math/zero_op | real complex uint16 | zero_
math/ones_like | real | ones_like zeros_like full_like
math/cast | all | _to_copy
math/range | | arange arange.start arange.start_step arange.out arange.start_out
math/lin_space | | linspace
math/eye | | eye eye.m
conversion/clip_by_value_v2 | numbers | clamp:clamp clamp_min:clamp clamp_max:clamp
conversion/concat_d | real complex64 | cat:out
conversion/pack | all | stack:out
conversion/pad_v3 | all | constant_pad_nd
conversion/fill | real complex | fill_.Scalar fill_.Tensor full ones zeros
conversion/masked_fill | floats int8 int32 int64 bool | masked_fill_.Scalar masked_fill_.Tensor
    masked_fill.Scalar masked_fill.Tensor | mask=bool
conversion/masked_select_v3 | real | masked_select:out | mask=bool,uint8
conversion/tril | real unsigned | tril:unary
conversion/triu | real unsigned | triu:unary
conversion/im2col | floats | im2col:out
conversion/roll | floats int8 uint8 int32 int64 bool | roll
conversion/view_copy | all | copy_ clone contiguous
random/dsa_random_uniform | numbers | uniform_ random_ random_.from random_.to
random/dsa_random_normal | doubles | normal_
random/stateless_bernoulli | real | bernoulli_.float
random/stateless_sample_multinomial | doubles | multinomial
"""

NN = """\
matmul/mat_mul_v3 | floats | mm:out addmm:unary matmul:out linear mv:out
matmul/batch_mat_mul_v3 | floats | bmm:out baddbmm:unary
activation/softmax_v2 | doubles | _softmax:out softmax.int
activation/log_softmax_v2 | doubles | _log_softmax:out
activation/gelu | floats | gelu:out
activation/swish | floats | silu:unary
activation/sigmoid | real complex | sigmoid:unary
activation/relu | floats int8 uint8 int32 int64 | relu relu_
activation/softplus_v2 | floats | softplus:out
norm/layer_norm_v4 | floats | native_layer_norm
norm/lp_norm_v2 | floats | linalg_vector_norm:out
conv/convolution_forward | floats | convolution _convolution convolution_overrideable
index/embedding | real complex | embedding | indices=int32,int64
index/index | real | index.Tensor _unsafe_index.Tensor
index/index_put_v2 | real | index_put_ index_put _index_put_impl_
index/gather_v2 | all | index_select:out | index=int32,int64
index/scatter_update | real complex | index_copy:unary | index=int32,int64
index/inplace_scatter_add | real | index_add:unary | index=int32,int64
index/index_fill_d | floats int32 int64 bool | index_fill_.int_Scalar index_fill_.int_Tensor
    | index=int32,int64
index/gather_elements_v2 | real | gather:out | index=int32,int64
index/scatter_elements_v2 | real complex | scatter.src scatter.value scatter_.src scatter_.value
    scatter.src_out scatter.value_out scatter_add:unary | index=int32,int64
index/masked_scatter | real | masked_scatter_ masked_scatter | mask=bool,uint8
index/non_zero | real | nonzero:out where
index/repeat_interleave | floats integers bool | repeat_interleave.Tensor
    repeat_interleave.self_Tensor repeat_interleave.self_int
index/reverse_v2 | real complex | flip
index/unique_with_counts_ext2 | real unsigned | unique_dim
index/scatter_elements | real unsigned | _unique _unique2
"""

# What torch_npu makes of copies, views and other operators itself.
TORCH_NPU = """\
common/LocalScalarDenseNpu.cpp | all | _local_scalar_dense
ops/CopyFromAndResizeKernelNpu.cpp | all | _copy_from_and_resize
common/TensorShape.cpp | | squeeze squeeze.dim unsqueeze unfold
common/TensorFactories.cpp | real complex | full.out tril_indices triu_indices
common/TensorFactories.cpp | real | isnan
"""
OP_PLUGIN = """\
op_plugin/ops/opapi/ExponentialKernelNpuOpApi.cpp | doubles | exponential_
"""
TABLES = {
    "hicann/ops-math 9.1.0: ": MATH,
    "hicann/ops-nn 9.1.0: ": NN,
    "Ascend/pytorch v2.10.0-26.0.0: torch_npu/csrc/aten/": TORCH_NPU,
    "op-plugin 26.0.0: ": OP_PLUGIN,
}
BICUBIC = 2
INDEX_PUT = ("aten::index_put_", "aten::index_put", "aten::_index_put_impl_")
MOVES_ANYTHING = ("aten::copy_", "aten::clone", "aten::contiguous", "aten::_local_scalar_dense")
"""Operators that take bfloat16 on every chip, because they only move it."""
COPIES = {"aten::copy_": "src", "aten::_to_copy": "self", "aten::_copy_from_and_resize": "dst"}
"""What goes from one place to another, and the last of its tensors."""
INDICES = Tensor(("int32", "int64", "bool", "uint8"), host=None)


def aten_rows(bfloat16: bool) -> dict[str, Operator]:
    """All rows, for a chip with or without bfloat16."""
    rows = {name: row for place, table in TABLES.items() for name, row in parse(place, table)}
    for name in ("aten::index.Tensor", "aten::_unsafe_index.Tensor", *INDEX_PUT):
        # The indices of a call may still be in host memory.
        rows[name] = replace(rows[name], arguments={"indices": INDICES})
    for name, other in COPIES.items():
        anywhere = Tensor(rows[name].dtypes, host=None)
        rows[name] = replace(rows[name], arguments={"self": anywhere, other: Tensor(host=None)})
    rows["aten::grid_sampler_2d"] = grid_sampler()
    if not bfloat16:
        rows |= {n: without_bfloat16(row) for n, row in rows.items() if n not in MOVES_ANYTHING}
    return rows


def parse(place: str, table: str) -> Iterator[tuple[str, Operator]]:
    """Names and rows of one of the tables above."""
    for line in table.replace("\n    ", " ").strip().splitlines():
        folder, dtypes, names, *rest = (part.strip() for part in line.split("|"))
        words = " ".join(WORDS.get(word, word) for word in dtypes.split()).split()
        own = (text.partition("=") for text in " ".join(rest).split())
        arguments = {name: Tensor(tuple(allowed.split(","))) for name, _, allowed in own}
        row = Operator(place + folder, arguments, dtypes=tuple(dict.fromkeys(words)))
        for name in expand(names):
            yield name, row


def expand(names: str) -> Iterator[str]:
    """The operators that "eq:comparison cat" stands for."""
    for token in names.split():
        name, _, endings = token.partition(":")
        for ending in ENDINGS[endings].split() if endings else ["="]:
            yield f"aten::{name}{ending.replace('=', '')}"


def without_bfloat16(row: Operator) -> Operator:
    """The row for a chip that has no bfloat16."""

    def drop(dtypes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dtype for dtype in dtypes if dtype != "bfloat16")

    arguments = {
        name: replace(wanted, dtypes=drop(wanted.dtypes)) if isinstance(wanted, Tensor) else wanted
        for name, wanted in row.arguments.items()
    }
    return replace(row, arguments=arguments, dtypes=drop(row.dtypes), lacks=("bfloat16",))


def grid_sampler() -> Operator:
    """Every mode of interpolation, of which bicubic leaves float64 out."""

    def holds(arguments: Mapping[str, Any]) -> bool:
        return (
            arguments.get("interpolation_mode") != BICUBIC
            or dtype_of(arguments, "input") != "float64"
        )

    rule = Rule("interpolation_mode", "bilinear or nearest (0 or 1) for float64", holds)
    picture = Tensor(tuple(DOUBLES.split()), ranks=(4, 4))
    return Operator(
        "hicann/ops-cv 9.1.0: image/grid_sample/docs/aclnnGridSampler2D.md",
        {"input": picture, "grid": picture},
        (rule, same_dtype("input", "grid")),
    )
