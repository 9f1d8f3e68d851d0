"""dropout on a CPU: masks are Philox's, laws those of dropout, with and without a compiler."""

import pytest
import torch

import dream_kernels
from dream_kernels import _dropout_cpu, dropout
from kernel_rules import needs_cpp

COMPILED = (torch.float32, torch.bfloat16)

# Random123 1.14, kat_vectors, philox4x32 with 10 rounds: counter, key -> words
KNOWN = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox(counter: list[torch.Tensor], key: list[torch.Tensor]) -> list[torch.Tensor]:
    """Philox-4x32-10 (Salmon et al., SC 2011), the specification of the masks: four counter words,
    two key words -> four random words; uint32 held in int64.
    """
    low = 0xFFFFFFFF

    def product(x, factor):
        """Upper and lower word, without a step over 63 bits."""
        above, below = (x >> 16) * factor, (x & 0xFFFF) * factor
        return (above + (below >> 16)) >> 16, (((above & 0xFFFF) << 16) + below) & low

    for _ in range(10):
        high2, low2 = product(counter[2], 0xCD9E8D57)
        high0, low0 = product(counter[0], 0xD2511F53)
        counter = [high2 ^ counter[1] ^ key[0], low2, high0 ^ counter[3] ^ key[1], low0]
        key = [(key[0] + 0x9E3779B9) & low, (key[1] + 0xBB67AE85) & low]
    return counter


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_philox_gives_the_published_answers(counter, key, words):
    got = philox([torch.tensor(x) for x in counter], [torch.tensor(x) for x in key])
    assert [int(x) for x in got] == words


@pytest.fixture(params=["C++", "torch"])
def cpu(request, monkeypatch):
    """Both ways of the CPU."""
    if request.param == "torch":
        monkeypatch.setattr(_dropout_cpu, "library", lambda name: None)
    else:
        needs_cpp("dropout_cpu")


def dropped(p: float, x: torch.Tensor, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return dropout(x, p)


@pytest.mark.parametrize("dtype", (*COMPILED, torch.float64, torch.float16))
def test_it_drops_its_share_and_keeps_the_mean(dtype):
    p = 13107 / 2**16 if dtype in COMPILED and _dropout_cpu.library("dropout_cpu") else 0.2
    # 332,896 values: the share's standard deviation is 7e-4
    y = dropped(0.2, torch.ones(4, 8, 101, 103, dtype=dtype))
    assert y.dtype == dtype
    assert (y == 0).double().mean().item() == pytest.approx(0.2, abs=4e-3)
    assert torch.equal(y[y != 0].unique(), torch.tensor([1 / (1 - p)], dtype=dtype))


@pytest.mark.parametrize("count", [1, 63, 64, 1000])
@pytest.mark.parametrize("seed", [0, -5, 2**40 + 3])
@pytest.mark.parametrize("dtype", COMPILED)
def test_the_mask_is_philoxs(dtype, seed, count):
    needs_cpp("dropout_cpu")
    x = torch.randn(count).to(dtype)
    y = _dropout_cpu.drop(x, 0.3, torch.tensor(seed), torch.contiguous_format)
    run, lane = torch.meshgrid(torch.arange(-(-count // 64)), torch.arange(8), indexing="ij")
    zero = torch.zeros_like(run)
    key = [torch.tensor(part) for part in (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)]
    words = philox([run, zero, lane, zero], key)
    # in memory: two words of each lane, then the other two
    first, second = (words[i] | words[i + 1] << 32 for i in (0, 2))
    bits = (
        torch.stack([first, second], 1).flatten().view(torch.int16).long().flatten()[:count]
        & 0xFFFF
    )
    threshold = round(0.3 * 2**16)
    want = torch.where(bits >= threshold, x.float() * (2**16 / (2**16 - threshold)), 0.0).to(dtype)
    assert torch.equal(y, want)


def test_it_is_independent_from_value_to_value(cpu):
    kept = (dropped(0.3, torch.ones(2**18)) != 0).double() - 0.7
    for distance in (1, 2, 3, 4, 8, 64, 128):
        assert abs((kept[distance:] * kept[:-distance]).mean()) < 4 * 0.21 / 2**9


def test_it_follows_the_seed_and_not_the_threads(cpu):
    x, threads = torch.ones(2, 3, 35, 37), torch.get_num_threads()
    assert torch.equal(dropped(0.5, x), dropped(0.5, x))
    assert not torch.equal(dropped(0.5, x), dropped(0.5, x, seed=1))
    torch.manual_seed(0)
    assert not torch.equal(dropout(x, 0.5), dropout(x, 0.5))
    before = dropped(0.5, x)
    torch.set_num_threads(3)
    try:
        assert torch.equal(dropped(0.5, x), before)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_its_gradient_passes_where_the_value_passed(cpu, layout, of_gradient):
    x = torch.randn(2, 3, 5, 7).to(memory_format=layout).requires_grad_()
    y = dropped(0.5, x)
    assert y.is_contiguous(memory_format=layout)
    dy = torch.randn(2, 3, 5, 7).to(memory_format=of_gradient)
    (dx,) = torch.autograd.grad(y, x, dy)
    assert torch.equal(dx, (y != 0) * 2 * dy)


def test_no_mask_is_kept_for_the_backward(cpu):
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):
        dropped(0.5, torch.randn(2, 3, 5, 7).requires_grad_())
    assert saved == [1]


@pytest.mark.parametrize("p", [0.0, 1e-9, 1 - 1e-9, 1.0])
def test_it_has_its_limits(cpu, p):
    y = dropped(p, torch.ones(1000))
    assert torch.equal(y, torch.ones(1000)) if p < 0.5 else (y != 0).sum() <= 1


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_it_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="probability"):
        dropout(torch.ones(3), p)


def test_it_is_a_whole_citizen_of_torch(cpu):
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    torch.library.opcheck(torch.ops.dream.dropout_backward.default, (x, 0.5, torch.tensor(3), True))
    torch.compiler.reset()
    torch.manual_seed(0)
    compiled = torch.compile(lambda x: dropout(x, 0.5), fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, dropped(0.5, x))


def test_it_keeps_the_layout(cpu):
    x = torch.randn(2, 3, 5, 7).to(memory_format=torch.channels_last)
    for y in (dropped(0.5, x), dropped(0.5, x[..., ::2])):
        assert y.is_contiguous(memory_format=torch.channels_last)
    across = x.transpose(2, 3)
    y = dropped(0.5, across)
    assert torch.equal(y, torch.where(y == 0, 0.0, 2 * across))


def test_the_reference_is_torchs():
    x = torch.randn(100)
    with dream_kernels.backend("reference"):
        ours = dropped(0.5, x)
    torch.manual_seed(0)
    assert torch.equal(ours, torch.nn.functional.dropout(x, 0.5))
