"""Repositories over HTTPS, as a forge serves them: git's own program behind a server of this machine."""

import os
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tests.server.names import certificate


@contextmanager
def git_server(folder: Path) -> Iterator[tuple[str, Path]]:
    """Serve the bare repositories below `folder`: the address, and a file of authorities that trusts it as well."""
    shown = certificate(folder, "localhost")
    usual = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
    trust = folder / "authorities.pem"
    trust.write_text((Path(usual).read_text() if usual else "") + shown.read_text())

    class Backend(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            asked = {
                "GIT_PROJECT_ROOT": str(folder),
                "GIT_HTTP_EXPORT_ALL": "1",
                "PATH_INFO": path,
                "QUERY_STRING": query,
                "REQUEST_METHOD": self.command,
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "CONTENT_LENGTH": self.headers.get("Content-Length", "0"),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            }
            body = self.rfile.read(int(asked["CONTENT_LENGTH"]))
            answer = subprocess.run(
                ["git", "http-backend"], env=os.environ | asked, input=body, stdout=subprocess.PIPE, check=True
            ).stdout
            headers, _, content = answer.partition(b"\r\n\r\n")
            fields = dict(line.split(": ", 1) for line in headers.decode().splitlines())
            self.send_response(int(fields.pop("Status", "200").split()[0]))
            for field in fields.items():
                self.send_header(*field)
            self.end_headers()
            self.wfile.write(content)

        do_POST = do_GET  # noqa: N815 - as the library wants it

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(shown)
    with ThreadingHTTPServer(("localhost", 0), Backend) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"https://localhost:{server.server_port}", trust
        finally:
            server.shutdown()
            thread.join()
