"""The whole server as a process, called by Gradio's own client and by plain HTTP."""

import base64
import contextlib
import http.client
import io
import json
import os
import re
import subprocess
import sys
import threading

import pytest
from PIL import Image

from fd_jax import read_settings
from tests.web.conftest import as_json

pytest.importorskip("gradio", reason="the page needs gradio (extra demo)")


@contextlib.contextmanager
def serving(folder, *options):
    """Starts fd-demo with its temporary files in a folder; yields its port and log."""
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "fd_jax.web", "--port", "0", *map(str, options)]
    lines = []
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            for line in process.stdout:
                lines.append(line)
                if found := re.search(r"page and API at http://127\.0\.0\.1:(\d+)", line):
                    break
            else:
                pytest.fail("the server ended: " + "".join(lines))
            reader = threading.Thread(target=lambda: lines.extend(process.stdout))
            reader.start()
            yield int(found[1]), lines
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def port(folder, checkpoints):
    models = [f"--{name.replace('_', '-')}={path}" for name, path in checkpoints.items()]
    with serving(folder, *models, "--num-steps=6", "--sizes", "1", "4") as (port, _):
        yield port


def send(port, method, path, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    with contextlib.closing(connection):
        connection.request(method, path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read()


@pytest.fixture(scope="module")
def client(port):
    from gradio_client import Client

    return Client(f"http://127.0.0.1:{port}", verbose=False)


def test_the_api_samples_and_keeps_no_file(client, folder, people):
    """What the folder of temporary files held, it holds: no photograph and no picture."""
    photograph = as_json(people[0])
    answer = client.predict(
        prompt="a man <|image|> in the snow",
        photographs=[photograph],
        seed=3,
        num_images=2,
        settings={"alpha": 0.2},
        api_name="/sample",
    )

    contents = [base64.b64decode(picture["png"]) for picture in answer["pictures"]]
    assert [Image.open(io.BytesIO(content)).size for content in contents] == [(16, 16)] * 2
    settings = read_settings(io.BytesIO(contents[1]))
    assert settings["references"] == '["P003.jpg"]'
    assert (settings["alpha"], settings["seed"], settings["image_number"]) == ("0.2", "3", "1")
    kept = [path for path in folder.rglob("*") if path.is_file()]
    images = [path for path in kept if path.read_bytes()[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")]
    raw = people[0].read_bytes()[:2000]
    assert images == []
    assert [path for path in kept if raw in path.read_bytes()] == []


def test_mistakes_are_answered(client, people):
    answer = client.predict(prompt="a man", photographs=[], api_name="/sample")
    assert "no marker" in answer["error"]
    answer = client.predict(
        prompt="a man <|image|>", photographs=[as_json(people[0])] * 5, api_name="/sample"
    )
    assert "5 photographs, expected 4 at most" in answer["error"]


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=%2Fetc%2Fpasswd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/file=../../../../etc/passwd",
        "/static/../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/assets/..%2f..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/proxy=file:///etc/passwd",
        "/gradio_api/custom_component/1/client/component/..%2f..%2f..%2fetc%2fpasswd",
        "/gradio_api/stream/a/1/2/..%2f..%2fetc%2fpasswd",
        "/svelte/../../../../etc/passwd",
        "/svelte//etc/passwd",
        "/assets//etc/passwd",
        "/static//etc/passwd",
        "/gradio_api/runs",
        "/gradio_api/openapi.json",
    ],
)
def test_no_path_of_the_disk_can_be_read(port, path):
    status, content = send(port, "GET", path)
    assert status in (403, 404)
    assert b"root:" not in content


def test_paths_in_the_data_of_a_call_are_not_opened(port, client):
    """A file as Gradio's clients describe it is no photograph here."""
    file = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}, "name": "a", "data": "a"}
    for photograph in (file, file | {"data": "/etc/passwd"}, "/etc/passwd"):
        body = json.dumps({"data": ["a man <|image|>", [photograph], "", 1, 0, 0, None]})
        status, content = send(port, "POST", "/gradio_api/call/sample", body)
        if status == 200:
            event = json.loads(content)["event_id"]
            _, content = send(port, "GET", f"/gradio_api/call/sample/{event}")
            assert b"error" in content
        assert b"root:" not in content


def test_uploads_and_large_bodies_are_refused(port):
    assert send(port, "POST", "/gradio_api/upload", b"x")[0] == 404
    with contextlib.suppress(ConnectionError, http.client.HTTPException):
        assert send(port, "POST", "/gradio_api/queue/join", b"x" * 60_000_000)[0] == 413
    assert send(port, "GET", "/")[0] == 200


def test_the_page_fetches_nothing_from_others(port):
    """It works without a network, and tells nobody of its visitors."""
    _, page = send(port, "GET", "/")
    _, theme = send(port, "GET", "/theme.css")
    for text in (page.decode(), theme.decode()):
        assert "fonts.googleapis.com" not in text
    assert json.loads(send(port, "GET", "/config")[1])["analytics_enabled"] is False


def test_a_used_port_is_told(port, checkpoints):
    models = [f"--{name.replace('_', '-')}={path}" for name, path in checkpoints.items()]
    done = subprocess.run(
        [sys.executable, "-m", "fd_jax.web", "--port", str(port), *models, "--sizes", "1"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert f"error: cannot listen at 127.0.0.1:{port}" in done.stderr
