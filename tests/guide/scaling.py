"""Sizes: what the tests run smaller than a page writes it.

Owns the table, and how it is applied: to the numbers that a call is given by keyword, and to
nothing else. What is called, with which keywords and in which order, is the page's;
`test_scaling.py` holds that.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping

# Callee -> keyword -> the most it may be. Where the page leaves the keyword out, its default is far
# too large for a test, so it is given.
SCALES: Mapping[str, Mapping[str, int]] = {
    "AgentConfig": {"max_new_tokens": 6},
    "train": {"num_episodes": 4},
    "TrainingConfig": {"num_episodes": 32, "num_generations": 4},
    "GSPOConfig": {"num_outer_iterations": 2},
    "quick_hpo": {
        "n_trials": 2,
        "confirm_top": 1,
        "confirm_seeds": 1,
        "episodes_per_trial": 4,
    },
    "ValueFunction": {"hidden_size": 64},  # of tests/guide/models.py
}

# Within these calls nothing is scaled: they play no episodes, and refuse a number of them.
AS_WRITTEN = frozenset({"TRLDPOTrainerWrapper", "TRLRewardTrainerWrapper"})


class _Scaler(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        callee = node.func
        name = callee.id if isinstance(callee, ast.Name) else ""
        if name in AS_WRITTEN:
            return node
        self.generic_visit(node)
        for keyword, most in SCALES.get(name, {}).items():
            given = next((one for one in node.keywords if one.arg == keyword), None)
            if given is None:
                node.keywords.append(ast.keyword(keyword, ast.Constant(most)))
            elif not _is_at_most(given.value, most):
                given.value = ast.Constant(most)
        return node


def _is_at_most(value: ast.expr, most: int) -> bool:
    return isinstance(value, ast.Constant) and isinstance(value.value, int) and value.value <= most


def scaled(source: str) -> ast.Module:
    """The block, parsed, with its sizes held to the table."""
    tree = ast.parse(source)
    return ast.fix_missing_locations(_Scaler().visit(tree))
