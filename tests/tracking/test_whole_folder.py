"""Wherever the process that replaces a folder is killed, the old one or the new one is found."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stateset_agents.tracking.whole_folder import (
    in_place_of,
    put_all_back,
    put_back,
    swap_at_once,
    swap_in_two_renames,
    take_place,
)

# Replaces a folder of two files again and again in a child process, which kills itself at the first
# event (a file opened, renamed, removed, a folder made or removed), then at the second, and so on
# until it comes to its end. Prints at how many events it died, and what a reader then found.
KILLED_AT_EVERY_EVENT = """
import itertools, json, os, shutil, signal, sys
from pathlib import Path
from stateset_agents.tracking import whole_folder

how, target = sys.argv[1], Path(sys.argv[2]) / "policy"

def write(folder, text):
    for name in ("a", "b"):
        (folder / name).write_text(text)

def replace():
    if how == "in_place_of":
        with whole_folder.in_place_of(target) as new:
            write(new, "new")
        return
    new = target.with_name("new")
    new.mkdir()
    write(new, "new")
    whole_folder.swap_in_two_renames(new, target)

def die_at(number):
    events = itertools.count()
    def hook(event, arguments):
        if event.startswith(("open", "os.", "shutil.")) and next(events) == number:
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

found, away = [], 0
for number in itertools.count():
    shutil.rmtree(target.parent)
    target.mkdir(parents=True)
    write(target, "old")
    child = os.fork()
    if child == 0:
        die_at(number)
        replace()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    away += not target.exists()
    whole_folder.put_back(target)
    found.append(sorted(path.name + path.read_text() for path in target.iterdir()))
    if status == 0:
        break
print(json.dumps([found, away]))
"""
OLD, NEW = ["aold", "bold"], ["anew", "bnew"]


def killed_at_every_event(how: str, folder: Path) -> tuple[list[list[str]], int]:
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AT_EVERY_EVENT, how, str(folder / "work")],
        capture_output=True,
        text=True,
        check=True,
    )
    found, away = json.loads(done.stdout)
    return found, away


def folder_with(path: Path, text: str) -> Path:
    path.mkdir()
    (path / "file").write_text(text)
    return path


@pytest.mark.parametrize("how", ["in_place_of", "two renames"])
def test_killed_at_any_point_of_a_swap_the_old_or_the_new_folder_is_found_whole(
    tmp_path: Path, how: str
) -> None:
    (tmp_path / "work").mkdir()
    found, away = killed_at_every_event(how, tmp_path)
    # first the old one, from some point on the new one, and nothing else
    turn = found.index(NEW)
    assert 4 < turn < len(found) - 1
    assert found == [OLD] * turn + [NEW] * (len(found) - turn)
    if how == "two renames":
        assert away == 1  # killed between them, and put back
    elif sys.platform == "linux":
        assert away == 0  # nobody ever looked and found nothing


def test_folders_change_names_at_once_on_linux(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux swaps two names in one step")
    one, other = folder_with(tmp_path / "one", "1"), folder_with(tmp_path / "other", "2")
    assert swap_at_once(one, other)
    assert (one / "file").read_text() == "2"
    assert (other / "file").read_text() == "1"
    with pytest.raises(FileNotFoundError, match="nowhere"):
        swap_at_once(one, tmp_path / "nowhere")


def test_what_a_reader_put_back_in_the_middle_of_a_swap_does_not_stop_it(tmp_path: Path) -> None:
    target, new = folder_with(tmp_path / "policy", "old"), folder_with(tmp_path / "new", "new")
    looked = []

    def reader(event: str, arguments: tuple[object, ...]) -> None:
        # as the second rename begins
        if event == "os.rename" and str(arguments[0]) == str(new) and not looked:
            looked.append(target.exists())
            put_back(target)

    sys.addaudithook(reader)
    swap_in_two_renames(new, target)
    assert looked == [False]
    assert (target / "file").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_what_was_renamed_away_is_put_back_and_never_over_what_is_there(tmp_path: Path) -> None:
    folder_with(tmp_path / ".lost.replaced", "old")
    folder_with(tmp_path / ".there.replaced", "old")
    folder_with(tmp_path / "there", "new")
    put_all_back(tmp_path)
    assert (tmp_path / "lost/file").read_text() == "old"
    assert (tmp_path / "there/file").read_text() == "new"
    take_place(folder_with(tmp_path / "next", "next"), tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lost", "there"]


def test_a_block_that_raises_leaves_what_was_there_and_nothing_else(tmp_path: Path) -> None:
    target = folder_with(tmp_path / "policy", "old")

    def write_half() -> None:
        with in_place_of(target) as new:
            (new / "file").write_text("half")
            raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        write_half()
    assert (target / "file").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]
