"""params.yaml: what is accepted, and how what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from stateset_agents import run_config
from stateset_agents.exceptions import ConfigurationError
from stateset_agents.run_config import RunConfig
from stateset_agents.training.config import TrainingConfig

ROOT = Path(__file__).parents[1]


def _problems(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigurationError) as caught:
        run_config.load(path)
    return tuple(p.removeprefix(f"{path}, ") for p in caught.value.problems)


def test_every_parameter_file_that_is_shipped_loads() -> None:
    shipped = [ROOT / "params.yaml", *(ROOT / "examples").rglob("*.yaml")]
    for path in shipped:
        run_config.load(path)


def test_params_yaml_names_every_section_that_a_step_reads() -> None:
    sections = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    steps = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"].values()
    read = {section for step in steps for section in step.get("params", [])}
    assert read <= set(sections)


def test_the_starter_file_holds_every_parameter_and_names_the_default_it_leaves(
    tmp_path: Path,
) -> None:
    path = tmp_path / "config.yaml"
    run_config.write_starter(path)
    assert run_config.load(path) == run_config.starter()
    text = path.read_text(encoding="utf-8")
    assert '  # Default: ["data/scenarios"]\n  sources: ["builtin:customer_service"]\n' in text
    assert "  # Default: 1000\n  num_episodes: 32\n" in text
    # what is not called another than the default is the default
    lines = text.splitlines()
    others = sum(line.lstrip().startswith("# Default:") for line in lines)
    written = run_config.starter().model_dump(mode="json")
    usual = RunConfig().model_dump(mode="json")
    differing = [
        (section, key)
        for section, values in usual.items()
        for key, value in values.items()
        if not isinstance(value, dict) and written[section][key] != value
    ]
    weights = usual["rewards"]["weights"]
    differing += [
        ("weights", key) for key in weights if written["rewards"]["weights"][key] != weights[key]
    ]
    assert others == len(differing) > 0
    written = yaml.safe_load(text)
    assert set(written) == set(RunConfig.model_fields)
    assert set(written["train"]) == set(TrainingConfig.model_fields)


def test_a_starter_file_begins_each_section_with_what_it_is_about(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    run_config.write_starter(path)
    written = yaml.safe_load(path.read_text())  # in the order of the file
    assert list(written) == list(run_config.RunConfig.model_fields)
    first = {name: next(iter(section)) for name, section in written.items()}
    assert first["train"] == "algorithm"
    assert first["scenarios"] == "sources"
    assert first["rewards"] == "weights"
    # when a run is looked at is what the section inherits, and comes last of the two
    order = list(written["train"])
    assert order.index("learning_rate") < order.index("save_steps")


def test_a_starter_file_replaces_another_only_when_told_to(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(ConfigurationError, match="is there already"):
        run_config.write_starter(path)
    assert path.read_text(encoding="utf-8") == "mine"
    run_config.write_starter(path, replace=True)
    assert run_config.load(path) == run_config.starter()


def test_an_exponent_without_a_dot_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("train: {learning_rate: 3e-4}\n", encoding="utf-8")
    assert run_config.load(path).train.learning_rate == 0.0003


def test_all_problems_are_told_at_once_with_line_key_found_and_allowed(tmp_path: Path) -> None:
    problems = _problems(
        tmp_path,
        "train:\n"
        "  learning_rte: 1\n"
        "  num_episodes: lots\n"
        "  use_lora: 1\n"
        "  lora_target_modules: 3\n"
        "evalute: {}\n"
        "evaluate:\n"
        "  cluster: word\n",
    )
    assert "line 3: train.num_episodes: found 'lots' (text), allowed: a valid integer" in problems
    assert "line 4: train.use_lora: found 1 (a whole number), allowed: a valid boolean" in problems
    assert (
        "line 5: train.lora_target_modules: found 3 (a whole number), "
        "allowed: a valid array, or 'all-linear'" in problems
    )
    assert (
        "line 8: evaluate.cluster: found 'word' (text), allowed: 'scenario' or 'intent'" in problems
    )
    unknown = [problem for problem in problems if "unknown key" in problem]
    assert unknown[0].startswith(
        "line 2: train.learning_rte: unknown key; did you mean `learning_rate`? allowed: "
    )
    assert " algorithm, seed, " in unknown[0]
    assert unknown[1].startswith("line 6: evalute: unknown key; did you mean `evaluate`?")
    assert len(problems) == 6


def test_a_number_in_quotes_is_text_and_not_a_number(tmp_path: Path) -> None:
    assert _problems(tmp_path, "train: {seed: '5'}\n") == (
        "line 1: train.seed: found '5' (text), allowed: a valid integer",
    )


def test_a_key_that_is_there_twice_is_refused_with_both_lines(tmp_path: Path) -> None:
    assert _problems(tmp_path, "train:\n  seed: 1\n  seed: 2\ntrain: {}\n") == (
        "line 3: train.seed: this key is there twice, first in line 2",
        "line 4: train: this key is there twice, first in line 1",
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("train: [\n", "not valid YAML: line 2, column 1"),
        ("- train\n", "found a list, allowed: sections"),
        ("train: {learning_rate: .inf}\n", "found inf, allowed: a finite number"),
        ("train: {learning_rate: .nan}\n", "found nan, allowed: a finite number"),
    ],
)
def test_what_is_no_mapping_of_numbers_and_words_is_refused(
    tmp_path: Path, text: str, told: str
) -> None:
    (problem,) = _problems(tmp_path, text)
    assert told in problem


def test_a_file_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no such file; give the path"):
        run_config.load(tmp_path / "absent.yaml")


def test_a_setting_that_python_gives_wrongly_is_the_same_error() -> None:
    with pytest.raises(ConfigurationError, match="num_episodes: found 0"):
        TrainingConfig(num_episodes=0)
    config = TrainingConfig()
    with pytest.raises(ConfigurationError, match="num_episodes: found 0"):
        config.num_episodes = 0
    assert json.loads(config.model_dump_json())["num_episodes"] == 1000
