"""Laws of vq_lookup, held by its reference and by its kernel, and what docs/design.md (Kernels)
asks of the kernel.
"""

import pytest
import torch

from benchmarks.measure import peak_bytes
from dream_kernels import backend, reference, vq_lookup
from kernel_rules import (
    DEVICE,
    DTYPES,
    LAYOUTS,
    assert_compiled_well,
    assert_compiles_whole,
    gradients,
    run_kernel,
    ulp,
)

# N, K, D: within a tile, and over its end
SHAPES = [
    (1, 1, 1),
    (37, 13, 3),
    (70, 200, 3),
    (500, 128, 2),
    (40, 65, 64),
]
both = pytest.mark.parametrize("mode", ["reference", "triton"])


def inputs(n, k, d, dtype=torch.float32):
    generator = torch.Generator().manual_seed(n)
    return torch.randn(n, d, generator=generator).to(DEVICE, dtype), torch.randn(
        k, d, generator=generator
    ).to(DEVICE, dtype)


def lookup(mode, z, codebook):
    if mode == "triton":
        return run_kernel(vq_lookup, z, codebook)
    return reference.vq_lookup(z, codebook)


def distances(z, codebook):
    """[N,K], squared, float64."""
    return (z.double()[:, None] - codebook.double()).square().sum(2)


def assert_nearest(indices, z, codebook):
    """As near as what eager torch finds by the same formula in float32, of which the distances
    cancel |z|^2 + |e|^2.
    """
    truth, z, codes = distances(z, codebook), z.float(), codebook.float()
    eager = (codes.square().sum(1) - 2 * z @ codes.T).argmin(1)
    ours, theirs = (truth.gather(1, i[:, None])[:, 0] - truth.amin(1) for i in (indices, eager))
    scale = z.square().sum(1) + codes[indices].square().sum(1)
    assert (ours <= 2 * theirs.max() + ulp(scale, torch.float32)).all()


@both
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_lookup_finds_the_nearest_code_to_the_bit(shape, dtype, mode):
    z, codebook = inputs(*shape, dtype)
    indices, z_q = lookup(mode, z, codebook)
    assert indices.dtype == torch.int64
    assert_nearest(indices, z, codebook)
    assert torch.equal(z_q, codebook[indices])


@both
def test_lookup_takes_a_dtype_for_each_input_also_under_autocast(mode):
    z, codebook = inputs(70, 100, 3)
    z = z.bfloat16()
    with torch.autocast(DEVICE, torch.bfloat16):
        indices, z_q = lookup(mode, z, codebook)
    assert torch.equal(indices, distances(z, codebook).argmin(1))
    assert z_q.dtype == torch.float32


@both
@pytest.mark.parametrize("layout", ["strided", "transposed", "expanded"])
def test_lookup_takes_any_layout(layout, mode):
    z, codebook = (LAYOUTS[layout](x) for x in inputs(37, 20, 3))
    indices, z_q = lookup(mode, z, codebook)
    assert torch.equal(indices, distances(z, codebook).argmin(1))
    assert torch.equal(z_q, codebook[indices])


@both
@pytest.mark.parametrize("d", [1, 3, 64])
def test_lookup_breaks_ties_to_the_lowest_index(d, mode):
    z, codebook = inputs(50, 45, d)
    once, _ = lookup(mode, z, codebook)
    assert torch.equal(lookup(mode, z, torch.cat([codebook, codebook, codebook]))[0], once)


@both
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gradient_passes_straight_through_and_sums_at_the_codes_chosen(dtype, mode):
    z, codebook = inputs(60, 10, 3, dtype)
    weight = torch.randn(60, 3, device=DEVICE).to(dtype)
    op = reference.vq_lookup if mode == "reference" else vq_lookup
    to_z, to_codes = gradients(lambda *x: op(*x)[1], (z, codebook), (0, 1), (weight,), mode)
    assert torch.equal(to_z, weight)
    exact = torch.zeros(10, 3, dtype=torch.float64, device=DEVICE)
    exact.index_add_(0, distances(z, codebook).argmin(1), weight.double())
    assert (to_codes.dtype, to_codes.shape) == (dtype, exact.shape)
    assert ((to_codes.double() - exact).abs() <= ulp(exact, dtype) + 1e-6).all()


@both
def test_what_is_detached_learns_nothing(mode):
    """A detached codebook learns nothing and neither does a detached latent."""
    z, codebook = (x.requires_grad_() for x in inputs(20, 5, 3))
    with backend(mode):
        vq_lookup(z, codebook.detach())[1].sum().backward()
        assert codebook.grad is None
        z.grad = None
        vq_lookup(z.detach(), codebook)[1].sum().backward()
    assert z.grad is None
    assert codebook.grad.sum() == z.numel()


@both
def test_what_is_not_finite_stays_seen(mode):
    z, codebook = inputs(40, 70, 3)
    z[3], z[5, 1], z[7, 2] = float("nan"), float("inf"), float("-inf")
    with backend(mode):
        indices, z_q = vq_lookup(z, codebook)
    assert (indices >= 0).all()
    assert (indices < 70).all()
    assert [i for i, row in enumerate(z_q) if not row.isfinite().all()] == [3, 5, 7]


@both
def test_lookup_of_nothing_is_nothing(mode):
    indices, z_q = lookup(mode, *inputs(0, 5, 3))
    assert (indices.shape, z_q.shape) == ((0,), (0, 3))


def test_lookup_does_not_depend_on_its_chunks(monkeypatch):
    z, codebook = inputs(101, 50, 3)
    whole, _ = reference.vq_lookup(z, codebook)
    for rows in (0, 1, 7, 100):
        monkeypatch.setattr(reference, "CHUNK_BYTES", {DEVICE: rows * 64 * 4})
        assert torch.equal(reference.vq_lookup(z, codebook)[0], whole), f"{rows} rows a chunk"


def test_lookup_holds_one_percent_of_the_matrix_of_distances():
    """That N x K matrix is the memory trap of published VQGANs: 8 GiB for one 512 x 512 latent."""
    z, codebook = inputs(4096, 8192, 3)
    vq_lookup(z, codebook)
    assert peak_bytes(lambda: vq_lookup(z, codebook), DEVICE) < 4096 * 8192 * 4 / 50  # 2.6 MiB
    # the measure sees it
    assert peak_bytes(lambda: (z @ codebook.T).argmin(1), DEVICE) >= 4096 * 8192 * 4


def test_lookup_is_a_whole_citizen_of_torch():
    args = tuple(x.requires_grad_() for x in inputs(20, 9, 3))
    for mode in ("reference", "triton"):
        with backend(mode):
            torch.library.opcheck(torch.ops.dream.vq_lookup.default, args)


def test_lookup_breaks_no_graph():
    assert_compiles_whole(vq_lookup, *inputs(40, 70, 3))


def test_lookup_compiles_without_spills():
    # a code of three values has no wide access; arithmetic decides its time
    assert_compiled_well("vq_lookup", accesses=16)


@both
@pytest.mark.parametrize("strict", [False, True])
def test_an_exported_graph_takes_any_number_of_latents(mode, strict, monkeypatch):
    """Of plain operations, whatever runs outside of it; with the same indices, also at ties."""

    class Lookup(torch.nn.Module):
        def forward(self, z, codebook):
            return vq_lookup(z, codebook)

    monkeypatch.setitem(reference.CHUNK_BYTES, "cpu", 2**14)  # many parts elsewhere
    z, codebook = inputs(300, 65, 3)
    codebook = torch.cat([codebook, codebook])
    any_number = {"z": {0: torch.export.Dim("rows")}, "codebook": None}
    with backend(mode):
        program = torch.export.export(
            Lookup(), (z[:37], codebook), dynamic_shapes=any_number, strict=strict
        )
    assert not [n for n in program.graph.nodes if str(n.target).startswith("dream")]
    for rows in (1, 100, 300):
        for made, wanted in zip(
            program.module()(z[:rows], codebook), vq_lookup(z[:rows], codebook)
        ):
            assert torch.equal(made, wanted)
