"""Short forms of the mutants of configs and weights, and every case that once failed."""

import pytest

from faults import configs, weights

PUBLISHED = ("x.safetensors", "x.pth", "old.pth")


@pytest.mark.parametrize("kind, n", [(configs, 60), (weights, 60)])
def test_no_mutant_is_worse_than_one_sentence(kind, n):
    tally = kind.run(n, seed=0)
    assert not tally.faults and sum(tally.verdicts.values()) == n and tally.verdicts["refused"] > 9


def test_other_values_are_a_fault_where_a_checksum_could_tell(tmp_path):
    other = {key: value + 1e-6 for key, value in weights.truth().items()}
    assert weights.judge(weights.truth, tmp_path / "trap", True) == "accepted"
    assert weights.judge(lambda: other, tmp_path / "trap", False) == "unchecked"
    with pytest.raises(AssertionError, match="other values"):
        weights.judge(lambda: other, tmp_path / "trap", True)


def test_the_unchanged_weights_are_accepted(tmp_path):
    weights.write_originals(tmp_path)
    loads = [lambda name=name: weights.load_published(tmp_path / name)[1] for name in PUBLISHED]
    loads += [
        lambda name=name: weights.load_model(tmp_path / name).network.state_dict()
        for name in ("model", "bare")
    ]
    assert {weights.judge(load, tmp_path / "trap", True) for load in loads} == {"accepted"}
