"""The browser page in headless Chromium, through Playwright; and its server."""

import contextlib
import http.client
import importlib
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import threading

import numpy as np
import pytest
import tflite_exports as exports
from PIL import Image

WEB = exports.ROOT / "tflite" / "web"
LITERT = WEB / "node_modules" / "@litertjs" / "core" / "wasm"
# As root, without a display and without calls home.
CHROMIUM = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def need_litert():
    if not LITERT.is_dir():
        pytest.skip("needs LiteRT.js: run `npm ci` in tflite/web")


@contextlib.contextmanager
def serving(folder):
    """The port of a server for a folder of exports."""
    sys.path.insert(0, str(WEB))
    try:
        serve = importlib.import_module("serve")
    finally:
        sys.path.remove(str(WEB))
    with serve.make_server(str(folder), "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.fixture
def open_page(tmp_path):
    """Function of a port to a page of 390 pixels' width, ready to work."""
    need_litert()
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("needs Chromium: apt-get install chromium")
    with contextlib.ExitStack() as stack:
        driver = stack.enter_context(playwright.sync_playwright())
        context = driver.chromium.launch_persistent_context(
            str(tmp_path / "profile"),
            executable_path=chromium,
            headless=True,
            args=CHROMIUM,
            viewport={"width": 390, "height": 844},
            accept_downloads=True,
        )
        stack.callback(context.close)

        def visit(port, ready="body[data-ready]"):
            page = context.pages[0]
            page.set_default_timeout(90_000)
            page.goto(f"http://localhost:{port}/")
            page.wait_for_selector(ready)
            return page

        yield visit


def report_of(page, path):
    page.wait_for_selector("#export:enabled")
    with page.expect_download() as download:
        page.click("#export")
    download.value.save_as(path)
    return json.loads(path.read_text())


def test_the_page_judges_as_the_checker_does_and_enlarges_a_picture(open_page, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    models = exports.copy(folder, "float32", "int8", "rgb", "other", "border")
    # Planted: `other` and `border` must fail against the golden vectors of `float32`.
    for model in models[3:]:
        shutil.copy(folder / "float32.npz", model.with_suffix(".npz"))
        exports.reseal(model)
    exports.check(*models, f"--json={tmp_path / 'python.json'}")
    expected = {item["file"]: item for item in json.loads((tmp_path / "python.json").read_text())["models"]}
    pixels = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    with serving(folder) as port:
        page = open_page(port)
        assert page.evaluate("crossOriginIsolated")
        page.click("#check-all")
        report = report_of(page, tmp_path / "browser.json")
        found = {item["file"]: item for item in report["models"]}
        assert {name: item["passed"] for name, item in found.items()} == {
            "float32.tflite": True,
            "int8.tflite": True,
            "rgb.tflite": True,
            "other.tflite": False,
            "border.tflite": False,
        }
        failed = {gate["name"] for gate in found["border.tflite"]["gates"] if not gate["passed"]}
        assert {"Golden output", "Border"} <= failed
        for name in ("float32.tflite", "other.tflite"):
            for against, part in (("against_golden", "all"), ("against_float", "real")):
                here, there = (item[name]["numerics"][against][part]["psnr"] for item in (found, expected))
                # Beyond 120 dB the two differ in the last bits of float32.
                assert min(here, 120.0) == pytest.approx(min(there, 120.0), abs=0.1)
        assert found["float32.tflite"]["accelerator"]["ran"] == "wasm"
        assert report["device"]["threads"] >= 1

        page.select_option("#model", "float32.tflite")
        page.set_input_files("#file", str(tmp_path / "in.png"))
        page.wait_for_selector("#figure:not([hidden])")
        assert page.inner_text("#caption").startswith("90 \N{MULTIPLICATION SIGN} 60 ")
        with page.expect_download() as download:
            page.click("#save")
        download.value.save_as(tmp_path / "browser.png")
        # The slider shows bicubic left of it, DRCN right of it.
        for value, inset in (("0", 1.0), ("1000", 0.0)):
            page.fill("#slider", value)
            width = page.evaluate("document.getElementById('pair').getBoundingClientRect().width")
            clip = page.evaluate("document.getElementById('bicubic').style.clipPath")
            # Top, right, ...; the browser shortens four equal ones to one.
            sides = clip.removeprefix("inset(").removesuffix(")").split()
            assert float(sides[min(1, len(sides) - 1)].removesuffix("px")) == pytest.approx(width * inset, abs=1)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.is_hidden("#problem")

        page.set_input_files("#file", {"name": "x.png", "mimeType": "image/png", "buffer": b"no image"})
        page.wait_for_selector("#problem:not([hidden])")
        assert "is not a picture" in page.inner_text("#problem")
    command = [sys.executable, exports.ROOT / "tflite" / "upscale.py", models[0], tmp_path / "in.png"]
    subprocess.run([*command, tmp_path / "python.png"], check=True, capture_output=True)
    with Image.open(tmp_path / "browser.png") as here, Image.open(tmp_path / "python.png") as there:
        difference = np.abs(np.asarray(here.convert("RGB"), int) - np.asarray(there, int))
    assert difference.max() <= 1


def test_the_page_starts_with_int8_and_says_how_long_it_takes_and_what_it_cannot_run(open_page, tmp_path):
    folder = tmp_path / "models"
    folder.mkdir()
    exports.copy(folder, "any_size", "float32", "int8")
    Image.fromarray(np.zeros((100, 100, 3), np.uint8)).save(tmp_path / "in.png")
    with serving(folder) as port:
        page = open_page(port)
        assert page.eval_on_selector("#model", "list => list.value") == "int8.tflite"
        assert page.inner_text("#refused").startswith("any_size.tflite: takes any size; a browser needs a fixed one")
        assert page.eval_on_selector("option[value='any_size.tflite']", "option => option.disabled")
        page.evaluate(
            """() => { window.said = [];
            new MutationObserver(() => said.push(document.getElementById("progress-text").textContent))
              .observe(document.getElementById("progress-text"), {childList: true}); }"""
        )
        page.set_input_files("#file", str(tmp_path / "in.png"))
        page.wait_for_selector("#figure:not([hidden])")
        said = page.evaluate("said")
        # Before the first tile is done, and beside the progress: 200 pixels in tiles of 32 that lose 5 a side.
        first = next(number for number, text in enumerate(said) if text.startswith("tile 1 of 81"))
        assert any(text.startswith("about ") for text in said[:first])
        assert page.is_hidden("#problem")
        page.click("#check-all")
        report = report_of(page, tmp_path / "browser.json")
        assert [item["file"] for item in report["models"]] == ["float32.tflite", "int8.tflite"]
        assert report["models"][0]["speed"]["min_ms"] <= report["models"][0]["speed"]["p50_ms"]
    alone = tmp_path / "alone"
    alone.mkdir()
    exports.copy(alone, "any_size")
    with serving(alone) as port:
        page = open_page(port, ready="#problem:not([hidden])")
        assert "none of the models here can run in a browser" in page.inner_text("#problem")


def get(port, path, method="GET"):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, dict(response.getheaders()), response.read()


def test_the_server_gives_the_page_and_the_exports_and_nothing_else(tmp_path):
    need_litert()
    exports.copy(tmp_path, "float32")
    (tmp_path / "secret.txt").write_text("no")
    with serving(tmp_path) as port:
        status, headers, _ = get(port, "/")
        assert status == 200
        assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
        assert headers["Cross-Origin-Embedder-Policy"] == "require-corp"
        # Nothing comes from elsewhere.
        for name in ("index.html", "page.js", "model.js", "judge.js", "picture.js", "npz.js", "style.css"):
            assert b"://" not in get(port, f"/{name}")[2]
        assert list(json.loads(get(port, "/exports.json")[2])["models"]) == ["float32.tflite"]
        status, found, body = get(port, "/", "HEAD")
        assert (status, found["Content-Length"], body) == (200, headers["Content-Length"], b"")
        assert get(port, "/nothing", "HEAD")[0] == 404
        assert get(port, "/exports/float32.tflite")[2] == (tmp_path / "float32.tflite").read_bytes()
        for path in ("/serve.py", "/exports/secret.txt", "/exports/../secret.txt", "/%2e%2e/check.py", "/package.json"):
            assert get(port, path)[0] == 404, path


def test_the_server_says_what_is_missing(tmp_path):
    away = tmp_path / "tflite"
    shutil.copytree(exports.ROOT / "tflite", away, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (tmp_path / "empty").mkdir()
    exports.copy(tmp_path, "float32")

    def say(folder):
        command = [sys.executable, away / "web" / "serve.py", folder, "--port=0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
        assert done.returncode == 2
        return done.stderr

    assert "run `npm install` in" in say(tmp_path)
    # Without --host it stays on this machine.
    source = (away / "web" / "serve.py").read_text()
    assert 'default="127.0.0.1"' in source
    assert "no .tflite with its .json and .npz" in say(tmp_path / "empty")
    assert "expected a folder" in say(tmp_path / "none")


@pytest.fixture
def alone(tmp_path):
    """serve.py in a copy of the folder where LiteRT.js seems to be installed, and exports: its words but for flags."""
    away = tmp_path / "tflite"
    shutil.copytree(exports.ROOT / "tflite", away, ignore=shutil.ignore_patterns("node_modules", "__pycache__"))
    (away / "web" / "node_modules" / "@litertjs" / "core" / "wasm").mkdir(parents=True)
    exports.copy(tmp_path, "float32")
    return [sys.executable, str(away / "web" / "serve.py"), str(tmp_path)]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--port=65536"], "--port: expected a whole number from 0 to 65,535; received '65536'"),
        (["--port=http"], "received 'http'"),
        (["--host=no.such.host.invalid"], "no.such.host.invalid"),
        (["--cert=float32.tflite"], "--cert and --key need each other"),
        (["--key=float32.tflite"], "--cert and --key need each other"),
        (["--cert=none.pem", "--key=none.pem"], "none.pem, none.pem: no certificate and its key in PEM: No such file"),
    ],
)
def test_bad_flags_of_the_server_are_one_line(alone, flags, message):
    done = subprocess.run([*alone, *flags], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_visitor_who_is_silent_or_leaves_disturbs_no_other(alone):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, which makes the certificate")
    with subprocess.Popen(
        [*alone, "--port=0", "--https"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as server:
        port = int(server.stdout.readline().split(":")[-1].strip(" /\n"))
        silent = socket.create_connection(("127.0.0.1", port))
        with socket.create_connection(("127.0.0.1", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")  # http to an https port.
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
        with contextlib.closing(connection), silent:
            connection.request("GET", "/exports/float32.tflite")
            response = connection.getresponse()
            assert response.status == 200
            response.read()
        server.terminate()
        assert server.stderr.read() == "serve.py: error: interrupted\n"
        assert server.wait(timeout=30) == 130
