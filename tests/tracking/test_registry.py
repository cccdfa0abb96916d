"""A registered version loads alone and knows where it came from."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from stateset_agents.exceptions import RegistryError
from stateset_agents.tracking.config import TrackingConfig
from stateset_agents.tracking.merging import merge_adapter
from stateset_agents.tracking.mlflow_run import open_client, run_tags, start_run
from stateset_agents.tracking.registry import (
    champion_version,
    describe_lineage,
    download_version,
    find_version,
    generation_settings,
    register_version,
)

GENERATION = {"system_prompt": "Be kind.", "temperature": 0.0, "max_new_tokens": 6}

# The package must not be there: a version is used by people who do not have it.
_ELSEWHERE = """
import json, sys
sys.modules["stateset_agents"] = None
import mlflow
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/support-agent@champion")
request = {"messages": [{"role": "user", "content": "Where is my parcel?"}]}
stopped = {**request, "stop": [" "], "max_tokens": 20}
sampled = {**request, "temperature": 1.0, "seed": 7, "max_tokens": 12}
print(json.dumps(model.predict([request, stopped, sampled, sampled])))
"""


def _greedy(folder: Path, messages: list[dict[str, str]], tokens: int) -> tuple[str, int]:
    """The answer and the prompt's length, by transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(folder)
    output = model.generate(
        **prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
    )
    length = int(prompt["input_ids"].shape[1])
    return tokenizer.decode(output[0, length:], skip_special_tokens=True), length


def test_a_version_answers_chat_messages_where_this_package_is_not_installed(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with start_run(tracking, "register") as run:
        version = register_version(tracking, run, tiny_model_dir, generation=GENERATION)
    run.client.set_registered_model_alias(version.name, "champion", version.version)
    done = subprocess.run(
        [sys.executable, "-c", _ELSEWHERE, tracking.tracking_uri],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    plain, stopped, one, two = json.loads(done.stdout.splitlines()[-1])
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Where is my parcel?"},
    ]
    answer, prompt_length = _greedy(tiny_model_dir, messages, 6)
    assert plain["choices"][0]["message"] == {"role": "assistant", "content": answer}
    assert plain["usage"]["prompt_tokens"] == prompt_length
    assert plain["model"] == "support-agent"
    assert stopped["choices"][0]["message"]["content"].count(" ") == 0
    assert one["choices"] == two["choices"]


def test_a_version_is_whole_and_free_of_pickles_and_of_this_machines_package_builds(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with start_run(tracking, "register") as run:
        register_version(tracking, run, tiny_model_dir, generation=GENERATION)
    files = [path for path in (tmp_path / "mlartifacts").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".bin", ".pt")]
    (requirements,) = [path for path in files if path.name == "requirements.txt"]
    lines = requirements.read_text().split()
    assert {line.partition("==")[0] for line in lines} >= {"mlflow", "torch", "transformers"}
    assert "+" not in "".join(lines)


def test_a_version_comes_back_by_alias_or_number(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    assert champion_version(tracking) is None
    with start_run(tracking, "register") as run:
        version = register_version(tracking, run, tiny_model_dir, generation=GENERATION)
    assert (version.version, version.aliases) == ("1", ("challenger",))
    assert champion_version(tracking) is None
    run.client.set_registered_model_alias(version.name, "champion", "1")
    assert champion_version(tracking) == "1"
    folder = tmp_path / "served"
    assert download_version(tracking, "models:/support-agent@champion", folder).version == "1"
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (tiny_model_dir / weights).read_bytes()
    assert generation_settings(folder) == GENERATION
    with pytest.raises(RegistryError, match=r"support-agent/2: no such version .* are: 1$"):
        find_version(tracking, "models:/support-agent/2")
    with pytest.raises(RegistryError, match="nothing is registered yet: run `make retrain`"):
        find_version(tracking, "models:/other@champion")
    with pytest.raises(RegistryError, match="names no version; allowed"):
        find_version(tracking, "support-agent")


def test_lineage_leads_from_a_version_to_its_runs_code_and_data(
    tracking: TrackingConfig, tiny_model_dir: Path
) -> None:
    with start_run(tracking, "train_policy", {"git.revision": "abc"}, params={"seed": 5}) as train:
        pass
    tags = {
        "git.revision": "abc",
        "git.dirty": "false",
        "data.scenarios.sha256": "123",
        "data.scenarios.path": "data/a.b",
        "evaluation.reward.challenger": "0.5",
        "run.train": train.run_id,
        "run.evaluate": "0" * 32,
    }
    with start_run(tracking, "register_model") as run:
        register_version(tracking, run, tiny_model_dir, tags=tags)
    lineage = describe_lineage(tracking, "models:/support-agent@challenger")
    assert lineage["code"] == {"revision": "abc", "dirty": "false"}
    assert lineage["data"] == {"scenarios": {"sha256": "123", "path": "data/a.b"}}
    assert lineage["evaluation"] == {"reward.challenger": "0.5"}
    assert lineage["runs"]["train"]["params"] == {"seed": "5"}
    assert lineage["runs"]["train"]["tags"] == {"git.revision": "abc"}
    assert lineage["runs"]["evaluate"] == {"id": "0" * 32}
    assert lineage["runs"]["register"]["name"] == "register_model"


def test_a_store_that_breaks_is_no_run_that_is_gone(
    tracking: TrackingConfig, tmp_path: Path
) -> None:
    client = open_client(tracking)
    client.create_registered_model("support-agent")
    client.create_model_version("support-agent", source="s3://nowhere/m", run_id="0" * 32)
    lineage = describe_lineage(tracking, "models:/support-agent/1")
    assert lineage["runs"] == {"register": {"id": "0" * 32}}
    assert run_tags(tracking, "0" * 32) == {}
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database, database:
        database.execute("ALTER TABLE runs RENAME TO moved")
    with pytest.raises(RegistryError, match="cannot read the run 0000"):
        describe_lineage(tracking, "models:/support-agent/1")
    with pytest.raises(RegistryError, match="cannot read the run 0000"):
        run_tags(tracking, "0" * 32)


def test_a_model_that_cannot_answer_is_not_registered(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(tiny_model_dir, tmp_path / "broken")
    (broken / "chat_template.jinja").write_text("{{ raise_exception('no') }}")
    with start_run(tracking, "register") as run, pytest.raises(Exception, match="no"):
        register_version(tracking, run, broken)
    with start_run(tracking, "register") as run, pytest.raises(RegistryError, match="no policy to"):
        register_version(tracking, run, tmp_path / "absent")
    assert run.client.search_registered_models() == []


@pytest.fixture
def adapter(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A LoRA adapter of PEFT, with both factors drawn at random."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = get_peft_model(
            AutoModelForCausalLM.from_pretrained(tiny_model_dir),
            LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
        )
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_is_merged_as_peft_merges_it(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    merge_adapter(adapter, tiny_model_dir, tmp_path / "merged")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").state_dict()
    torch.testing.assert_close(found, dict(expected), rtol=1e-6, atol=1e-7)
    changed = AutoModelForCausalLM.from_pretrained(tiny_model_dir).state_dict()
    assert [name for name in found if not torch.equal(found[name], changed[name])] == [
        name for name in found if "q_proj" in name or "down_proj" in name
    ]


def test_an_adapter_is_registered_as_a_whole_model(
    adapter: Path, tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with start_run(tracking, "register") as run:
        register_version(tracking, run, adapter, base_model=tiny_model_dir)
    download_version(tracking, "models:/support-agent@challenger", tmp_path / "served")
    names = {path.name for path in (tmp_path / "served").iterdir()}
    assert {"model.safetensors", "tokenizer.json"} <= names
    assert not [name for name in names if name.startswith("adapter")]


def test_an_adapter_of_another_kind_or_of_another_base_is_refused(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    other = shutil.copytree(tiny_model_dir, tmp_path / "other")
    from safetensors.torch import load_file, save_file

    weights = load_file(other / "model.safetensors")
    renamed = {name.replace("q_proj", "query"): tensor for name, tensor in weights.items()}
    save_file(renamed, other / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RegistryError, match=r"does not belong to .*q_proj"):
        merge_adapter(adapter, other, tmp_path / "merged")
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "use_dora": True}))
    with pytest.raises(RegistryError, match=r"only plain LoRA adapters are merged.*use_dora"):
        merge_adapter(adapter, tiny_model_dir, tmp_path / "merged2")


def test_a_damaged_adapter_is_told_by_its_file(
    adapter: Path, tiny_model_dir: Path, tmp_path: Path
) -> None:
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(RegistryError, match=r"adapter_model\.safetensors cannot be read: .*again"):
        merge_adapter(adapter, tiny_model_dir, tmp_path / "merged")
