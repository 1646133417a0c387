"""Routers of groups of experts, against the rule written out token by token."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from model.config_checks import ConfigError
from model.routing import shares
from model.routing_rule import Routing
from tests.engines import config_of

E, K, TOKENS = 12, 3, 40
V2 = Routing(groups=4, chosen_groups=2, scale=16.0)
V3 = Routing(score="sigmoid", bias=True, groups=4, chosen_groups=2, group_scores=2, scale=2.5)
K2 = Routing(score="sigmoid", bias=True, scale=2.827)


def by_hand(products: np.ndarray, bias: np.ndarray, rule: Routing, renormalise: bool) -> np.ndarray:
    """One token's shares, [E]."""
    if rule.score == "sigmoid":
        scores = 1 / (1 + np.exp(-products))
    else:
        scores = np.exp(products) / np.exp(products).sum()
    ranked = scores + bias * rule.bias
    size = E // rule.groups
    of_group = [
        sum(sorted(ranked[g * size : (g + 1) * size])[-rule.group_scores :])
        for g in range(rule.groups)
    ]
    groups = np.argsort(of_group)[-rule.chosen_groups :]
    allowed = [e for e in range(E) if e // size in groups]
    chosen = sorted(allowed, key=lambda e: ranked[e])[-K:]
    total = sum(scores[e] for e in chosen) if renormalise else 1.0
    return np.array([scores[e] / total * rule.scale if e in chosen else 0.0 for e in range(E)])


@pytest.mark.parametrize(("rule", "renormalise"), [(V2, False), (V3, True), (K2, True)])
def test_a_token_chooses_experts_of_its_best_groups_by_biased_scores(rule, renormalise):
    random = np.random.default_rng(0)
    products, bias = random.normal(size=(TOKENS, E)), random.normal(size=E) * 0.3
    given = jnp.asarray(bias, jnp.float32) if rule.bias else None
    found = shares(
        jnp.asarray(products, jnp.float32), given, rule, chosen=K, renormalise=renormalise
    )
    expected = np.array([by_hand(token, bias, rule, renormalise) for token in products])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    unbiased = np.array([by_hand(token, 0 * bias, rule, renormalise) for token in products])
    assert rule.bias == bool(np.abs(unbiased - expected).max() > 0.1)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Routing(groups=3), "groups is 3, which does not divide 8 experts"),
        (Routing(groups=4, chosen_groups=5), "chosen_groups is 5; it must be 1 to 4"),
        (Routing(groups=8, chosen_groups=1), "chosen_groups is 1, too few for 2 experts per token"),
        (Routing(groups=4, chosen_groups=2, group_scores=3), "group_scores is 3; groups have 2"),
    ],
)
def test_a_rule_that_its_experts_cannot_follow_is_refused(rule, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config_of("experts"), routing=rule)
