"""Laws of the reference ops: they are the specification that kernels are held to."""

import pytest
import torch

from dream_kernels import OPS, dream_rectify, reference, vq_lookup

F64 = torch.float64


def rectify_inputs(dtype=F64):
    generator = torch.Generator().manual_seed(0)
    z_t, eps, eps_hat = torch.randn(3, 2, 3, 4, 5, dtype=F64, generator=generator).to(dtype)
    noise_std, lam = torch.rand(2, 2, 1, 1, 1, dtype=F64, generator=generator).to(dtype)
    return z_t, eps, eps_hat, noise_std, lam


def nearest(z, codebook):
    """Brute force: [N,K] squared distances in float64."""
    return (z.double()[:, None] - codebook.double()).square().sum(2).argmin(1)


def test_every_op_has_its_reference_under_its_own_name():
    assert {name: getattr(reference, name) for name in OPS} == {name: op.reference for name, op in OPS.items()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rectify_is_the_formula_and_leaves_its_inputs(dtype):
    inputs = rectify_inputs(dtype)
    before = [x.clone() for x in inputs]
    z_t, eps, eps_hat, noise_std, lam = (x.double() for x in inputs)
    z, target = dream_rectify(*inputs)
    room = {"rtol": 4 * torch.finfo(dtype).eps, "atol": 4 * torch.finfo(dtype).eps}
    torch.testing.assert_close(z.double(), z_t + noise_std * lam * (eps - eps_hat), **room)
    torch.testing.assert_close(target.double(), eps + lam * (eps - eps_hat), **room)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before))


def test_rectify_has_the_right_gradients():
    inputs = [x.requires_grad_() for x in rectify_inputs()]
    assert torch.autograd.gradcheck(dream_rectify, inputs)


def test_rectify_takes_any_memory_layout():
    inputs = rectify_inputs(torch.float32)
    strided = [x.to(memory_format=torch.channels_last) for x in inputs]
    assert all(torch.equal(x, y) for x, y in zip(dream_rectify(*strided), dream_rectify(*inputs)))


def test_rectify_with_lam_zero_changes_no_bit():
    z_t, eps, eps_hat, noise_std, lam = rectify_inputs(torch.float32)
    z, target = dream_rectify(z_t, eps, eps_hat, noise_std, 0 * lam)
    assert torch.equal(z, z_t)
    assert torch.equal(target, eps)


@pytest.mark.parametrize(("n", "k", "d"), [(1, 1, 1), (37, 13, 3), (500, 128, 3), (64, 31, 256)])
def test_lookup_finds_the_nearest_code(n, k, d):
    generator = torch.Generator().manual_seed(n)
    z, codebook = torch.randn(n, d, generator=generator), torch.randn(k, d, generator=generator)
    indices, z_q = vq_lookup(z, codebook)
    assert indices.dtype == torch.int64
    assert torch.equal(indices, nearest(z, codebook))
    assert torch.equal(z_q, codebook[indices])


@pytest.mark.parametrize("d", [1, 3, 8])
def test_lookup_breaks_ties_to_the_lowest_index(d):
    codebook = torch.randn(40, d, generator=torch.Generator().manual_seed(d))
    z = torch.randn(300, d, generator=torch.Generator().manual_seed(1))
    once, _ = vq_lookup(z, codebook)
    assert torch.equal(vq_lookup(z, torch.cat([codebook, codebook, codebook]))[0], once)


def test_lookup_does_not_depend_on_its_chunks(monkeypatch):
    generator = torch.Generator().manual_seed(4)
    z, codebook = torch.randn(101, 3, generator=generator), torch.randn(50, 3, generator=generator)
    whole, _ = vq_lookup(z, codebook)
    for rows in (0, 1, 7, 100):
        monkeypatch.setattr(reference, "CHUNK_BYTES", rows * 50 * 4)
        assert torch.equal(vq_lookup(z, codebook)[0], whole), f"{rows} rows a chunk"


def test_lookup_holds_no_more_distances_than_it_says(monkeypatch):
    """The N x K matrix of distances is the memory trap of published VQGANs: 8 GiB for one 512 x 512 latent."""
    sizes, argmin = [], torch.Tensor.argmin
    monkeypatch.setattr(torch.Tensor, "argmin", lambda x, dim: sizes.append(x.numel()) or argmin(x, dim))
    monkeypatch.setattr(reference, "CHUNK_BYTES", 4 * 1000)
    vq_lookup(torch.randn(500, 3), torch.randn(64, 3))
    assert sum(sizes) == 500 * 64
    assert max(sizes) <= 1000


def test_lookup_is_exact_under_autocast_and_in_half_precision():
    generator = torch.Generator().manual_seed(2)
    z, codebook = torch.randn(400, 3, generator=generator), torch.randn(256, 3, generator=generator)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(vq_lookup(z, codebook)[0], nearest(z, codebook))
    coarse = z.bfloat16()
    assert torch.equal(vq_lookup(coarse, codebook)[0], nearest(coarse, codebook))


def test_lookup_gives_the_codebook_its_gradient_and_z_none():
    z, codebook = torch.randn(20, 3, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    indices, z_q = vq_lookup(z, codebook)
    z_q.sum().backward()
    assert torch.equal(codebook.grad, torch.bincount(indices, minlength=5)[:, None].expand(5, 3).float())
    assert z.grad is None


def test_lookup_of_nothing_is_nothing():
    indices, z_q = vq_lookup(torch.zeros(0, 3), torch.randn(5, 3))
    assert (indices.shape, z_q.shape) == ((0,), (0, 3))
