"""A helper runs the trials of a search that another process has begun, and no others."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from stateset_agents.core.environment import ConversationEnvironment
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.training.hpo.config import HPOConfig
from stateset_agents.training.hpo.join import join_search
from stateset_agents.training.hpo.search import Search, make_search, plan_again, read_summary
from stateset_agents.training.hpo.trial import TrialRunner
from stateset_agents.training.hpo.validation import given_validation
from tests.training.hpo.made import RATES, SCENARIOS, make_base
from tests.training.hpo.studies import MULTIPROCESSING
from tests.training.runs import LettersE, make_agent


def _search(folder: Path, storage: Path, *, begin: bool = True, **settings: object) -> Search:
    trained_on, validated_on = (ConversationEnvironment(part) for part in
                                (SCENARIOS[:4], SCENARIOS[4:]))  # fmt: skip
    config = HPOConfig(
        search_space=RATES, n_trials=3, sampler="random", confirm_top=1, confirm_seeds=1,
        storage=str(storage / "journal"), study_name="shared", **settings,
    )  # fmt: skip
    validation = given_validation(trained_on, validated_on, 1)
    runner = TrialRunner(make_agent(folder), trained_on, LettersE(), validation, make_base())
    return make_search(config, runner, begin=begin)


def _help(folder: Path, storage: Path) -> None:
    asyncio.run(join_search(_search(folder, storage, begin=False), idle_seconds=3.0))


def test_what_nobody_has_begun_or_is_another_search_is_not_joined(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"has no study 'shared' to join; it has none"):
        _search(tiny_model_dir, tmp_path, begin=False)
    _search(tiny_model_dir, tmp_path)
    with pytest.raises(ConfigurationError, match="is another search"):
        _search(tiny_model_dir, tmp_path, begin=False, seed=5)


def test_a_helper_runs_both_phases_and_adds_no_trial(tiny_model_dir: Path, tmp_path: Path) -> None:
    search = _search(tiny_model_dir, tmp_path)
    joined = _search(tiny_model_dir, tmp_path, begin=False)
    assert asyncio.run(join_search(joined, idle_seconds=0.1)) == 3
    plan_again(search)
    assert asyncio.run(join_search(joined, idle_seconds=0.1)) == 3  # base twice, the best once
    assert asyncio.run(join_search(joined, idle_seconds=0.1)) == 0
    summary = read_summary(search)
    assert [one.number for one in summary.trials] == [0, 1, 2]
    assert all(one.mean is not None for one in summary.confirmations)


@pytest.mark.slow
def test_two_helpers_share_a_study_and_no_trial_is_lost_or_repeated(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    alone = _search(tiny_model_dir, tmp_path / "alone")
    asyncio.run(join_search(alone, idle_seconds=0.1))
    shared = _search(tiny_model_dir, tmp_path / "shared")
    helpers = [
        MULTIPROCESSING.Process(target=_help, args=(tiny_model_dir, tmp_path / "shared"))
        for _ in range(2)
    ]
    for helper in helpers:
        helper.start()
    for helper in helpers:
        helper.join()
        assert helper.exitcode == 0
    records = [
        [replace(one, duration_seconds=0.0, measures={}) for one in search.open().records()]
        for search in (shared, alone)
    ]
    assert records[0] == records[1]
