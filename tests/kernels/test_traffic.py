"""Bytes that kernels move, counted load by load and store by store in the interpreter, against what
their variants promise.
"""

import pytest
import torch

import dream_kernels
from dream_kernels import (
    OPS,
    dream_l1,
    dream_l1_grad,
    dream_rectify,
    dream_rectify_input,
    noise_key,
    q_sample,
    sampler_step,
)
from kernel_rules import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts in Triton's interpreter")
SHAPE = (2, 3, 32, 32)


@pytest.fixture
def traffic(monkeypatch):
    """Function: call -> bytes that its kernels load and store in blocks (factors and keys of a
    sample left out).
    """
    from triton.runtime.interpreter import InterpreterBuilder, _get_np_dtype

    moved = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def counted_load(self, ptrs, mask, *rest):
        moved.append(
            (mask.data.sum() if ptrs.data.size > 1 else 0)
            * _get_np_dtype(ptrs.get_element_ty()).itemsize
        )
        return load(self, ptrs, mask, *rest)

    def counted_store(self, ptrs, value, mask, *rest):
        moved.append(
            (mask.data.sum() if ptrs.data.size > 1 else 0)
            * _get_np_dtype(ptrs.get_element_ty()).itemsize
        )
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    def count(call) -> int:
        moved.clear()
        with dream_kernels.backend("triton"):
            call()
        return int(sum(moved))

    return count


def inputs(dtype):
    """Tensors z0, z_lr, eps, eps_hat, pred; a key; factors of which `none` is 0."""
    tensors = torch.randn(5, *SHAPE).to(dtype)
    half = torch.full((SHAPE[0], 1, 1, 1), 0.5)
    return *tensors, noise_key(torch.arange(SHAPE[0])), half, 0 * half


@pytest.mark.parametrize(("dtype", "name"), [(torch.float32, "fp32"), (torch.bfloat16, "bf16")])
def test_kernels_move_what_their_variants_promise(traffic, dtype, name):
    z0, z_lr, eps, eps_hat, pred, key, half, none = inputs(dtype)
    calls = {
        "dream_rectify": lambda: dream_rectify(z0, eps, eps_hat, half, half),
        "dream_rectify_input": lambda: dream_rectify_input(z0, eps, eps_hat, half, half),
        "dream_rectify_input_key": lambda: dream_rectify_input(z0, key, eps_hat, half, half),
        "q_sample": lambda: q_sample(z0, z_lr, eps, half, half, half),
        "q_sample_key": lambda: q_sample(z0, z_lr, key, half, half, half),
        "sampler_step_key": lambda: sampler_step(z0, pred, key, half, half, half, 1.0),
        "dream_l1_eps_l1": lambda: dream_l1_grad(pred, eps, eps_hat, half),
        "dream_l1_eps_l1_key": lambda: dream_l1_grad(pred, key, eps_hat, half),
    }
    variants = {variant.name: variant for op in OPS.values() for variant in op.variants()}
    for op, call in calls.items():
        promised = variants[f"{op}/{name}"].bytes_least
        assert traffic(call) == promised * z0.numel(), op
        assert promised <= variants[f"{op}/{name}"].bytes_moved <= promised + 0.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sampling_rectifying_loss_and_gradient_take_eight_passes(traffic, dtype):
    """With noise from a key and no z_lr in z_t (DDPM, Flow): 2 for q_sample, 3 for z_t', 3 for loss
    and gradient.
    """
    z0, z_lr, _, eps_hat, pred, key, half, none = inputs(dtype)

    def step():
        z_t = q_sample(z0, z_lr, key, half, none, half)
        dream_rectify_input(z_t, key, eps_hat, half, half)
        dream_l1_grad(pred, key, eps_hat, half)

    assert traffic(step) == 8 * z0.numel() * z0.element_size()


def test_the_differentiable_loss_keeps_one_byte_a_sign(traffic):
    """Its backward then reads that byte and writes the gradient: 2 + 2/4 + 1 passes with float32,
    instead of 3.
    """
    _, _, _, eps_hat, pred, key, half, _ = inputs(torch.float32)
    pred.requires_grad_()
    assert traffic(lambda: dream_l1(pred, key, eps_hat, half)) == (2 * 4 + 1) * pred.numel()
    assert traffic(lambda: dream_l1(pred.detach(), key, eps_hat, half)) == 2 * 4 * pred.numel()
