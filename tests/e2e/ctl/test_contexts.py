"""`conveyorctl context`, on real files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conveyord.cli.ctl.contexts import Context, Contexts, changing, masked, read
from conveyord.core.errors import ConfigError
from tests.e2e.ctl.calling import CONVEYORCTL, Said, ctl, environment
from tests.e2e.ctl.golden_files import as_text, check, same

SECRET = "cvd_0a1b_" + "s" * 43


def call(home: Path, *arguments: str, stdin: bytes | None = None) -> Said:
    said = ctl(home, "context", *arguments, stdin=stdin)
    assert said.code == 0, said.err
    return said


def path_of(home: Path) -> Path:
    return home / "config" / "conveyord" / "contexts.toml"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    call(tmp_path, "add", "prod", "--server", "https://a:7480/", "--server", "https://b:7480", "--token", "env:PROD")
    call(tmp_path, "add", "lab", "--server", "http://127.0.0.1:7480", "--token", "-", stdin=f"{SECRET}\n".encode())
    return tmp_path


@pytest.mark.parametrize("output", ["table", "wide", "json", "yaml"])
@pytest.mark.parametrize("verb", ["list", "show lab", "show"])
def test_what_is_kept_is_shown_without_secrets(home: Path, verb: str, output: str) -> None:
    arguments = ["context", *verb.split(), "-o", output]
    said = ctl(home, *arguments)
    assert "s" * 20 not in said.text
    check(f"context/{verb.replace(' ', '-')}-{output}", same(as_text(arguments, said), {str(home): "HOME"}))


def test_the_first_is_the_current_one_until_another_is(home: Path) -> None:
    def current() -> str:
        return str(json.loads(call(home, "show", "-o", "json").out)["name"])

    assert current() == "prod"
    call(home, "use", "lab")
    assert current() == "lab"
    call(home, "add", "third", "--server", "http://127.0.0.1:1", "--use")
    assert current() == "third"
    call(home, "remove", "third", "--yes")
    assert ctl(home, "context", "show").code == 2
    assert [one["name"] for one in json.loads(call(home, "list", "-o", "json").out)["contexts"]] == ["lab", "prod"]


def test_the_file_is_for_its_owner_alone(home: Path) -> None:
    assert stat.S_IMODE(path_of(home).stat().st_mode) == 0o600
    assert SECRET in path_of(home).read_text()
    path_of(home).chmod(0o640)
    said = ctl(home, "context", "list")
    assert said.code == 2
    assert said.sentence.endswith(f"others may read it (mode 0640); run chmod 600 {path_of(home)}")
    call(home, "list", *("--config-file", str(without_secret(home))))


def without_secret(home: Path) -> Path:
    path = home / "open.toml"
    path.write_text('[contexts.a]\nservers = ["https://a"]\ntoken = "file:/t"\n')
    path.chmod(0o644)
    return path


def test_a_link_stays_a_link(home: Path) -> None:
    path = path_of(home)
    kept = home / "dotfiles.toml"
    path.rename(kept)
    path.symlink_to(kept)
    call(home, "use", "lab")
    assert path.is_symlink()
    assert 'current = "lab"' in kept.read_text()


def test_files_are_kept_by_their_whole_paths(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    call(tmp_path, "add", "a", "--server", "https://a", "--ca", "ca.pem", "--token", "file:t")
    shown = json.loads(call(tmp_path, "show", "a", "-o", "json").out)
    assert (shown["ca"], shown["token"]) == (str(tmp_path / "ca.pem"), f"file:{tmp_path}/t")


WRONG_CALLS = {
    "add-again": "add prod --server https://c",
    "add-bad-name": "add a/b --server https://c",
    "add-bad-url": "add new --server c:7480",
    "add-no-ca": "add new --server https://c --ca nowhere.pem",
    "use-unknown": "use prot",
    "use-very-unknown": "use zzz",
    "remove-unknown": "remove zzz --yes",
    "remove-unasked": "remove prod",
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_it_refuses(home: Path, name: str) -> None:
    before = path_of(home).read_bytes()
    arguments = ["context", *WRONG_CALLS[name].split()]
    said = ctl(home, *arguments)
    assert said.code == 2
    assert path_of(home).read_bytes() == before
    check(f"context/{name}", same(as_text(arguments, said), {str(home): "HOME"}))


BROKEN = {
    "not-toml": b'current = "a"\n[contexts.a\nservers = []\n',
    "open-string": b'current = "a\n',
    "not-utf-8": b'current = "a"\n# \xff\n',
    "unknown-top-key": b'\ncurent = "a"\n',
    "unknown-key": b'[contexts.a]\nservers = ["https://a"]\ntokn = "t"\n',
    "strange-key": b'[contexts.a]\nservers = ["https://a"]\nzzz = "t"\n',
    "servers-not-a-list": b'[contexts.a]\nservers = "https://a"\n',
    "servers-empty": b"[contexts.a]\nservers = []\n",
    "no-servers": b'[contexts.b]\nservers = ["https://b"]\n[contexts."a"]\ntoken = "t"\n',
    "token-not-text": b'[contexts.a]\nservers = ["https://a"]\ntoken = 12345678\n',
    "context-not-a-table": b"[contexts]\na = 1\n",
    "contexts-not-a-table": b"contexts = 1\n",
    "current-not-text": b"current = 1\n",
    "current-unknown": b'current = "b"\n[contexts.a]\nservers = ["https://a"]\n',
    "bad-url": b'current = "a"\n[contexts.a]\nservers = ["https:/a"]\n',
    "empty-string-variable": b'current = "a"\n[contexts.a]\nservers = ["https://a"]\ntoken = "env:"\n',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "contexts.toml"
    path.write_bytes(BROKEN[name])
    path.chmod(0o600)
    arguments = ["status", "--config-file", "contexts.toml"]
    said = ctl(tmp_path, *arguments)
    assert said.code == 2
    assert "12345678" not in said.err
    check(f"context/broken-{name}", same(as_text(arguments, said)))


def test_what_cannot_be_read_or_written_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    said = ctl(tmp_path, "status", CONVEYORD_CONTEXTS="folder")
    assert said.sentence == "the contexts file folder cannot be read: Is a directory"
    (tmp_path / "file").touch()
    said = ctl(tmp_path, "context", "add", "a", "--server", "https://a", "--config-file", "file/contexts.toml")
    assert "cannot be" in said.sentence
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    assert "larger than" in ctl(tmp_path, "context", "list", "--config-file", "large").sentence


NAMES = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
KEPT = st.builds(Context, st.lists(TEXTS, min_size=1, max_size=3).map(tuple), TEXTS, TEXTS)


@given(current=TEXTS, named=st.dictionaries(NAMES, KEPT, max_size=4))
def test_whatever_is_written_is_read_again(
    tmp_path_factory: pytest.TempPathFactory, current: str, named: dict[str, Context]
) -> None:
    path = tmp_path_factory.mktemp("kept") / "contexts.toml"
    with changing(path) as held:
        held[0] = Contexts(current, named)
    assert read(path) == Contexts(current, named)


@given(st.binary(max_size=200))
def test_no_file_is_a_bug(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("any") / "contexts.toml"
    path.write_bytes(content)
    with suppress(ConfigError):
        read(path)


@given(st.text(max_size=30), st.text(max_size=50))
def test_a_masked_token_tells_nothing_secret(id_: str, secret: str) -> None:
    assert masked(f"cvd_{id_.replace('_', '')}_{secret}zzz-secret").endswith("_***")
    assert masked(f"{secret}-zzz") == "***" or secret.startswith(("env:", "file:", "cvd_"))


def test_many_at_once_lose_nothing(tmp_path: Path) -> None:
    made = environment(tmp_path)
    adding = [
        subprocess.Popen([CONVEYORCTL, "context", "add", f"c{number}", "--server", "https://a"], env=made, cwd=tmp_path)
        for number in range(6)
    ]
    assert [one.wait(timeout=60) for one in adding] == [0] * 6
    assert sorted(read(path_of(tmp_path)).named) == [f"c{number}" for number in range(6)]
    assert os.listdir(path_of(tmp_path).parent) == ["contexts.toml"]
