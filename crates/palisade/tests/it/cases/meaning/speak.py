"""What every service of the cases runs, under Palisade and under Docker alike: it says its name to whoever connects, and
asks others for theirs when it is told to through a socket in the folder that it lies in.

Usage: speak.py NAME [wait:SECONDS | tcp:PORT | udp:PORT | tcp:ADDRESS:PORT | tcp6only:PORT]...
"""

import concurrent.futures
import errno
import json
import os
import signal
import socket
import struct
import sys
import threading
import time

NAME = sys.argv[1]
TOKEN = os.urandom(6).hex()
PATIENCE_S = 1.0
binds = {}


def listen(spec):
    """Binds as asked and answers from then on; how it went is in `binds`."""
    kind, _, place = spec.partition(":")
    address, _, port = place.rpartition(":")
    six = kind.endswith("6only") or ":" in address
    kind_number = socket.SOCK_DGRAM if kind.startswith("udp") else socket.SOCK_STREAM
    server = socket.socket(socket.AF_INET6 if six else socket.AF_INET, kind_number)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if kind.endswith("6only"):
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    address = address.strip("[]") or ("::" if six else "0.0.0.0")
    try:
        server.bind((address, int(port)))
        if kind_number == socket.SOCK_STREAM:
            server.listen(64)
    except OSError as error:
        binds[spec] = errno.errorcode.get(error.errno, str(error))
        return
    binds[spec] = "bound"
    serve = answer_datagrams if kind_number == socket.SOCK_DGRAM else answer_connections
    threading.Thread(target=serve, args=(server,), daemon=True).start()


def answer_connections(server):
    while True:
        try:
            client, _ = server.accept()
            client.sendall(f"{NAME} {TOKEN}".encode())
            client.close()
        except OSError:
            pass


def answer_datagrams(server):
    while True:
        try:
            _, client = server.recvfrom(512)
            server.sendto(f"{NAME} {TOKEN}".encode(), client)
        except OSError:
            pass


def resolve(host, port, resolver, kind):
    """Addresses: as the C library finds them, or as a program that reads /etc/hosts and asks DNS by itself."""
    if resolver == "libc":
        return socket.getaddrinfo(host, port, 0, kind)
    found = []
    for line in open("/etc/hosts"):
        words = line.split("#")[0].split()
        if host in words[1:] and ":" not in words[0]:
            found.append(words[0])
    if not found:
        found = ask_dns(host)
    if not found:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")
    return [(socket.AF_INET, kind, 0, "", (address, port)) for address in found]


def ask_dns(host):
    servers = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
    question = b"".join(bytes([len(part)]) + part.encode() for part in host.split(".")) + b"\0" + struct.pack(">HH", 1, 1)
    for server in servers:
        family = socket.AF_INET6 if ":" in server else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as asker:
            asker.settimeout(PATIENCE_S)
            try:
                asker.connect((server, 53))
                asker.send(struct.pack(">HHHHHH", 4711, 0x100, 1, 0, 0, 0) + question)
                answer = asker.recv(2048)
            except OSError:
                continue
        count, position, found = struct.unpack(">H", answer[6:8])[0], 12 + len(question), []
        for _ in range(count):
            while answer[position] and answer[position] < 192:
                position += answer[position] + 1
            position += 2 if answer[position] else 1
            what, _, _, length = struct.unpack(">HHIH", answer[position : position + 10])
            position += 10
            if what == 1:
                found.append(socket.inet_ntoa(answer[position : position + length]))
            position += length
        return found
    return []


def outcome_of(error):
    if isinstance(error, socket.gaierror):
        return "unknown"
    if isinstance(error, (TimeoutError, socket.timeout)):
        return "silent"
    names = {errno.ECONNREFUSED: "closed", errno.EPERM: "denied", errno.EACCES: "denied", errno.ETIMEDOUT: "silent"}
    return names.get(error.errno, "unreachable")


def ask_once(ask):
    kind = socket.SOCK_DGRAM if ask["proto"] == "udp" else socket.SOCK_STREAM
    try:
        addresses = resolve(ask["host"], ask["port"], ask["resolver"], kind)
    except (OSError, UnicodeError) as error:
        return outcome_of(error) if isinstance(error, OSError) else "unknown"
    outcome = "unknown"
    for family, kind, _, _, address in addresses:
        with socket.socket(family, kind) as client:
            client.settimeout(PATIENCE_S)
            try:
                client.connect(address)
                if kind == socket.SOCK_DGRAM:
                    client.send(b"who")
                answer = client.recv(100).decode()
                # Something took the connection and closed it: Docker's port proxy when nobody is behind it.
                return answer or "closed"
            except OSError as error:
                outcome = outcome_of(error)
    return outcome


def ask(what):
    if what["kind"] == "binds":
        return binds.get(what["spec"], "never asked to")
    if what["kind"] == "address":
        try:
            return socket.getaddrinfo(what["host"], None, socket.AF_INET)[0][4][0]
        except OSError as error:
            return outcome_of(error)
    answers = [ask_once(what) for _ in range(what["times"])]
    names = sorted({answer.split(" ")[0] for answer in answers})
    different = len(set(answers))
    return " ".join(names) + (f" ({different} of them)" if what["times"] > 1 and different > 1 else "")


def obey(client):
    with client, concurrent.futures.ThreadPoolExecutor(32) as workers:
        text = client.makefile().readline()
        answers = list(workers.map(ask, json.loads(text)))
        client.sendall((json.dumps(answers) + "\n").encode())


def end(*_):
    os._exit(0)


signal.signal(signal.SIGTERM, end)
signal.signal(signal.SIGINT, end)
for spec in sys.argv[2:]:
    if spec.startswith("wait:"):
        time.sleep(float(spec[5:]))
    else:
        listen(spec)
control = socket.socket(socket.AF_UNIX)
folder = os.path.dirname(os.path.abspath(__file__))
control.bind(f"{folder}/{TOKEN}.new")
control.listen(16)
# Who finds the name finds somebody who accepts.
os.rename(f"{folder}/{TOKEN}.new", f"{folder}/{NAME}.{TOKEN}")
while True:
    threading.Thread(target=obey, args=(control.accept()[0],), daemon=True).start()
