"""Scaling a block changes numbers, and never what is called."""

from __future__ import annotations

import ast

from tests.guide.pages import PYTHON, pages, read_blocks
from tests.guide.scaling import SCALES, scaled


def without_scaled_keywords(tree: ast.Module) -> str:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            table = SCALES.get(node.func.id, {})
            node.keywords = [one for one in node.keywords if one.arg not in table]
    return ast.dump(tree)


def test_every_block_is_as_written_but_for_the_numbers_of_the_table() -> None:
    for page in pages():
        for block in read_blocks(page):
            if block.language in PYTHON:
                written = without_scaled_keywords(ast.parse(block.text))
                assert without_scaled_keywords(scaled(block.text)) == written, block.place


def test_a_number_is_lowered_added_where_it_is_missing_and_never_raised() -> None:
    assert ast.unparse(scaled("await train(agent, num_episodes=100)")) == (
        "await train(agent, num_episodes=4)"
    )
    assert ast.unparse(scaled("AgentConfig(model_name='gpt2')")) == (
        "AgentConfig(model_name='gpt2', max_new_tokens=6)"
    )
    assert ast.unparse(scaled("GSPOConfig(num_outer_iterations=1)")) == (
        "GSPOConfig(num_outer_iterations=1)"
    )
