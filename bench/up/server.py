"""Stands in for an application or a model server: server.py PORT [HOST:PORT]…

Connects to what it needs, once, ends if that isn't there, and answers every request from then on.
"""

import http.server
import signal
import socket
import sys
import threading


class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "3")
        self.end_headers()
        self.wfile.write(b"ok\n")

    def log_message(self, *_):
        pass


for needed in sys.argv[2:]:
    host, port = needed.split(":")
    socket.create_connection((host, int(port)), timeout=5).close()
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Answer)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
# Told to end, it does so at once, whether anybody asks it something or not.
server.serve_forever(poll_interval=0.01)
