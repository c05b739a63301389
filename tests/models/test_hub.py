"""Uploads to a model hub, with a stand-in for the part of the hub's API that an upload needs."""

from __future__ import annotations

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import maw
import tier_1
from maw.errors import ConfigError, MAWError
from maw.models.export.sentence_transformers import export_retriever
from maw.models.retriever import BaselineRetriever

TOKEN = "hf_standin"


class StandIn(ThreadingHTTPServer):
    """What a hub keeps: `repositories`, name -> {"private": ..., "files": {path: bytes}}, and what was asked of it."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answers)
        self.repositories, self.large, self.asked = {}, {}, []

    @property
    def address(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answers(BaseHTTPRequestHandler):
    def log_message(self, *given):
        pass

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def answer(self, content, status=200, **headers):
        data = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(data)

    def refused(self):
        self.server.asked.append(f"{self.command} {self.path}")
        if self.path.startswith("/large/") or self.headers.get("Authorization") == f"Bearer {TOKEN}":
            return False
        self.body()
        self.answer({"error": "Invalid username or password."}, 401)
        return True

    def do_GET(self):
        if self.refused():
            return
        name = re.fullmatch(r"/api/models/([^/]+/[^/]+)", self.path.partition("?")[0])[1]
        if name in self.server.repositories:
            self.answer({"id": name, "private": self.server.repositories[name]["private"], "siblings": []})
        else:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")

    def do_PUT(self):
        if self.refused():
            return
        self.server.large[self.path.rpartition("/")[2]] = self.body()
        self.answer({})

    def do_POST(self):
        if self.refused():
            return
        path, body = self.path.partition("?")[0], self.body()
        if path == "/api/repos/create":
            self.create(json.loads(body))
        elif path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self.answer({})
        elif path.endswith("/preupload/main"):
            files = [each["path"] for each in json.loads(body)["files"]]
            modes = {file: "lfs" if file.endswith(".safetensors") else "regular" for file in files}
            named = [{"path": file, "uploadMode": mode, "shouldIgnore": False} for file, mode in modes.items()]
            self.answer({"files": named})
        elif path.endswith(".git/info/lfs/objects/batch"):
            place = f"{self.server.address}/large"
            objects = [
                each | {"actions": {"upload": {"href": f"{place}/{each['oid']}"}}}
                for each in json.loads(body)["objects"]
            ]
            self.answer({"transfer": "basic", "objects": objects})
        else:
            self.commit(re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path)[1], body)

    def create(self, asked):
        name = f"{asked['organization']}/{asked['name']}"
        address = f"{self.server.address}/{name}"
        if asked["organization"] == "others":
            self.answer({"error": "You don't have the rights to create a model under this namespace"}, 403)
        elif name in self.server.repositories:
            self.answer({"error": "You already created this model repo", "url": address}, 409)
        else:
            self.server.repositories[name] = {"private": asked["visibility"] == "private", "files": {}}
            self.answer({"url": address, "name": name})

    def commit(self, name, body):
        files = self.server.repositories[name]["files"]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        self.answer({"commitUrl": f"{self.server.address}/{name}/commit/{'1' * 40}", "commitOid": "1" * 40})


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A stand-in on this machine, in the place of the hub; plain transfers, without the library of its own."""
    import huggingface_hub.constants as constants

    from maw.runtime import network

    server = StandIn()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    monkeypatch.setattr(constants, "ENDPOINT", server.address)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    network.reachable.cache_clear()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    from maw.config.tier1_config import Tier1Config

    config = Tier1Config(model=str(models("bert")), precision="float32", device="cpu")
    return export_retriever(BaselineRetriever(config), tmp_path_factory.mktemp("export") / "mine", "---\na: b\n---\n")


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_is_uploaded_whole_and_private(hub, exported):
    assert maw.push_to_hub(exported, "me/my-model") == f"{hub.address}/me/my-model"
    assert hub.repositories == {"me/my-model": {"private": True, "files": files_of(exported)}}
    assert "model.safetensors" in hub.repositories["me/my-model"]["files"]


def test_public_is_to_be_said_and_a_later_version_goes_where_the_first_is(hub, exported):
    for _ in range(2):
        maw.push_to_hub(exported, "me/open", private=False)
    assert hub.repositories["me/open"] == {"private": False, "files": files_of(exported)}
    hub.repositories["me/open"]["files"].clear()
    maw.push_to_hub(exported, "me/mine")
    for name, private in (("me/open", True), ("me/mine", False)):
        with pytest.raises(MAWError, match=r"the repository exists and is (public|private).*nothing was upl"):
            maw.push_to_hub(exported, name, private=private)
    assert hub.repositories["me/open"]["files"] == {}, "nothing private has become public"


@pytest.mark.parametrize("name", ["my-model", "me/", "/x", "a/b/c", "me/my model", "../me/x", "me/x\n", "-me/x"])
def test_only_a_whole_name_will_do(hub, exported, name):
    with pytest.raises(ConfigError, match="is not a repository name; write ORG/NAME"):
        maw.push_to_hub(exported, name)
    assert hub.asked == []


def test_only_exports_are_uploaded(hub, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for folder, lacks in ((tmp_path, "modules.json"), (tmp_path / "nowhere", "config.json")):
        with pytest.raises(ConfigError, match=f"has no {lacks}, so it is not an exported model"):
            maw.push_to_hub(folder, "me/my-model")
    assert hub.asked == []


def no_token(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")


def offline(hub, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def gone(hub, monkeypatch):
    hub.shutdown()
    hub.server_close()


@pytest.mark.parametrize(
    "change, says",
    [
        (no_token, r"there is no token for http.*make one that may write .*hf auth login.*HF_TOKEN"),
        (offline, "HF_HUB_OFFLINE forbids connections"),
        (gone, "cannot be reached, so nothing was uploaded"),
    ],
)
def test_what_is_missing_is_said_before_anything_is_done(hub, exported, monkeypatch, change, says, tiny_run, tmp_path):
    change(hub, monkeypatch)
    with pytest.raises(MAWError, match=says):
        maw.push_to_hub(exported, "me/my-model")
    out = tmp_path / "out"
    assert tier_1.main(["export", str(tiny_run), str(out), "--push-to-hub", "me/my-model"]) == 1
    assert not out.exists() and hub.asked == []


@pytest.mark.parametrize("token, name", [("hf_wrong", "me/my-model"), (TOKEN, "others/my-model")])
def test_a_refusal_of_the_hub_is_one_line_and_the_export_stays(hub, exported, monkeypatch, token, name):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(MAWError, match=rf"refused {name}: .*40[13].*the model is complete in .*push_to_hub") as found:
        maw.push_to_hub(exported, name)
    assert "\n" not in str(found.value) and token not in str(found.value)
    assert hub.repositories == {} and exported.is_dir()


# -------------------------------------------------------------------------------------------------------- the command


def test_the_command_uploads_what_it_writes(hub, tiny_run, tmp_path, capsys):
    out = tmp_path / "out"
    assert tier_1.main(["export", str(tiny_run), "--method", "maw", str(out), "--push-to-hub", "me/my-maw"]) == 0
    assert hub.repositories == {"me/my-maw": {"private": True, "files": files_of(out)}}
    card = (out / "README.md").read_text()
    assert 'SentenceTransformer("me/my-maw", trust_remote_code=True)' in card
    assert f"Uploaded to {hub.address}/me/my-maw, private" in capsys.readouterr().out
    words = ["export", str(tiny_run), str(tmp_path / "other"), "--push-to-hub", "me/open", "--public"]
    assert tier_1.main(words) == 0
    assert hub.repositories["me/open"]["private"] is False


def test_without_the_word_nothing_is_uploaded(hub, tiny_run, tmp_path, capsys):
    assert tier_1.main(["export", str(tiny_run), str(tmp_path / "out")]) == 0
    assert hub.asked == []
    assert tier_1.main(["export", str(tiny_run), str(tmp_path / "other"), "--public"]) == 2
    assert "--public needs --push-to-hub" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
