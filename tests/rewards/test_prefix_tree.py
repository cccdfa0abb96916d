import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stateset_agents.rewards.prefix_tree import pack_sequences

tokens = st.lists(st.integers(0, 3), min_size=1, max_size=8)
groups = st.lists(st.lists(tokens, min_size=1, max_size=3), min_size=1, max_size=8)


@given(groups, st.integers(8, 40))
def test_every_sequence_is_read_back_along_its_ancestors(
    given_groups: list[list[list[int]]], max_tokens: int
) -> None:
    packs = pack_sequences(given_groups, max_tokens)
    flat = [sequence for group in given_groups for sequence in group]
    found: dict[int, list[int]] = {}
    for pack in packs:
        visible = pack.attention_mask()[0, 0]
        for index, last in zip(pack.sequence_indices, pack.last_nodes.tolist(), strict=True):
            path = visible[last].nonzero().squeeze(-1)
            found[index] = pack.token_ids[path].tolist()
            assert pack.positions[path].tolist() == list(range(len(path)))
    assert [found[index] for index in range(len(flat))] == flat


@given(groups, st.integers(8, 40))
def test_a_group_stays_together_and_a_pack_within_its_size(
    given_groups: list[list[list[int]]], max_tokens: int
) -> None:
    packs = pack_sequences(given_groups, max_tokens)
    group_of = [number for number, group in enumerate(given_groups) for _ in group]
    homes = [{group_of[index] for index in pack.sequence_indices} for pack in packs]
    assert sum(len(home) for home in homes) == len(given_groups)
    for pack, home in zip(packs, homes, strict=True):
        assert len(pack.token_ids) <= max_tokens or len(home) == 1


def test_what_is_shared_is_there_once() -> None:
    prompt, first, second = [5, 6, 7, 8], [1, 2], [1, 3, 4]
    (pack,) = pack_sequences([[prompt + first, prompt + second], [prompt + first + [9]]], 64)
    assert len(pack.token_ids) == len(prompt) + 1 + 1 + 2 + 1
    assert pack.attention_mask().dtype == torch.bool


def test_no_sequences_are_no_packs() -> None:
    assert pack_sequences([], 64) == []


def test_masks_show_no_sibling() -> None:
    (pack,) = pack_sequences([[[1, 2], [1, 3]]], 64)
    assert pack.attention_mask()[0, 0].tolist() == [
        [True, False, False],
        [True, True, False],
        [True, False, True],
    ]


@pytest.mark.parametrize("max_tokens", [1, 3])
def test_a_group_larger_than_a_pack_gets_one_of_its_own(max_tokens: int) -> None:
    packs = pack_sequences([[[1, 2, 3, 4]], [[5, 6, 7, 8]]], max_tokens)
    assert [len(pack.token_ids) for pack in packs] == [4, 4]
