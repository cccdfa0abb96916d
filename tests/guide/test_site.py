"""The pages build into a site with a search, without a broken link."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.guide.pages import ROOT

pytestmark = pytest.mark.skipif(
    not (ROOT / "docs" / "distributed.md").is_file(),
    reason="the pages on several processes and on TRL, which others link to, are not there yet",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [str(Path(sys.executable).parent / "mkdocs"), "build", "--strict", "-d", str(folder)]
    done = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_has_every_page_and_a_search_that_knows_them(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    known = {entry["location"].partition("#")[0] for entry in index["docs"]}
    pages = {path.stem for path in (ROOT / "docs").glob("*.md")}

    assert {f"{page}.html" for page in pages} <= {path.name for path in site.glob("*.html")}
    assert {f"{page}.html" for page in pages} <= known


def test_every_page_has_a_place_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")

    def listed(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry
        return [page for part in parts for page in listed(part)]  # type: ignore[attr-defined]

    pages = {path.name for path in (ROOT / "docs").glob("*.md")}
    assert set(listed(yaml.safe_load(navigation)["nav"])) == pages


def test_the_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    loaded = [part.partition('"')[0] for part in page.split('src="')[1:]]
    loaded += [
        part.partition(">")[0] for part in page.split("<link ")[1:] if 'rel="stylesheet"' in part
    ]
    assert loaded
    assert [one for one in loaded if "//" in one] == []
