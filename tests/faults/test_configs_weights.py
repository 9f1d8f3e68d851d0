"""Short forms of the mutants of configs and weights, and every case that once failed."""

import pytest

from faults import configs, weights


@pytest.mark.parametrize("kind, n", [(configs, 60), (weights, 60)])
def test_no_mutant_is_worse_than_one_sentence(kind, n):
    tally = kind.run(n, seed=0)
    assert not tally.faults and sum(tally.verdicts.values()) == n and tally.verdicts["refused"] > 9


def test_the_unchanged_weights_are_accepted(tmp_path):
    weights.write_originals(tmp_path)
    want = weights.load_model(tmp_path / "model").network.state_dict()
    for name in ("x.safetensors", "x.pth", "old.pth"):
        assert weights.load_published(tmp_path / name)[1].keys() == want.keys()
