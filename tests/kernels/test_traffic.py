"""Bytes that kernels move, counted load by load and store by store in the interpreter, against what
their variants promise.
"""

import math

import pytest
import torch

import dream_kernels
from dream_kernels import OPS, dream_loss, dream_rectify, q_sample
from kernel_rules import DEVICE

pytestmark = pytest.mark.skipif(DEVICE != "cpu", reason="counts in Triton's interpreter")
SHAPE = (2, 3, 32, 32)


@pytest.fixture
def traffic(monkeypatch):
    """Function: call -> bytes that its kernels load and store in blocks (factors of a sample
    left out).
    """
    from triton.runtime.interpreter import InterpreterBuilder, _get_np_dtype

    moved = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store

    def count(ptrs, mask) -> None:
        size = _get_np_dtype(ptrs.get_element_ty()).itemsize
        moved.append(mask.data.sum() * size if ptrs.data.size > 1 else 0)

    def counted_load(self, ptrs, mask, *rest):
        count(ptrs, mask)
        return load(self, ptrs, mask, *rest)

    def counted_store(self, ptrs, value, mask, *rest):
        count(ptrs, mask)
        return store(self, ptrs, value, mask, *rest)

    monkeypatch.setattr(InterpreterBuilder, "create_masked_load", counted_load)
    monkeypatch.setattr(InterpreterBuilder, "create_masked_store", counted_store)

    def bytes_of(call) -> int:
        moved.clear()
        with dream_kernels.backend("triton"):
            call()
        return int(sum(moved))

    return bytes_of


def assert_moves_what_it_promises(traffic, call, variant):
    assert traffic(call) == variant.bytes_least * math.prod(SHAPE), variant.name
    assert variant.bytes_least <= variant.bytes_moved <= variant.bytes_least + 0.01


@pytest.mark.parametrize("op", [q_sample, dream_rectify])
def test_z_t_is_made_and_rectified_in_four_passes(traffic, op):
    (variant,) = OPS[op.__name__].variants()
    factors = [torch.full((SHAPE[0], 1, 1, 1), 0.5)] * (3 if op is q_sample else 2)
    assert_moves_what_it_promises(traffic, lambda: op(*torch.randn(3, *SHAPE), *factors), variant)


def test_z_lr_costs_nothing_where_it_is_not_in_z_t(traffic):
    """As in DDPM and Flow."""
    half = torch.full((SHAPE[0], 1, 1, 1), 0.5)
    moved = traffic(lambda: q_sample(*torch.randn(3, *SHAPE), half, 0 * half, half))
    assert moved == 3 * 4 * math.prod(SHAPE)


@pytest.mark.parametrize("variant", OPS["dream_loss"].variants(), ids=lambda v: v.name)
def test_the_loss_reads_its_target_and_leaves_its_slope(traffic, variant):
    """Which of l1 is one byte a value."""
    how, dtype = variant.constexprs, variant.signature["pred"]
    pred, eps, eps_hat, z0 = torch.randn(4, *SHAPE)
    pred = pred.bfloat16() if dtype == "*bf16" else pred
    half = torch.full((SHAPE[0], 1, 1, 1), 0.5)
    rectified = (eps_hat, half) if how["RECTIFY"] else (None, None)
    options = {"prediction": "v" if how["V"] else "eps", "kind": how["KIND"]}
    assert_moves_what_it_promises(
        traffic, lambda: dream_loss(pred, eps, *rectified, z0, half, half, **options), variant
    )
