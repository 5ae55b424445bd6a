"""Serves the page that runs exported models in a browser: to this machine, or with --host=0.0.0.0 to the network.

    cd tflite/web && npm install && cd ../..
    python tflite/web/serve.py DIR [--port=8000] [--host=0.0.0.0 --https]

DIR holds exports: .tflite, .npz and .json side by side. Nothing is fetched from outside: LiteRT.js comes from
node_modules. Browsers grant threads, WebGPU and hashing to secure pages alone: localhost, or https. A phone reaches
localhost through `adb reverse tcp:8000 tcp:8000`; --https makes a certificate for itself, which the phone warns of.
"""

import functools
import http.server
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from check import BORDER_DB, BUSY_RATIO, limits_of  # noqa: E402
from command import Parser, end, whole  # noqa: E402
from manifest import CannotRun, beside, read_manifest  # noqa: E402

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
}
_PAGE = ("index.html", "style.css", "page.js", "model.js", "judge.js", "picture.js", "npz.js")
# What LiteRT.js takes and gives.
BROWSER_DTYPES = {"float32", "int32", "uint8"}
_PACKAGES = {"core": ("dist", "wasm"), "wasm-utils": ("dist",)}


def main():
    """Reads the flags and serves until interrupted."""
    parser = Parser(description=__doc__.split("\n\n")[0])
    parser.add_argument("folder", metavar="DIR", help="of exported models")
    parser.add_argument("--port", type=whole(0, 65535), default=8000, help="0 picks a free one (default 8000)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets the network in (default: this machine alone)")
    parser.add_argument("--https", action="store_true", help="with a certificate made on the spot by openssl")
    parser.add_argument("--cert", metavar="PEM", help="your own certificate, with --key")
    parser.add_argument("--key", metavar="PEM")
    flags = parser.parse_args()
    if (flags.cert is None) != (flags.key is None):
        raise CannotRun("--cert and --key need each other; received one of them.")
    secure = flags.https or flags.cert is not None
    context = _context(flags.cert, flags.key) if secure else None
    with make_server(flags.folder, flags.host, flags.port) as server:
        if secure:
            # A visitor's handshake is done in its own thread: one that never speaks would keep all others out.
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
        _announce(server, "https" if secure else "http")
        server.serve_forever()
    return 0


def make_server(folder, host, port):
    """A server bound to its port, not yet serving.

    Raises:
        CannotRun: no model in the folder, LiteRT.js not installed, or the port is taken.
    """
    exports = list_exports(folder)
    core = os.path.join(HERE, "node_modules", "@litertjs", "core", "wasm")
    if not os.path.isdir(core):
        raise CannotRun(f"LiteRT.js is not installed: run `npm install` in {os.path.relpath(HERE)}.")
    handler = functools.partial(Handler, files=_files(folder, exports), exports=exports)
    try:
        return Server((host, port), handler)
    except OSError as error:
        raise CannotRun(f"port {port} on {host}: {error.strerror}; choose another with --port.") from error


def list_exports(folder):
    """The models that have a manifest and golden vectors beside them, sorted.

    Returns:
        {name: {"mode", "pipeline", "limits": those of its gates for "wasm", which is XNNPACK, and for "webgpu",
        "refused": why no browser can run it, or ""}}.
    """
    if not os.path.isdir(folder):
        raise CannotRun(f"{folder}: expected a folder of exported models.")
    found = {}
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if name.endswith(".tflite") and all(os.path.isfile(beside(path, suffix)) for suffix in (".json", ".npz")):
            manifest = read_manifest(path)
            found[name] = {key: manifest[key] for key in ("mode", "pipeline")}
            limits = {"wasm": limits_of(manifest, xnnpack=True), "webgpu": limits_of(manifest)}
            found[name] |= {"limits": limits, "refused": refusal(manifest)}
    if not found:
        raise CannotRun(f"{folder}: no .tflite with its .json and .npz; drcn-export-tflite writes all three.")
    return found


def refusal(manifest):
    """Why LiteRT.js cannot run a model, or ""."""
    if -1 in manifest["input"]["shape"]:
        return "takes any size; a browser needs a fixed one: export it without --dynamic_shape"
    dtypes = {manifest["input"]["dtype"], manifest["output"]["dtype"]}
    if not dtypes <= BROWSER_DTYPES:
        return f"takes and gives {' and '.join(sorted(dtypes))}; a browser takes {', '.join(sorted(BROWSER_DTYPES))}"
    return ""


def _files(folder, exports):
    """{URL path: file path} of everything that may be read."""
    files = {f"/{name}": os.path.join(HERE, name) for name in _PAGE}
    files["/"] = files["/index.html"]
    for package, folders in _PACKAGES.items():
        for part in folders:
            where = os.path.join(HERE, "node_modules", "@litertjs", package, part)
            for name in os.listdir(where) if os.path.isdir(where) else ():
                if os.path.splitext(name)[1] in (".js", ".wasm"):
                    files[f"/litertjs/{package}/{part}/{name}"] = os.path.join(where, name)
    for name in exports:
        for suffix in (".tflite", ".json", ".npz"):
            path = beside(os.path.join(folder, name), suffix)
            files[f"/exports/{os.path.basename(path)}"] = path
    return files


class Server(http.server.ThreadingHTTPServer):
    """One that takes a visitor who leaves, or speaks http to https, for no fault of its own."""

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers GET and HEAD for a fixed list of files, with the headers that let a page use threads."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *args, files, exports):
        self._files, self._exports = files, exports
        super().__init__(*args)

    def do_GET(self):
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        if path == "/exports.json":
            document = {"models": self._exports, "border_db": BORDER_DB, "busy_ratio": BUSY_RATIO}
            self._answer(200, json.dumps(document).encode(), ".json")
        elif path in self._files and os.path.isfile(self._files[path]):
            with open(self._files[path], "rb") as file:
                self._answer(200, file.read(), os.path.splitext(self._files[path])[1])
        else:
            self._answer(404, b"not found", "")

    do_HEAD = do_GET

    def _answer(self, status, body, suffix):
        self.send_response(status)
        self.send_header("Content-Type", _TYPES.get(suffix, "application/octet-stream"))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        # SharedArrayBuffer, and so WebAssembly threads, exist on cross-origin isolated pages alone.
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_):
        """Quiet: a page load is some twenty requests."""


def _context(cert, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ValueError) as error:
            raise CannotRun(f"{cert}, {key}: no certificate and its key in PEM: {error.strerror or error}.") from error
        return context
    with tempfile.TemporaryDirectory() as folder:
        cert, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30", "-subj", "/CN=drcn"]
        names = ",".join(["DNS:localhost", *(f"IP:{address}" for address in _addresses())])
        command += ["-addext", f"subjectAltName={names}", "-keyout", key, "-out", cert]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (FileNotFoundError, subprocess.CalledProcessError) as error:
            raise CannotRun("--https needs the openssl command, or --cert and --key.") from error
        context.load_cert_chain(cert, key)
    return context


def _addresses():
    """This machine's addresses on its networks."""
    found = {"127.0.0.1"}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # A documentation address: this sends nothing, it only picks the route.
            found.add(probe.getsockname()[0])
        except OSError:
            pass
    return sorted(found)


def _announce(server, scheme):
    host, port = server.server_address[:2]
    print(f"On this machine   {scheme}://localhost:{port}/")
    others = [address for address in _addresses() if address != "127.0.0.1"] if host == "0.0.0.0" else []
    for address in others:
        print(f"On this network   {scheme}://{address}:{port}/")
    if others and scheme == "http":
        print("On another device threads and WebGPU need --https, or `adb reverse` and localhost.")
    if not others:
        print("Other devices are kept out; --host=0.0.0.0 --https lets a phone on this network in.")
    print("Ctrl-C ends.", flush=True)


if __name__ == "__main__":
    end(main)
