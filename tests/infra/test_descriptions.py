"""What `infra/` describes is well-formed, complete, and holds no secret."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect.utilities.templating import apply_values

from tests.infra import compose
from tests.infra.servers import ROOT

BIN = Path(sys.executable).parent
DOCKERFILES = sorted((ROOT / "infra/docker").glob("*.Dockerfile"))
MANIFESTS = sorted((ROOT / "infra/kubernetes").glob("*.yaml"))


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=False)


def test_compose_follows_the_compose_specification() -> None:
    result = run(
        BIN / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", compose.COMPOSE
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_compose_brings_up_every_part_of_the_line() -> None:
    services = compose.load()["services"]
    assert set(services) == {
        "postgres", "object-store", "mlflow", "prefect", "buckets", "worker", "serving",
    }  # fmt: skip


def test_compose_publishes_ports_on_loopback_only() -> None:
    for name, service in compose.load()["services"].items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"


def test_an_unset_secret_stops_compose_with_its_name() -> None:
    with pytest.raises(KeyError, match="POSTGRES_PASSWORD"):
        compose.as_process(
            "mlflow", {"OBJECT_STORE_ACCESS_KEY": "a", "OBJECT_STORE_SECRET_KEY": "b"}, {}
        )


def test_every_variable_of_compose_is_in_the_example_environment() -> None:
    wanted = set(re.findall(r"\$\{(\w+):\?", compose.COMPOSE.read_text(encoding="utf-8")))
    example = (ROOT / "infra/env.example").read_text(encoding="utf-8")
    assert wanted == set(re.findall(r"^(\w+)=", example, flags=re.M))


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_passes_the_linter(dockerfile: Path) -> None:
    result = run(BIN / "hadolint", dockerfile)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_a_dockerfile_copies_what_exists_and_installs_extras_that_exist(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+)$", text, flags=re.M):
        *sources, _ = [word for word in shlex.split(line) if not word.startswith("--")]
        for source in sources:
            assert (ROOT / source).exists(), f"{dockerfile.name} copies {source}"
    extras = re.search(r'\.\[([\w,]+)\]"', text)
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(extras[1].split(",")) <= set(project["optional-dependencies"])


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_first_is_enough_to_build_the_package(
    dockerfile: Path, tmp_path: Path
) -> None:
    before_install = dockerfile.read_text(encoding="utf-8").partition("RUN pip install")[0]
    for line in re.findall(r"^COPY --chown=\S+ (.+) \S+$", before_install, flags=re.M):
        for source in line.split():
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / source)
            else:
                shutil.copy(ROOT / source, tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "out"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(list((tmp_path / "out").glob("stateset_agents-*.whl"))) == 1


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.name)
def test_a_kubernetes_manifest_follows_the_schema_of_its_kind(manifest: Path) -> None:
    if manifest.name == "kustomization.yaml":
        listed = yaml.safe_load(manifest.read_text(encoding="utf-8"))["resources"]
        assert sorted([*listed, manifest.name]) == [path.name for path in MANIFESTS]
        return
    result = run(BIN / "kubernetes-validate", "--strict", "--quiet", manifest)
    assert result.returncode == 0, result.stdout + result.stderr


def filled_in_gpu_job() -> dict[str, Any]:
    """The job that Prefect would send to Kubernetes, made by Prefect's own templating."""
    template = json.loads((ROOT / "infra/kubernetes/work-pool-gpu.json").read_text("utf-8"))
    defaults = {
        name: field["default"]
        for name, field in template["variables"]["properties"].items()
        if "default" in field
    }
    values = {**defaults, "command": ["prefect", "flow-run", "execute"], "env": []}
    job: dict[str, Any] = apply_values(template["job_configuration"]["job_manifest"], values)
    return job


def test_the_gpu_work_pool_makes_a_valid_job_with_a_gpu(tmp_path: Path) -> None:
    job = filled_in_gpu_job()
    pod = job["spec"]["template"]["spec"]
    # Prefect's Kubernetes worker refuses a template without these, by these names and values,
    # although the first two are no fields of a pod: Kubernetes leaves them out.
    assert (pod.pop("completions"), pod.pop("parallelism")) == (1, 1)
    assert (pod["restartPolicy"], pod["containers"][0]["name"]) == ("Never", "prefect-job")
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    file = tmp_path / "job.json"
    file.write_text(json.dumps(job), encoding="utf-8")
    result = run(BIN / "kubernetes-validate", "--strict", "--quiet", file)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_gpu_work_pool_uses_only_variables_that_it_declares() -> None:
    template = json.loads((ROOT / "infra/kubernetes/work-pool-gpu.json").read_text("utf-8"))
    used = set(re.findall(r"\{\{ (\w+) \}\}", json.dumps(template["job_configuration"])))
    assert used == set(template["variables"]["properties"])


_LITERAL = re.compile(
    r"(?i)(password|secret|token|api[_-]?key|access[_-]?key)\w*[\"']?\s*[:=]\s*[\"']?"
    r"(?P<value>[^\s\"',}{]+)"
)


def literal_secrets(text: str) -> list[str]:
    """Lines that give something secret a value, other than from the environment."""
    found = []
    for line in text.splitlines():
        code = re.sub(r"\$\{[^}]*\}|secretKeyRef: \{[^}]*\}", "", line)
        if not line.lstrip().startswith(("#", "//")) and _LITERAL.search(code):
            found.append(line.strip())
    return found


@pytest.mark.parametrize(
    "line",
    [
        "POSTGRES_PASSWORD: hunter2",
        'api_key = "sk-123"',
        "AWS_SECRET_ACCESS_KEY=abc/def",
        "token: x",
    ],
)
def test_a_secret_with_a_value_would_be_found(line: str) -> None:
    assert literal_secrets(line) == [line]


def test_no_file_of_infra_holds_a_secret() -> None:
    for path in sorted((ROOT / "infra").rglob("*")):
        if path.is_dir() or "__pycache__" in path.parts or path.name == ".env":
            continue
        assert literal_secrets(path.read_text(encoding="utf-8")) == [], path
