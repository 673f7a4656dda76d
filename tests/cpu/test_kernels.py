# SPDX-License-Identifier: Apache-2.0
"""The int8 kernels of the CPU: exact, whatever the numbers, the shape, the form and the threads."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vllm_glm41v_npu.cpu.kernels import int8_linear, int8_matmul, ops, pack_weight, product

COLUMNS = (1, 15, 16, 33, 100, 1023, 1025, 2080)  # with and without a tail of every step
ROWS = (1, 3, 17, 70)
TOKENS = (1, 2, 3, 4, 5, 9, 33, 130, 257)
DECODER_LAYER = ((4096, 4608), (4096, 4096), (4096, 27392), (13696, 4096))  # K, N


@pytest.fixture(params=("tiles", "parts", "PyTorch's product"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each way to multiply many tokens, where the CPU has it: parts of any size, some at a time."""
    if request.param in ("tiles", "parts"):
        monkeypatch.setattr(ops, "multiplies_in_full", lambda: False)
        monkeypatch.setattr(ops, "_parts_pay", lambda *sizes: request.param == "parts")
        monkeypatch.setattr(ops, "_MOST_TOKENS", 200)
    elif not ops.multiplies_in_full():
        pytest.skip("PyTorch's product of int8 is not exact on this CPU.")
    return request.param


def uniform(rows: int, columns: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows * columns)
    return torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)


def samples(rows: int, columns: int) -> dict[str, Tensor]:
    gaussian = 40 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(columns))
    return {
        "Gaussian": gaussian.round().clamp(-128, 127).to(torch.int8),
        "uniform": uniform(rows, columns),
        "all 127": torch.full((rows, columns), 127, dtype=torch.int8),
        "all -128": torch.full((rows, columns), -128, dtype=torch.int8),
    }


def few_outliers(weight: Tensor) -> Tensor:
    """As in W8A8S: within 4 bits but for 1 in 50."""
    generator = torch.Generator().manual_seed(weight.numel())
    return torch.where(torch.rand(weight.shape, generator=generator) < 0.02, weight, weight // 16)


def reference(x: Tensor, weight: Tensor) -> Tensor:
    """The integer product in float64, which holds every sum."""
    parts = [x.double() @ part.double().t() for part in weight.split(2048)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("columns", COLUMNS)
def test_products_are_exact(columns: int, way: str) -> None:
    """No sum saturates, and no tail of rows, columns or tokens is lost, in either form."""
    for rows in ROWS:
        for name, weight in samples(rows, columns).items():
            outliers = few_outliers(weight)
            packed = (
                (weight, pack_weight(weight, "int8")),
                (outliers, pack_weight(outliers, "int4")),
            )
            for tokens in TOKENS:
                x = samples(tokens, columns)[name]
                for exact, ours in packed:
                    result = int8_matmul(x, ours)
                    assert result.dtype == torch.int32
                    shape = f"{name}, {ours.form}, M={tokens}, N={rows}, K={columns}"
                    assert torch.equal(result.double(), reference(x, exact)), shape


@pytest.mark.parametrize(("columns", "rows"), DECODER_LAYER)
def test_products_are_exact_at_the_shapes_of_the_model(
    columns: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The true shapes, with a number of tokens for each kind of loop."""
    weight = uniform(rows, columns)
    x = uniform(33, columns)
    exact, ours = reference(x, weight), pack_weight(weight, "int8")
    for tokens in (1, 4, 33):
        assert torch.equal(int8_matmul(x[:tokens], ours).double(), exact[:tokens])
    monkeypatch.setattr(ops, "multiplies_in_full", lambda: False)
    assert torch.equal(int8_matmul(x, ours).double(), exact)


def test_the_longest_sum_fits_int32(way: str) -> None:
    """K = 65535 of the worst numbers."""
    x, weight = (torch.full((size, 65535), -128, dtype=torch.int8) for size in (9, 5))
    result = int8_matmul(x, pack_weight(weight))
    assert (result == 128 * 128 * 65535).all()


@pytest.mark.parametrize("tokens", (1, 5, 40))
def test_outliers_count_at_every_position(tokens: int, way: str) -> None:
    """One outlier at a time, at each column of a row, with a row of nothing else."""
    columns = 1100
    weight = torch.full((columns, columns), 7, dtype=torch.int8)
    weight.fill_diagonal_(-128)
    x = uniform(tokens, columns)
    packed = pack_weight(weight)
    assert packed.form == "int4"
    assert torch.equal(int8_matmul(x, packed).double(), reference(x, weight))


@pytest.mark.parametrize("form", ("int8", "int4"))
@pytest.mark.parametrize("tokens", (1, 40))
def test_linear_is_the_formula_rounded_once(form: str, tokens: int, way: str) -> None:
    """(x_q . W^T + quant_bias) * deq_scale * token_scale in float64, then float32, then float16."""
    weight, x = few_outliers(uniform(70, 100)), uniform(tokens, 100)
    packed = pack_weight(weight, form)  # type: ignore[arg-type]
    scale, token_scale = torch.rand(70), torch.rand(tokens)
    bias = torch.randint(-(2**31), 2**31 - 1, (70,), dtype=torch.int32)
    exact = reference(x, weight)
    expected = (exact + bias) * scale.double()
    assert torch.equal(int8_linear(x, packed, scale), (exact * scale.double()).float())
    assert torch.equal(int8_linear(x, packed, scale, bias), expected.float())
    expected = (expected * token_scale.double()[:, None]).float()
    assert torch.equal(int8_linear(x, packed, scale, bias, token_scale), expected)
    half = int8_linear(x, packed, scale, bias, token_scale, out_dtype=torch.float16)
    assert torch.equal(half, expected.half())


def test_no_token_gives_no_row() -> None:
    """An empty batch is not an error."""
    weight = pack_weight(uniform(3, 16))
    x = torch.empty(0, 16, dtype=torch.int8)
    assert int8_matmul(x, weight).shape == (0, 3)
    assert int8_linear(x, weight, torch.ones(3)).shape == (0, 3)


def test_views_are_read_by_their_strides(way: str) -> None:
    """Transposed and strided tensors give what their copies give."""
    x, weight = uniform(100, 9).t(), uniform(100, 40).t()
    scale = torch.rand(80)[::2]
    result = int8_linear(x, pack_weight(weight), scale)
    assert torch.equal(result, (reference(x, weight) * scale.double()).float())


@pytest.mark.parametrize("form", ("int8", "int4"))
def test_threads_change_nothing(form: str, way: str) -> None:
    """The same bits from one thread and from more threads than there are rows to share."""
    weight, x = few_outliers(uniform(300, 1500)), uniform(33, 1500)
    packed, scale = pack_weight(weight, form), torch.rand(300)  # type: ignore[arg-type]
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results += [int8_linear(x, packed, scale), int8_linear(x[:1], packed, scale)]
    finally:
        torch.set_num_threads(before)
    for many, one in zip(results[2::2], results[3::2], strict=True):
        assert torch.equal(many, results[0]) and torch.equal(one, results[1])


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 20), st.integers(1, 2100), st.sampled_from((0.0, 0.01, 0.5)), st.integers(0, 99)
)
def test_unpacking_gives_the_weight_back(rows: int, columns: int, share: float, seed: int) -> None:
    """Both forms keep every bit, whatever the shape and the share of outliers."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-128, 128, (rows, columns), generator=generator, dtype=torch.int8)
    large = torch.rand(rows, columns, generator=generator) < share
    weight = torch.where(large, weight, weight // 16)
    for form in ("int8", "int4"):
        packed = pack_weight(weight, form)
        assert packed.form == form and packed.shape == (rows, columns)
        assert torch.equal(packed.unpack(), weight)


def test_four_bits_are_chosen_where_they_pay() -> None:
    """Few outliers: half the memory. Many: the weight itself, without a copy."""
    weight = uniform(64, 2048)
    kept, small = pack_weight(weight), pack_weight(few_outliers(weight))
    assert kept.form == "int8" and kept.values.data_ptr() == weight.data_ptr()
    assert small.form == "int4" and small.nbytes < 0.6 * weight.nbytes
    none = pack_weight(weight // 16)
    assert none.form == "int4" and none.starts is None and none.nbytes == weight.nbytes // 2


@pytest.mark.parametrize(
    ("weight", "form", "message"),
    (
        (torch.ones(2, 2), None, r"torch\.float32; expected torch\.int8"),
        (torch.ones(2, dtype=torch.int8), None, r"shape \[2\]; expected \[N, K\]"),
        (torch.ones(0, 2, dtype=torch.int8), None, r"shape \[0, 2\]; expected \[N, K\]"),
        (torch.ones(1, 2**17, dtype=torch.int8), None, r"K from 1 to 131071"),
        (torch.ones(1, 2**16 + 1, dtype=torch.int8), "int4", r"65537 columns; at most 65536"),
    ),
)
def test_what_cannot_be_packed_is_named(weight: Tensor, form: None, message: str) -> None:
    """A wrong dtype or shape is refused with what was found and expected."""
    with pytest.raises((TypeError, ValueError), match=message):
        pack_weight(weight, form)


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"x_q": torch.ones(2, 16)}, r"x_q is torch\.float32; expected torch\.int8"),
        ({"x_q": torch.ones(2, 15, dtype=torch.int8)}, r"x_q has shape \[2, 15\].*'M', 16"),
        ({"x_q": torch.ones(16, dtype=torch.int8)}, r"x_q has shape \[16\]"),
        ({"deq_scale": torch.ones(3).double()}, r"deq_scale is torch\.float64"),
        ({"deq_scale": torch.ones(1)}, r"deq_scale has shape \[1\]; expected \[3\]"),
        ({"quant_bias": torch.ones(3)}, r"quant_bias is torch\.float32; expected torch\.int32"),
        ({"token_scale": torch.ones(3)}, r"token_scale has shape \[3\]; expected \[2\]"),
    ),
)
def test_what_cannot_be_multiplied_is_named(change: dict[str, Tensor], message: str) -> None:
    """A wrong dtype or shape is refused before memory is read."""
    good = {"x_q": torch.ones(2, 16, dtype=torch.int8), "deq_scale": torch.ones(3)}
    weight = pack_weight(torch.ones(3, 16, dtype=torch.int8))
    with pytest.raises((TypeError, ValueError), match=message):
        int8_linear(weight=weight, **(good | change))


class _Layer(torch.nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        weight = few_outliers(uniform(70, 100))
        self.packed = pack_weight(weight, form)  # type: ignore[arg-type]
        self.scale = torch.rand(70)

    def forward(self, x: Tensor) -> Tensor:
        return int8_linear(x + 1, self.packed, self.scale, out_dtype=torch.bfloat16) * 2


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize("form", ("int8", "int4"))
def test_compiles_as_one_graph_for_any_number_of_tokens(form: str) -> None:
    """No graph break, and one graph for all batches, as vLLM compiles a model."""
    layer, graphs = _Layer(form), []

    def count(graph: torch.fx.GraphModule, inputs: list[object]) -> torch.fx.GraphModule:
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, backend=count, fullgraph=True, dynamic=True)
    for tokens in (2, 5, 40):
        x = uniform(tokens, 100)
        assert torch.equal(compiled(x), layer(x))
    assert len(graphs) == 1


@pytest.mark.parametrize("form", ("int8", "int4"))
def test_operators_are_registered_soundly(form: str) -> None:
    """The shapes and dtypes that tracing assumes are those that running gives."""
    layer, x = _Layer(form), uniform(5, 100)
    weight = ops._tensors(layer.packed)
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.glm41v.int8_matmul.default, (x, *weight), test_utils=tests)
    arguments = (x, *weight, layer.scale, None, None)
    torch.library.opcheck(torch.ops.glm41v.int8_linear.default, arguments, test_utils=tests)


def test_runs_where_no_cache_can_be_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where numba finds no directory to cache in, the code is compiled for the process."""
    asked = []

    def cfunc(signature: object, cache: bool = False, **options: bool):
        asked.append(cache)
        if cache:
            raise RuntimeError("cannot cache function 'scale': no locator available for file 'f'")
        return lambda function: type("Compiled", (), {"address": 1})

    monkeypatch.setattr(product, "cfunc", cfunc)
    assert product.worker.__wrapped__("scale") == 1
    assert asked == [True, False]
