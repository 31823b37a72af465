"""The file that says where the service is."""

import json
import os
from pathlib import Path

import pytest

from vizora_rt.service import runfile


def test_what_was_written_is_read_until_it_is_removed(tmp_path: Path) -> None:
    folder = tmp_path / "state"
    assert runfile.read(folder) == {}
    runfile.write(folder, {"port": 3001})
    assert runfile.read(folder) == {"pid": os.getpid(), "port": 3001}
    assert [file.name for file in folder.iterdir()] == ["run.json"]
    runfile.remove(folder)
    assert runfile.read(folder) == {}
    runfile.remove(folder)


def test_the_file_of_another_service_stays(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"pid": 1}))
    runfile.remove(tmp_path)
    assert runfile.read(tmp_path) == {"pid": 1}


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
def test_a_broken_file_is_no_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.json").write_text(content)
    assert runfile.read(tmp_path) == {}


def test_a_directory_that_takes_no_file_is_a_line_in_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "state").write_text("in the way")
    runfile.write(tmp_path / "state", {})
    assert "run file not written" in capfd.readouterr().err
