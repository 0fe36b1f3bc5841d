"""Files in folders where others may write too, and downloads from servers that mean harm."""

import hashlib
import itertools
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
import yaml

from robgib import RobGIBError, RobGIBWarning, files
from robgib.files import alone, atomic_directory, download, read_json, write_file
from robgib.reading import too_deep
from robgib.training.tracing import snapshots
from robgib.zoo.loading import stored_checkpoint
from robgib.zoo.recipe import find_recipe
from tests.faults.test_pipes_and_aliases import in_time

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def victim(tmp_path):
    file = tmp_path / "elsewhere" / "victim"
    file.parent.mkdir()
    file.write_bytes(b"mine")
    return file


def test_a_link_under_the_former_name_of_a_temporary_file_is_not_followed(victim, tmp_path):
    target = tmp_path / "shared" / "table.csv"
    target.parent.mkdir()
    (target.parent / f".table.csv.{files._mark()}").symlink_to(victim)
    write_file(target, b"new")
    assert target.read_bytes() == b"new"
    assert not target.is_symlink()
    assert victim.read_bytes() == b"mine"


def test_temporary_files_have_names_of_chance_and_are_never_opened_where_something_is(victim, tmp_path, monkeypatch):
    opened = []
    real = os.open

    def watch(path, flags, *rest, **options):
        opened.append((str(path), flags))
        return real(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", watch)
    for _ in range(2):
        write_file(tmp_path / "a", b"x")
    names = [path for path, flags in opened if "/.a." in path]
    assert len(set(names)) == 2
    assert all(flags & os.O_EXCL and flags & os.O_NOFOLLOW for path, flags in opened if path in names)
    monkeypatch.setattr("secrets.token_hex", lambda _: "0")
    (tmp_path / f".a.{files._mark()}.0").symlink_to(victim)
    with pytest.raises(RobGIBError, match=r"cannot write .*a: File exists"):
        write_file(tmp_path / "a", b"y")
    assert victim.read_bytes() == b"mine"
    assert (tmp_path / "a").read_bytes() == b"x"


def test_a_file_that_is_written_has_the_rights_that_the_mask_leaves(tmp_path):
    before = os.umask(0o027)
    try:
        write_file(tmp_path / "a", b"x")
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("whose", ["a link", "another user's"])
def test_what_others_put_into_a_shared_folder_is_not_swept_into_place(whose, victim, tmp_path, monkeypatch):
    target = tmp_path / "shared" / "run"
    target.parent.mkdir()
    (victim.parent / "former").mkdir()
    left = target.parent / f".run.{files._HOST}-99999999.x"
    if whose == "a link":
        left.symlink_to(victim.parent)
    else:
        (left / "former").mkdir(parents=True)
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with atomic_directory(target) as folder:
        (folder / "a").touch()
    assert [p.name for p in target.iterdir()] == ["a"]
    assert (victim.parent / "former").is_dir()
    assert os.path.lexists(left)


def test_a_link_in_the_place_of_a_lock_is_not_followed(victim, tmp_path):
    (tmp_path / "net.lock").symlink_to(victim)
    with alone(tmp_path / "net") as locked:
        assert not locked
    assert victim.read_bytes() == b"mine"


class Server:
    """Answers every request with what it is told to."""

    def __init__(self):
        self.headers, self.status, self.body, self.asked = {}, 200, [CONTENT], []
        ours = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                ours.asked.append(self.headers.get("Range"))
                self.send_response(ours.status)
                for key, value in ours.headers.items():
                    self.send_header(key, value)
                self.end_headers()
                try:
                    for part in ours.body:
                        self.wfile.write(part)
                except OSError:  # who asked has gone
                    pass

            def log_message(self, *arguments):
                pass

        self.served = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.served.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.served.server_port}/net.pt"


@pytest.fixture
def server():
    made = Server()
    yield made
    made.served.shutdown()
    made.served.server_close()


def test_a_download_without_a_length_ends_at_the_most(server, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MOST_BYTES", 3_000_000)
    server.body = itertools.repeat(bytes(100_000))
    with (
        in_time(),
        pytest.raises(RobGIBError, match="sends more than 3,000,000 bytes and does not state a size"),
    ):
        download(server.url, tmp_path / "net.pt", SHA, "net")
    assert not list(tmp_path.iterdir())


def test_a_download_ends_at_the_size_that_is_stated(server, tmp_path):
    server.body = itertools.repeat(bytes(100_000))
    with in_time(), pytest.raises(RobGIBError, match="sends more than 10,240 bytes; nothing"):
        download(server.url, tmp_path / "net.pt", SHA, "net", size=len(CONTENT))
    assert not list(tmp_path.iterdir())
    server.body = [CONTENT]
    download(server.url, tmp_path / "net.pt", SHA, "net", size=len(CONTENT))
    assert (tmp_path / "net.pt").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("length", "size", "words"),
    [
        (10**15, None, "has 1,000,000,000,000,000 bytes, more than 4,294,967,296: state its size"),
        (10**15, 10**15, "has room for"),
        (20_000, 10_240, "has 20,000 bytes, but the recipe states 10,240"),
    ],
)
def test_a_length_that_cannot_be_meant_is_refused_before_it_comes(length, size, words, server, tmp_path):
    server.headers["Content-Length"] = str(length)
    with in_time(), pytest.raises(RobGIBError, match=words):
        download(server.url, tmp_path / "net.pt", SHA, "net", size=size)
    assert not list(tmp_path.iterdir())


def test_what_is_resumed_has_the_same_limit(server, tmp_path):
    (tmp_path / "net.pt.part").write_bytes(CONTENT[:1000])
    server.status, server.body = 206, itertools.repeat(bytes(100_000))
    with in_time(), pytest.raises(RobGIBError, match="sends more than 10,240 bytes"):
        download(server.url, tmp_path / "net.pt", SHA, "net", size=len(CONTENT))
    assert server.asked == ["bytes=1000-"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "net.pt.part").write_bytes(bytes(20_000))  # more than it can be
    server.status, server.body = 200, [CONTENT]
    download(server.url, tmp_path / "net.pt", SHA, "net", size=len(CONTENT))
    assert server.asked[-1] is None
    assert (tmp_path / "net.pt").read_bytes() == CONTENT


@pytest.mark.parametrize("kind", ["a link", "a second name", "a pipe"])
def test_a_part_that_is_no_file_of_our_own_is_replaced(kind, server, victim, tmp_path):
    part = tmp_path / "net.pt.part"
    if kind == "a link":
        part.symlink_to(victim)
    elif kind == "a second name":
        part.hardlink_to(victim)
    else:
        os.mkfifo(part)
    with in_time():
        download(server.url, tmp_path / "net.pt", SHA, "net")
    assert (tmp_path / "net.pt").read_bytes() == CONTENT
    assert server.asked == [None]
    assert victim.read_bytes() == b"mine"


@pytest.mark.parametrize("place", ["file:///etc/hostname", "ftp://127.0.0.1:9/x", "data:,x"])
def test_redirections_lead_to_the_web_alone(place, server, tmp_path):
    server.status, server.headers["Location"] = 302, place
    with in_time(), pytest.raises(RobGIBError, match="could not be downloaded") as told:
        download(server.url, tmp_path / "net.pt", SHA, "net")
    assert place.partition(":")[0] in str(told.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["file:///dev/zero", "file://x/y.pt", "FILE:///dev/zero", "https:///dev/zero"])
def test_a_recipe_downloads_from_the_web_alone(url, tmp_path):
    text = {"data": "digits", "architecture": {"name": "mlp"}, "checkpoint": {"url": url, "sha256": "0" * 64}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(text))
    with in_time(), pytest.raises(RobGIBError, match=r"checkpoint\.url: a url begins with https:// or http://; give a"):
        find_recipe("mine", [tmp_path])


def test_a_recipe_states_the_size(server, tmp_path, monkeypatch):
    monkeypatch.setenv("ROBGIB_CACHE", str(tmp_path / "cache"))
    server.body = itertools.repeat(bytes(100_000))
    place = {"url": server.url, "sha256": SHA, "size": len(CONTENT)}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"data": "digits", "checkpoint": place}))
    recipe = find_recipe("mine", [tmp_path])
    with in_time(), pytest.raises(RobGIBError, match="sends more than 10,240 bytes"):
        stored_checkpoint(recipe)
    server.body = [CONTENT]
    found = stored_checkpoint(recipe)
    assert found.read_bytes() == CONTENT
    found.write_bytes(CONTENT + b"x")
    with pytest.raises(RobGIBError, match="has 10241 bytes, not 10240"):
        stored_checkpoint(recipe)


def test_json_that_is_deep(tmp_path):
    for depth, deep in ((50, False), (51, True), (400, True), (100_000, True)):
        file = tmp_path / "deep.json"
        file.write_text("[" * depth + "]" * depth)
        if deep:
            with pytest.raises(ValueError, match="nested"):
                read_json(file)
        else:
            read_json(file)
    held: list[object] = []
    held += [held, held]
    assert too_deep(held)


def test_a_working_folder_that_is_a_planted_link(tmp_path):
    """Its name can be foreseen: what was written into it went where the link leads, and was read from there."""
    elsewhere = tmp_path / "elsewhere"
    files.Parts(elsewhere).at("attack").write({"seconds": 1.0})
    before = sorted(elsewhere.iterdir())
    (tmp_path / "unfinished").symlink_to(elsewhere)
    parts = files.Parts(tmp_path / "unfinished")
    assert parts.at("attack").read() is None
    with pytest.warns(
        RobGIBWarning, match=r"finished parts cannot be kept: .*unfinished is a symbolic link; remove it"
    ):
        parts.at("estimate").write({"seconds": 2.0})
    assert sorted(elsewhere.iterdir()) == before
    (tmp_path / "net.epochs").symlink_to(elsewhere)
    with pytest.raises(RobGIBError, match=r"the folder of the traced epochs, .*, is a symbolic link; remove it"):
        snapshots(tmp_path / "net.epochs", [1], {})(1, torch.nn.Linear(2, 2))
    assert sorted(elsewhere.iterdir()) == before
