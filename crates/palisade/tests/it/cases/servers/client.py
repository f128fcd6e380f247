"""Uses every server of the case by its name and protocol, and prints one line for each."""

import socket
import subprocess
import time
import urllib.request


def patiently(what):
    """Servers without a health check may still be starting."""
    for _ in range(150):
        try:
            return what()
        except OSError:
            time.sleep(0.2)
    return what()


def http(url):
    return patiently(lambda: urllib.request.urlopen(url, timeout=5).read().decode().strip())


def sql(host, query):
    command = ["psql", "-h", host, "-U", "postgres", "-Atc", query]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()


def line(host, port, text):
    with patiently(lambda: socket.create_connection((host, port), 5)) as connection:
        connection.sendall(text)
        return connection.recv(999).decode().strip()


def memcached_datagram():
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(5)
    client.sendto(b"\x00\x01\x00\x00\x00\x01\x00\x00version\r\n", ("memcached", 11211))
    data, sender = client.recvfrom(999)
    return data[8:].decode().split()[0], sender == (socket.gethostbyname("memcached"), 11211)


for server in ("pg-one", "pg-two"):
    print(server, sql(server, "select current_setting('cluster_name'), inet_client_addr(), inet_server_addr()"))
print("redis", line("redis", 6379, b"PING\r\n"))
print("memcached", line("memcached", 11211, b"version\r\n").split()[0])
print("memcached udp", *memcached_datagram())
for url in ("http://nginx:80/", "http://nginx/node", "http://node:3000/", "http://java:8000/"):
    print(url, http(url))
print("done", flush=True)
