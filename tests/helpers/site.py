"""A site on this machine, for what is downloaded: texts, and as much of a hub as that needs."""

import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Site(http.server.ThreadingHTTPServer):
    """texts: path -> what is there; of "short" and "short.txt" all but the end is sent.

    files: those of every data set of the hub, path -> content. lists: data set -> what the hub
    answers instead when it is asked for its files. served: the files that were sent.
    """

    def __init__(self, texts: dict[str, str]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.texts = f"http://127.0.0.1:{self.server_port}", texts
        self.files: dict[str, bytes] = {}
        self.lists: dict[str, object] = {}
        self.served: list[str] = []

    def list_of(self, data_set: str) -> object:
        files = [{"type": "file", "path": p, "size": len(d)} for p, d in self.files.items()]
        folder = {"type": "directory", "path": "sample", "size": 0}
        return self.lists.get(data_set, [*files, folder])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        site, path = self.server, self.path.split("?")[0].strip("/")
        name, status, headers = path.split("/main/")[-1], 200, {}
        if "/tree/" in path:
            body = json.dumps(site.list_of(path.split("/")[2])).encode()
        elif "/resolve/" in path and name in site.files:
            body = site.files[name]
            headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": "c" * 40}
        elif path in site.texts:
            body = site.texts[path].encode()
            if path.startswith("short"):
                headers = {"Content-Length": "1000", "Connection": "close"}
        else:
            body, status = b"", 404
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)
            site.served += [name] if name in site.files else []

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@contextmanager
def site_with(texts: dict[str, str]) -> Iterator[Site]:
    """A site that is there as long as the block goes on."""
    with Site(texts) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        yield site
        site.shutdown()
