"""Constant traffic to a web server, and to PostgreSQL when a second address is given. Nothing is tried twice.

    load.py HOST:PORT [HOST:PORT]
    load.py https://NAME@HOST:PORT

Prints what was done and what failed, once a second, as one line of JSON.
"""

import http.client
import json
import socket
import ssl
import struct
import sys
import threading
import time

done = {"new connections": 0, "requests on kept connections": 0, "WebSocket messages": 0, "queries": 0}
failed = []
versions = set()
PAUSE_S = 0.002
# Through an edge that is updated, a client's WebSocket lives so long: the old edge waits for its end.
TUNNEL_S = 2.0


# Who answers is no question here.
believes = ssl.create_default_context()
believes.check_hostname = False
believes.verify_mode = ssl.CERT_NONE


def split(address):
    host, port = address.rsplit(":", 1)
    return host, int(port)


class Web:
    """Where the web server is, and whether TLS is spoken with it."""

    def __init__(self, address):
        self.tls = address.startswith("https://")
        name, _, place = address.removeprefix("https://").rpartition("@")
        self.name = name or "app"
        self.place = split(place)

    def stream(self):
        stream = socket.create_connection(self.place, 10)
        return believes.wrap_socket(stream, server_hostname=self.name) if self.tls else stream

    def connection(self):
        connection = http.client.HTTPConnection(*self.place, timeout=10)
        if self.tls:
            connection.sock = self.stream()
            # It would connect anew, without TLS.
            connection.auto_open = 0
        return connection


def ask(connection, kind):
    connection.request("GET", "/", headers={"Host": web.name})
    answer = connection.getresponse()
    version = answer.read().decode()
    if answer.status != 200:
        raise OSError(f"status {answer.status}")
    versions.add(version)
    done[kind] += 1
    return answer.getheader("Connection") == "close"


def note(kind, error):
    failed.append(f"{kind}: {error!r}")
    # Not a flood of the same.
    time.sleep(0.05)


def new(web):
    while True:
        try:
            connection = web.connection()
            ask(connection, "new connections")
            connection.close()
        except (OSError, http.client.HTTPException) as error:
            note("new connection", error)
        time.sleep(PAUSE_S)


def kept(web):
    """A pool renews its connections from time to time, and when the server asks for it."""
    while True:
        try:
            connection = web.connection()
        except OSError as error:
            note("kept connection", error)
            continue
        for _ in range(200):
            try:
                if ask(connection, "requests on kept connections"):
                    break
            except (OSError, http.client.HTTPException) as error:
                note("kept connection", error)
                break
            time.sleep(PAUSE_S)
        connection.close()


def websocket(web):
    """Stays as long as the server does, or closes it itself; a close frame is a proper end, anything else is not."""
    while True:
        try:
            with web.stream() as stream:
                stream.sendall(
                    b"GET / HTTP/1.1\r\nHost: " + web.name.encode() + b"\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
                )
                reader = stream.makefile("rb")
                if b"101" not in reader.readline():
                    raise OSError("no 101")
                while reader.readline() not in (b"\r\n", b""):
                    pass
                ends = time.monotonic() + TUNNEL_S if web.tls else float("inf")
                while True:
                    if time.monotonic() > ends:
                        stream.sendall(b"\x88\x82\0\0\0\0\x03\xe8")  # 1000: done
                        break
                    stream.sendall(b"\x81\x82\0\0\0\0hi")
                    head = reader.read(2)
                    if len(head) < 2:
                        raise OSError("the connection ended without a close frame")
                    reader.read(head[1])
                    if head[0] & 0x0F == 8:
                        break
                    done["WebSocket messages"] += 1
                    time.sleep(0.01)
        except OSError as error:
            note("WebSocket", error)


class Postgres:
    """As much of PostgreSQL's protocol 3.0 as a query needs."""

    def __init__(self, address):
        self.stream = socket.create_connection(address, 10)
        self.reader = self.stream.makefile("rb")
        settings = b"user\0postgres\0database\0postgres\0\0"
        self.stream.sendall(struct.pack("!II", 8 + len(settings), 196608) + settings)
        self.until_ready()

    def until_ready(self):
        row = None
        while True:
            head = self.reader.read(5)
            if len(head) < 5:
                raise OSError("PostgreSQL ended the connection")
            kind, length = struct.unpack("!cI", head)
            body = self.reader.read(length - 4)
            if kind == b"E":
                raise OSError(body.decode(errors="replace"))
            if kind == b"D":
                row = body
            if kind == b"Z":
                return row

    def query(self, text):
        text = text.encode() + b"\0"
        self.stream.sendall(b"Q" + struct.pack("!I", 4 + len(text)) + text)
        return self.until_ready()


def queries(address):
    """A connection of a pool that never replaces it."""
    try:
        connection = Postgres(address)
        while True:
            if connection.query("select 1") is None:
                raise OSError("no row")
            done["queries"] += 1
            time.sleep(PAUSE_S)
    except OSError as error:
        note("PostgreSQL", error)


web = Web(sys.argv[1])
work = [(new, web), (new, web), (kept, web), (kept, web), (websocket, web), (websocket, web)]
if web.tls:
    work += [(kept, web)] * 4
if len(sys.argv) > 2:
    work += [(queries, split(sys.argv[2]))] * 4
for run, address in work:
    threading.Thread(target=run, args=(address,), daemon=True).start()
while True:
    time.sleep(1)
    print(json.dumps({"done": done, "failed": len(failed), "first": failed[:5], "versions": len(versions)}), flush=True)
