# SPDX-License-Identifier: Apache-2.0
"""A web server whose first answer breaks off in the middle; it writes down what each request asked for.

Usage: interrupting_server.py FILE PORT LOG
"""

from __future__ import annotations

import http.server
import sys
from pathlib import Path

FILE, PORT, LOG = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves FILE at every path, whole or from an offset on."""

    def do_GET(self) -> None:
        """Answer 200 with everything, or 206 with the rest; the very first answer ends after half."""
        first = not LOG.exists()
        wanted = self.headers.get("Range")
        with LOG.open("a") as log:
            log.write(f"{wanted or 'everything'}\n")
        content = FILE.read_bytes()
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start : len(content) // 2] if first else content[start:])
        self.close_connection = True


http.server.HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
