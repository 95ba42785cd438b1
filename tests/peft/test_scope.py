"""Which heads compete with which."""

from __future__ import annotations

import pytest
import torch

from compress3g.core import Cut, Units
from compress3g.peft import LightPeftConfig, make_plan
from compress3g.peft.estimate import Scores

HEADS = [Units(n, 4, (Cut(n, "out", 8),), (Cut(n, "in", 8),)) for n in ("a", "b")]
SCORES = {"a": torch.tensor([1.0, 9.0, 2.0, 3.0]), "b": torch.tensor([8.0, 7.0, 6.0, 5.0])}
BEST_SIX = {"a": [1, 3], "b": [0, 1, 2, 3]}
THREE_EACH = {"a": [1, 2, 3], "b": [0, 1, 2]}


@pytest.mark.parametrize(
    ("config", "want"),
    [
        (LightPeftConfig(), BEST_SIX),
        (LightPeftConfig(criterion="taylor"), BEST_SIX),
        (LightPeftConfig(criterion="l1_mask"), THREE_EACH),
        (LightPeftConfig(criterion="flap"), THREE_EACH),
        (LightPeftConfig(criterion="flap", attn_scope="global"), BEST_SIX),
        (LightPeftConfig(attn_scope="layer"), THREE_EACH),
        (LightPeftConfig.paper(criterion="fisher"), THREE_EACH),
    ],
)
def test_heads_of_all_layers_compete_where_their_scores_compare(config, want):
    plan = make_plan(Scores({}, SCORES, {}, {}, 1), HEADS, config, ranking=SCORES)
    assert plan.keep == want
