"""The multi-node example: its manifest is valid, and its command trains, as two nodes do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.infra.servers import ROOT, free_port
from tests.training.runs import SCENARIOS

JOB = ROOT / "infra/multi_node/job.yaml"
BIN = Path(sys.executable).parent


def job() -> dict[str, Any]:
    documents = list(yaml.safe_load_all(JOB.read_text(encoding="utf-8")))
    (found,) = [one for one in documents if one["kind"] == "Job"]
    spec: dict[str, Any] = found["spec"]
    return spec


def command_of_node(rank: int, **changed: str) -> list[str]:
    """What Kubernetes starts in the pod of that index, `$(NAME)` filled in."""
    (container,) = job()["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value", "") for one in container["env"]}
    values |= {"JOB_COMPLETION_INDEX": str(rank), **changed}
    words = [*container["command"], *container["args"]]
    return [re.sub(r"\$\((\w+)\)", lambda found: values[found[1]], word) for word in words]


def test_the_manifest_follows_the_schemas_of_its_kinds() -> None:
    done = subprocess.run(
        [str(BIN / "kubernetes-validate"), "--strict", "--quiet", str(JOB)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_is_one_pod_a_node_and_one_process_a_gpu_and_all_see_one_volume() -> None:
    spec = job()
    (container,) = spec["template"]["spec"]["containers"]
    values = {one["name"]: one.get("value") for one in container["env"]}
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(values["NODES"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(values["GPUS_PER_NODE"])
    documents = {one["kind"]: one for one in yaml.safe_load_all(JOB.read_text("utf-8"))}
    claim = documents["PersistentVolumeClaim"]
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    service = documents["Service"]
    first = f"multi-node-training-0.{service['metadata']['name']}.stateset-agents.svc"
    assert values["MASTER_ADDR"] == first
    assert spec["template"]["spec"]["subdomain"] == service["metadata"]["name"]
    assert (ROOT / "infra/multi_node/train.py").is_file()
    assert "infra.multi_node.train" in container["args"]


@pytest.mark.slow
def test_its_command_trains_one_policy_on_two_nodes(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Both nodes are this machine, with one process each; then both go on from a checkpoint."""
    config = {
        "agent": {"max_new_tokens": 8, "temperature": 1.0, "torch_dtype": "float32"},
        "rewards": {"weights": {"rubric": 0, "helpfulness": 1, "conciseness": 1, "learned": 0}},
        "train": {
            "num_episodes": 8, "num_generations": 4, "gradient_accumulation_steps": 2,
            "use_lora": True, "bf16": False, "save_steps": 1, "logging_steps": 1,
        },
    }  # fmt: skip
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    lines = [json.dumps({"topic": "orders", "intent": "where", **one}) for one in SCENARIOS]
    (tmp_path / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")

    def run_both() -> list[str]:
        port, nodes = free_port(), []
        for rank in range(2):
            words = command_of_node(rank, MASTER_ADDR="127.0.0.1", GPUS_PER_NODE="1")
            changes = {
                "--master-port=29500": f"--master-port={port}",
                "params.yaml": str(tmp_path / "params.yaml"),
                "--base-model=/shared/base_model": f"--base-model={tiny_model_dir}",
                "--scenarios=/shared/validated/train.jsonl": (
                    f"--scenarios={tmp_path / 'train.jsonl'}"
                ),
                "--save=/shared/run": f"--save={tmp_path / 'run'}",
            }
            words = [changes.get(word, word) for word in words]
            nodes.append(
                subprocess.Popen(
                    [str(BIN / words[0]), *words[1:]], cwd=ROOT, text=True,
                    env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip
        told = [node.communicate(timeout=240)[0] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], "\n".join(told)
        return told

    told = run_both()
    assert sum("trained 4 steps" in one for one in told) == 1
    assert sum("trained 4 steps" in one for one in run_both()) == 1  # from the last checkpoint
    assert (tmp_path / "run/final/adapter_model.safetensors").is_file()
    assert (tmp_path / "run/step_4/state.json").is_file()
    assert len((tmp_path / "run/steps.jsonl").read_text().splitlines()) == 4
