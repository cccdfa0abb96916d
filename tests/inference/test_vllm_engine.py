"""`VLLMEngine` against transformers, where vLLM is installed in an environment of its own.

The environment variable STATESET_VLLM_PYTHON names that environment's interpreter. It runs
`vllm_session.py` once, on the tiny model in float32, and writes down what the engine answered; the
tests here compare. `docs/engines.md` says how to set the environment up.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from stateset_agents.exceptions import ConfigurationError
from stateset_agents.inference.loading import load_model, load_tokenizer
from stateset_agents.inference.weight_files import WeightFiles
from tests.inference.vllm_session import BLOCK, CUTS
from tests.tiny_model import make_tiny_model

ROOT = Path(__file__).parents[2]
PYTHON = os.environ.get("STATESET_VLLM_PYTHON")
needs_vllm = pytest.mark.skipif(
    PYTHON is None, reason="STATESET_VLLM_PYTHON names no interpreter that has vLLM"
)
pytestmark = pytest.mark.timeout(900)  # vLLM's processes start slowly, the more so in company
Answer = dict[str, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with heads of 32, the fewest that vLLM's attention takes on a CPU."""
    return make_tiny_model(tmp_path_factory.mktemp("vllm") / "model", hidden=128)


@pytest.fixture(scope="module")
def report(folder: Path) -> dict[str, Any]:
    """What one session answered."""
    assert PYTHON is not None
    settings = {
        "PYTHONPATH": str(ROOT / "components"),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "0",
        "OMP_NUM_THREADS": "1",
    }
    output = folder.parent / "report.json"
    script = ROOT / "tests" / "inference" / "vllm_session.py"
    done = subprocess.run(
        [PYTHON, str(script), str(folder), str(output)],
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    outcome: dict[str, Any] = json.loads(output.read_text())
    return outcome


@pytest.fixture(scope="module")
def reference(folder: Path) -> Any:
    return load_model(folder, dtype="float32")


def logprobs_of(model: Any, answer: Answer, temperature: float = 1.0) -> list[float]:
    """From one plain pass over prompt and answer, with transformers' own attention."""
    prompt, sampled = answer["prompt"], answer["token_ids"]
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *sampled]])).logits[0]
    logprobs = torch.log_softmax(logits[len(prompt) - 1 : -1].double() / temperature, dim=-1)
    picked: list[float] = logprobs.gather(1, torch.tensor(sampled)[:, None])[:, 0].tolist()
    return picked


def greedy_of(model: Any, answer: Answer) -> list[int]:
    prompt = torch.tensor([answer["prompt"]])
    with torch.no_grad():
        whole = model.generate(prompt, max_new_tokens=24, do_sample=False)
    tokens: list[int] = whole[0, prompt.shape[1] :].tolist()
    return tokens


def tokens_of(answers: Sequence[Answer]) -> list[list[int]]:
    return [answer["token_ids"] for answer in answers]


def assert_close(one: Sequence[float], other: Sequence[float]) -> None:
    torch.testing.assert_close(torch.tensor(one), torch.tensor(other), atol=2e-4, rtol=1e-4)


def changed(model: Any, **factors: float) -> Any:
    """A copy of the model, layer 0's queries and everything else multiplied."""
    copy = type(model)(model.config).eval()
    copy.load_state_dict(model.state_dict())
    with torch.no_grad():
        for name, value in copy.named_parameters():
            is_query = name.endswith("layers.0.self_attn.q_proj.weight")
            value.mul_(factors["queries"] if is_query else factors["others"])
    return copy


@needs_vllm
def test_greedy_answers_are_those_of_transformers(report: dict[str, Any], reference: Any) -> None:
    for answer in report["sampling"]["greedy"]:
        assert answer["token_ids"] == greedy_of(reference, answer)
        assert_close(answer["logprobs"], logprobs_of(reference, answer))
    assert report["max_context_tokens"] == 256


@needs_vllm
def test_log_probs_are_those_of_a_plain_pass_at_the_requests_temperature(
    report: dict[str, Any], reference: Any
) -> None:
    for answer in report["sampling"]["sampled"]:
        assert_close(answer["logprobs"], logprobs_of(reference, answer, 0.7))


@needs_vllm
def test_log_probs_are_those_from_before_top_k_top_p_and_penalty_cut(
    report: dict[str, Any], reference: Any
) -> None:
    answers = report["sampling"]["cut"]
    assert len(answers) == 2 * len(CUTS)
    for number, answer in enumerate(answers):
        temperature = 0.7 if number < len(CUTS) else 1.0  # greedy answers report those of 1
        assert_close(answer["logprobs"], logprobs_of(reference, answer, temperature))


@needs_vllm
def test_a_seed_repeats_its_answer_alone_or_in_company_and_another_does_not(
    report: dict[str, Any],
) -> None:
    sampling = report["sampling"]
    assert tokens_of(sampling["again"]) == tokens_of(sampling["sampled"])
    assert tokens_of(sampling["alone"]) == tokens_of(sampling["sampled"])
    for one, other in zip(sampling["sampled"], sampling["other"], strict=True):
        assert one["token_ids"] != other["token_ids"]


@needs_vllm
def test_an_answer_ends_at_a_stop_token_and_includes_it(
    report: dict[str, Any], folder: Path
) -> None:
    stops = load_tokenizer(folder).stop_token_ids
    answers = report["sampling"]["long"]
    assert {answer["reason"] for answer in answers} >= {"stop"}
    for answer in answers:
        ends = [place for place, token in enumerate(answer["token_ids"]) if token in stops]
        assert len(answer["logprobs"]) == len(answer["token_ids"])
        if answer["reason"] == "stop":
            assert ends == [len(answer["token_ids"]) - 1]
        else:
            assert (ends, len(answer["token_ids"])) == ([], 200)


@needs_vllm
def test_a_request_that_cannot_be_answered_is_refused_and_fails_no_other(
    report: dict[str, Any],
) -> None:
    good, long, empty, strange, cold = report["sampling"]["refused"]
    assert good["token_ids"] == report["sampling"]["greedy"][0]["token_ids"]
    assert long["error"].startswith("ContextLengthError: A prompt of 237 tokens and")
    assert "EngineError: The request makes no sense: the prompt is empty" in empty["error"]
    assert "token 480, and the model's are 0 to 479" in strange["error"]
    assert "temperature is 0.005, must be 0 (greedy) or at least 0.01" in cold["error"]


@needs_vllm
def test_the_prefix_cache_has_what_was_told_before_until_weights_change(
    report: dict[str, Any],
) -> None:
    caching = report["caching"]
    assert caching["new"] == 0
    assert caching["second"] == caching["told"] // BLOCK * BLOCK > 0
    assert caching["after_update"] == 0


@needs_vllm
def test_pushed_weights_answer_as_a_model_that_has_them(
    report: dict[str, Any], reference: Any
) -> None:
    weights = report["weights"]
    for given, factors in (
        ("one_changed", {"queries": 3.0, "others": 1.0}),
        ("all_changed", {"queries": 3.0, "others": 1.1}),  # what was pushed before stays
        ("restored", {"queries": 1.0, "others": 1.0}),
    ):
        model = changed(reference, **factors)
        for answer in weights[given]:
            assert answer["token_ids"] == greedy_of(model, answer), given
            assert_close(answer["logprobs"], logprobs_of(model, answer))
    assert tokens_of(weights["one_changed"]) != tokens_of(weights["restored"])
    assert tokens_of(weights["under_way"]) == tokens_of(weights["restored"])


@needs_vllm
def test_weights_that_do_not_fit_are_refused_whole(report: dict[str, Any]) -> None:
    weights = report["weights"]
    assert "none was replaced: 'nonsense' is not a parameter" in weights["unknown"]
    assert "has shape (127, 128); the model's is (128, 128)" in weights["shape"]
    assert tokens_of(weights["after_refusal"]) == tokens_of(report["sampling"]["greedy"])


@needs_vllm
def test_weights_that_are_not_finite_fail_the_answers(report: dict[str, Any]) -> None:
    for answer in report["weights"]["not_finite"]:
        assert answer["error"].startswith("EngineError: The model's logits are not finite")


@needs_vllm
def test_who_leaves_disturbs_no_one_and_closing_fails_who_waits(report: dict[str, Any]) -> None:
    leaving = report["leaving"]
    assert leaving["left"]
    assert leaving["disturbed"] == leaving["calm"]
    waiting, late = leaving["closed"]
    assert waiting == "EngineError: The engine was closed while a request waited."
    assert late.startswith("EngineError: The engine is closed")


@needs_vllm
def test_an_answer_whose_listener_has_heard_enough_is_not_sampled_to_its_end(
    report: dict[str, Any],
) -> None:
    assert report["leaving"]["ended"] == ["enough after 3", "all 60"]


@needs_vllm
def test_one_set_of_written_weights_is_kept_and_none_after_closing(report: dict[str, Any]) -> None:
    assert report["weights"]["files"] == ["model.safetensors"]
    assert report["files_left"] == 0


def test_without_vllm_the_message_names_the_extra(folder: Path) -> None:
    # `None` in the place of a module is what Python itself keeps for one that cannot be imported.
    code = (
        "import sys; sys.modules['vllm'] = None\n"
        "from stateset_agents.inference.vllm_engine import VLLMEngine\n"
        f"VLLMEngine({str(folder)!r})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert ConfigurationError.__name__ in done.stderr
    assert "pip install 'stateset-agents[vllm]'" in done.stderr


def test_newer_weights_are_written_with_the_older_ones_of_the_other_names(
    folder: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    old = load_file(folder / "model.safetensors")
    first, second, *_ = sorted(old)
    files = WeightFiles(folder, tmp_path)
    assert files.shapes == {name: tuple(value.shape) for name, value in old.items()}
    # A slice of something larger, as a policy that packs its weights would hand over.
    both = torch.stack((old[first] * 2, old[first]))
    files.write([(first, both[0])])
    written = files.write([(second, old[second] * 3)])
    new = load_file(written / "model.safetensors")
    assert list(tmp_path.iterdir()) == [written]
    for name, value in old.items():
        torch.testing.assert_close(new[name], value * {first: 2, second: 3}.get(name, 1))
    files.delete()
    files.delete()
    assert list(tmp_path.iterdir()) == []
