"""group_norm_silu is held to docs/design.md (Kernels) by its kernels and by its own way on a CPU;
eager is torch's group norm.
"""

import pytest
import torch
import torch.nn.functional as F

import dream_kernels
from dream_kernels import _cpp, _group_norm_cpu, group_norm_silu, reference
from kernel_rules import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_as_exact_as_eager,
    assert_compiles_whole,
    compiled_ahead,
    gradients,
    needs_cpp,
    run_kernel,
    ulp,
)
from runs import predict

EPS = 1e-5
SHAPES = [  # B,C,H,W,groups
    (2, 8, 5, 7, 4),
    (1, 6, 1, 1, 2),
    (2, 5, 3, 3, 1),
    (1, 40, 5, 6, 8),  # channels_last tiles that are partly empty
    (2, 32, 9, 70, 8),  # several of them for a channel
    (1, 2, 130, 130, 1),  # several spans, and in contiguous features one channel a tile
]
ALL = (0, 1, 2, 5, 6)  # x, weight, bias, scale, shift among the arguments


def inputs(shape, dtype=torch.float32, layout="contiguous", mean=0.0, modulated=True):
    """Arguments of group_norm_silu, and a gradient for its result."""
    *size, groups = shape
    generator = torch.Generator().manual_seed(0)
    x, dy = torch.randn(2, *size, generator=generator).to(DEVICE)
    weight, bias = torch.randn(2, size[1], generator=generator).to(DEVICE)
    scale, shift = (
        torch.randn(2, *size[:2], generator=generator).to(DEVICE, dtype)
        if modulated
        else (None, None)
    )
    x = LAYOUTS[layout]((x + mean).to(dtype))
    return (x, weight, bias, groups, EPS, scale, shift), dy.to(dtype)


def eager(x, weight, bias, groups, eps, scale=None, shift=None):
    """torch's own, an operation at a time, in x's dtype."""
    h = F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), eps)
    return F.silu(
        h if scale is None else h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    )


def double(args):
    return tuple(a.double() if isinstance(a, torch.Tensor) else a for a in args)


def assert_gradients_as_exact_as_eager(args, dy, mode):
    """dx by the rule; sums over positions may also be off by 4 ulp of the sum of their terms'
    magnitudes (order of adding).
    """
    wanted = ALL if args[5] is not None else ALL[:3]
    truth = gradients(group_norm_silu, double(args), wanted, (dy.double(),), "reference")
    theirs = gradients(eager, args, wanted, (dy,), "reference")
    got = gradients(group_norm_silu, args, wanted, (dy,), mode)
    assert_as_exact_as_eager(got[0], truth[0], theirs[0])
    terms = dy.double().abs().sum((0, 2, 3)) * (1 + args[1].double().abs() + args[2].double().abs())
    for i, (ours, exact, other) in enumerate(zip(got[1:], truth[1:], theirs[1:])):
        assert ours.dtype == other.dtype
        allowed = (
            2 * (other - exact).abs().max()
            + ulp(exact, ours.dtype)
            + 4 * ulp(4 * terms.max(), torch.float32)
        )
        assert ((ours - exact).abs() <= allowed).all(), (
            f"{('weight', 'bias', 'scale', 'shift')[i]}: {(ours - exact).abs().max()}"
        )


# ------------------------------------------------------------------------------------------ kernels


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES)
def test_kernel_is_as_exact_as_eager(shape, layout, dtype):
    args, dy = inputs(shape, dtype, layout)
    got = run_kernel(group_norm_silu, *args)
    assert got.stride() == args[0].stride()
    assert_as_exact_as_eager(got, group_norm_silu(*double(args)), eager(*args))
    assert_gradients_as_exact_as_eager(args, dy, "triton")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_kernel_is_as_exact_as_eager_far_from_zero(layout, dtype):
    args, dy = inputs((2, 8, 9, 70, 4), dtype, layout, mean=30.0, modulated=False)
    args = (args[0].contiguous(), *args[1:])  # torch's own channels_last is far worse
    theirs = eager(*args)
    args = (LAYOUTS[layout](args[0]), *args[1:])
    assert_as_exact_as_eager(
        run_kernel(group_norm_silu, *args), reference.group_norm_silu(*double(args)), theirs
    )
    assert_gradients_as_exact_as_eager(args, dy, "triton")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_kernel_takes_any_layout(layout):
    args, dy = inputs(SHAPES[0], layout=layout)
    assert_as_exact_as_eager(
        run_kernel(group_norm_silu, *args), reference.group_norm_silu(*double(args)), eager(*args)
    )
    assert_gradients_as_exact_as_eager(args, dy, "triton")


def test_kernel_without_the_activation_is_the_norm():
    args, _ = inputs(SHAPES[0], modulated=False)
    got = run_kernel(group_norm_silu, *args, silu=False)
    assert_as_exact_as_eager(
        got,
        F.group_norm(args[0].double(), 4, *(v.double() for v in args[1:3])),
        F.group_norm(args[0], 4, *args[1:3]),
    )


def test_kernel_of_nothing_is_nothing():
    args, _ = inputs((0, 8, 4, 4, 4))
    assert run_kernel(group_norm_silu, *args).shape == (0, 8, 4, 4)


def test_kernel_is_a_whole_citizen_of_torch():
    (x, weight, bias, groups, eps, *_), _ = inputs((2, 8, 4, 5, 4), layout="channels_last")
    weight, bias = weight.expand(2, 8).contiguous(), bias.expand(2, 8).contiguous()
    args = (*(v.requires_grad_() for v in (x, weight, bias)), groups, eps, True)
    torch.library.opcheck(torch.ops.dream.group_norm_silu.default, args)


def test_kernel_breaks_no_graph():
    assert_compiles_whole(group_norm_silu, *inputs((2, 8, 4, 5, 4), layout="channels_last")[0])


@pytest.mark.parametrize("mode", ["triton", "auto"])
def test_the_output_is_not_kept_for_the_backward(mode):
    (x, *args), _ = inputs((2, 8, 16, 16, 4), layout="channels_last")
    saved = []
    with (
        dream_kernels.backend(mode),
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
    ):
        y = group_norm_silu(x.requires_grad_(), *args)
    features = {t.data_ptr() for t in saved if t.numel() == x.numel()}
    assert features == {x.data_ptr()} and y.requires_grad


def test_a_network_gives_the_same_with_its_kernels():
    from ldm_dream.config.networks import SR3Config
    from ldm_dream.networks import build_network

    torch.manual_seed(0)
    network = build_network(
        SR3Config(
            image_size=8,
            model_channels=8,
            channel_mult=(1, 2),
            num_res_blocks=1,
            norm_groups=4,
            dropout=0,
        )
    )
    network = network.to(DEVICE, memory_format=torch.channels_last)
    args = (torch.randn(1, 3, 8, 8), torch.rand(1), torch.randn(1, 3, 8, 8))
    results = []
    for mode in ("triton", "reference"):
        with dream_kernels.backend(mode):
            y = predict(network, *(a.to(DEVICE) for a in args))
            results.append([y, *torch.autograd.grad(y.square().mean(), list(network.parameters()))])
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_kernels_compile_well_for_every_gpu():
    """No spills, int64 offsets, features read and written 128 bits at a time."""
    for row in compiled_ahead("group_norm_silu"):
        where = f"{row.variant} on {row.target}"
        assert row.spills == 0, f"{where}: {row.spills} spills"
        assert row.narrow_offsets == 0, f"{where}: int32 offsets"
        kind = row.variant.split("/")[1]
        if not kind.startswith("join"):
            assert row.load_bits >= 128, f"{where}: loads of {row.load_bits} bits"
        if kind in ("apply", "dx"):
            assert row.store_bits >= 128, f"{where}: stores of {row.store_bits} bits"


# ---------------------------------------------------------------------------------------------- CPU


CPU_SHAPES = [
    *SHAPES[:4],  # channels that the C++ leaves to torch
    (2, 32, 9, 70, 8),
    (3, 64, 1, 1, 4),  # fewer positions than threads
    (1, 96, 33, 40, 32),  # tiles that end in the middle, groups of 3 channels
    (1, 1056, 5, 5, 33),
]


@pytest.fixture(params=["C++", "torch"])
def cpu(request, monkeypatch):
    """Both ways of the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(_group_norm_cpu, "library", lambda name: None)
    else:
        needs_cpp("group_norm_cpu")


def on_cpu(args):
    return tuple(a.cpu() if isinstance(a, torch.Tensor) else a for a in args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize("shape", CPU_SHAPES)
def test_cpu_is_as_exact_as_eager(cpu, shape, mean, dtype):
    args, dy = inputs(shape, dtype, "channels_last", mean, modulated=mean == 0)
    args, dy = on_cpu(args), dy.cpu()
    got = group_norm_silu(*args)
    assert got.stride() == args[0].stride()
    assert_as_exact_as_eager(got, reference.group_norm_silu(*double(args)), eager(*args))
    assert_gradients_as_exact_as_eager(args, dy, "auto")


@pytest.mark.parametrize("mean", [0.0, 30.0, 1000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cpp_is_exact_where_torch_is_not(dtype, mean):
    """torch 2.14 takes the variance of channels_last as E[x^2] - E[x]^2."""
    args, _ = inputs((2, 64, 40, 41, 32), dtype, "channels_last", mean, modulated=False)
    args = on_cpu(args)
    error = (group_norm_silu(*args).double() - reference.group_norm_silu(*double(args))).abs().max()
    # of y, and of the mean
    assert error < 16 * (torch.finfo(dtype).eps + mean * torch.finfo(torch.float32).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3, 8])
def test_cpp_gives_the_same_with_any_number_of_threads(dtype, threads):
    args, dy = inputs((2, 64, 3, 2, 32), dtype, "channels_last", mean=3.0)
    args, dy, before = on_cpu(args), dy.cpu(), torch.get_num_threads()
    want = [group_norm_silu(*args), *gradients(group_norm_silu, args, ALL, (dy,), "auto")]
    torch.set_num_threads(threads)
    try:
        got = [group_norm_silu(*args), *gradients(group_norm_silu, args, ALL, (dy,), "auto")]
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cpp_spreads_what_is_not_finite_over_its_group_alone(value):
    args, _ = inputs((2, 64, 5, 7, 2), torch.bfloat16, "channels_last")
    args = on_cpu(args)
    args[0][1, 40, 2, 3] = value
    got = group_norm_silu(*args)
    assert got[1, 32:].isnan().all()
    assert got[0].isfinite().all() and got[1, :32].isfinite().all()


def test_cpp_at_the_ends_of_silu():
    """z from -1e4 to 1e4: no overflow of the exponential, forward or backward."""
    x = (
        torch.linspace(-1, 1, 64 * 35)
        .view(1, 64, 5, 7)
        .contiguous(memory_format=torch.channels_last)
        .requires_grad_()
    )
    weight, bias = torch.full((64,), 1e4), torch.zeros(64)
    y = group_norm_silu(x, weight, bias, 1, EPS)
    (dx,) = torch.autograd.grad(y.sum(), x)
    assert y.isfinite().all() and dx.isfinite().all() and y.min() >= -0.3


@pytest.mark.parametrize("how", ["missing", "failing"])
def test_without_a_compiler_it_says_so_once(how, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CXX", "/nowhere/g++" if how == "missing" else "false")
    _cpp.library.cache_clear()
    try:
        args, _ = inputs((1, 32, 4, 4, 4), layout="channels_last")
        results = [group_norm_silu(*on_cpu(args)) for _ in range(2)]
    finally:
        _cpp.library.cache_clear()
    assert [record.message.split(";")[0] for record in caplog.records] == [
        "group_norm_cpu runs in torch's own, slower operations"
    ]
    torch.testing.assert_close(results[0], reference.group_norm_silu(*on_cpu(args)))
    assert not list(tmp_path.rglob("*.so"))


def test_it_is_compiled_once_and_kept(monkeypatch, tmp_path):
    needs_cpp("group_norm_cpu")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for _ in range(2):
        assert _cpp.library.__wrapped__("group_norm_cpu")
        found.append(
            [(path.name, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()]
        )
    assert found[0] == found[1] and len(found[0]) == 1


def test_cpu_is_a_whole_citizen_of_torch(cpu):
    x = torch.randn(2, 32, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight, bias = torch.randn(2, 2, 32).unbind()
    args = (x, weight.requires_grad_(), bias.requires_grad_(), 4, EPS, True)
    torch.library.opcheck(torch.ops.dream.group_norm_silu_channels_last.default, args)


def test_cpu_breaks_no_graph(cpu):
    args, _ = inputs((2, 32, 4, 5, 4), layout="channels_last")
    torch.compiler.reset()
    whole = torch.compile(group_norm_silu, fullgraph=True, backend="aot_eager")(*args)
    assert torch.equal(whole, group_norm_silu(*args))


# ---------------------------------------------------------------------------------------- reference


def test_the_reference_is_torchs_norm_with_the_right_gradients():
    args, _ = inputs((2, 6, 2, 3, 3))
    args = double(args)
    torch.testing.assert_close(reference.group_norm_silu(*args), eager(*args))
    leaves = [a.requires_grad_() if isinstance(a, torch.Tensor) else a for a in args]
    assert torch.autograd.gradcheck(reference.group_norm_silu, leaves)


@pytest.mark.parametrize("mode", ["auto", "triton", "reference"])
def test_autocast_changes_no_type(mode):
    args, _ = inputs((2, 8, 4, 5, 4), torch.bfloat16)
    with torch.autocast(DEVICE, torch.bfloat16), dream_kernels.backend(mode):
        assert group_norm_silu(*args).dtype == torch.bfloat16
        assert group_norm_silu(args[0].float(), *args[1:]).dtype == torch.float32


@pytest.mark.parametrize("mode", ["auto", "triton", "reference"])
def test_an_exported_graph_holds_no_operation_of_ours(mode):
    """Of channels_last features too, which have ways of their own everywhere."""

    class Norm(torch.nn.Module):
        def forward(self, x, weight, bias):
            return group_norm_silu(x, weight, bias, 4, EPS)

    args = inputs((1, 8, 4, 6, 4), layout="channels_last")[0][:3]
    with dream_kernels.backend(mode):
        program = torch.export.export(Norm(), args)
    assert not [n for n in program.graph.nodes if str(n.target).startswith("dream")]
    torch.testing.assert_close(program.module()(*args), reference.group_norm_silu(*args, 4, EPS))
