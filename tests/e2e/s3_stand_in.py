"""Runs in a container, in the place of the S3 server: moto, with one empty bucket. Everything is in its memory."""

from __future__ import annotations

import sys
import threading
import urllib.request

sys.path.insert(0, "/stand-in/site")  # the packages of the environment that runs the tests

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server

BUCKET = "http://127.0.0.1:9000/flypg"


def main() -> None:
    server = make_server("0.0.0.0", 9000, DomainDispatcherApplication(create_backend_app), threaded=True)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    urllib.request.urlopen(urllib.request.Request(BUCKET, method="PUT"), timeout=30).close()
    serving.join()


if __name__ == "__main__":
    main()
