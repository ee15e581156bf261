"""Split of the parameters into trained and frozen ones."""

from ssd_jax.training.state import join_frozen, split_frozen


def test_join_frozen_inverts_split_frozen():
    params = {"base": {"conv1_1": 1, "conv1_2": 2}, "head": 3}
    trained, frozen = split_frozen(params, ("conv1_1",))
    assert trained == {"base": {"conv1_2": 2}, "head": 3}
    assert frozen == {"conv1_1": 1}
    assert join_frozen(trained, frozen) == params
