"""A web server as applications have one: HTTP with kept connections, WebSockets, and a graceful end on SIGTERM.

GET / answers with VERSION; GET / with `Upgrade: websocket` answers every frame with VERSION. VERSION decides what it
does besides: `exits`, `sick` and `dies` are versions that don't work.
"""

import base64
import hashlib
import http.server
import os
import signal
import socket
import sys
import threading

VERSION = os.environ["VERSION"]
if VERSION.startswith("exits"):
    sys.exit("this version can't read its settings")
leaving = threading.Event()


class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # The head and the body of an answer are two packets.
    disable_nagle_algorithm = True

    def do_GET(self):
        if self.headers.get("Upgrade", "").lower() == "websocket":
            return self.websocket()
        self.send_response(500 if VERSION.startswith("sick") else 200)
        self.send_header("Content-Length", str(len(VERSION)))
        if leaving.is_set():
            self.send_header("Connection", "close")
            self.close_connection = True
        self.end_headers()
        self.wfile.write(VERSION.encode())

    def websocket(self):
        """RFC 6455, with frames of up to 125 bytes."""
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            head = self.rfile.read(2)
            if len(head) < 2 or head[0] & 0x0F == 8:
                return
            self.rfile.read(4 + (head[1] & 0x7F))
            if leaving.is_set():
                self.wfile.write(b"\x88\x02\x03\xe9")  # 1001: going away
                return
            self.wfile.write(bytes([0x81, len(VERSION)]) + VERSION.encode())

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = False


def end(*_):
    leaving.set()
    threading.Thread(target=server.shutdown).start()


server = Server(("0.0.0.0", 8081), Answer)
signal.signal(signal.SIGTERM, end)
if VERSION.startswith("dies"):
    threading.Timer(1.0, lambda: os._exit(7)).start()
server.serve_forever()
# Waits for the threads that still answer somebody.
server.server_close()
