"""A proxy that keeps CLIENT TRACKING from the server: the counter-proof of the tests of client-side caches.

    deaf.py SERVER_PORT

Prints the port it listens on. Everything passes unchanged in both directions but that command, in whose place the
server gets one with the same answer, OK. So a client believes that it will be told what changes, and never is: a
test of its cache that passes nevertheless could not fail at all.
"""

import socket
import sys
import threading

IN_ITS_PLACE = b"*3\r\n$6\r\nCLIENT\r\n$8\r\nNO-EVICT\r\n$3\r\nOFF\r\n"


def commands(stream):
    """The commands that arrive, each as its bytes and its words."""
    while line := stream.readline():
        words, raw = [], [line]
        for _ in range(int(line[1:])):
            header = stream.readline()
            word = stream.read(int(header[1:]) + 2)
            words.append(word[:-2])
            raw += [header, word]
        yield b"".join(raw), words


def to_server(client, server):
    with client.makefile("rb") as stream:
        try:
            for raw, words in commands(stream):
                is_tracking = [word.upper() for word in words[:2]] == [b"CLIENT", b"TRACKING"]
                server.sendall(IN_ITS_PLACE if is_tracking else raw)
        except OSError:
            pass
    hang_up(server)


def to_client(server, client):
    try:
        while data := server.recv(1 << 16):
            client.sendall(data)
    except OSError:
        pass
    hang_up(client)


def hang_up(connection):
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


def main():
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    while True:
        client, _ = listener.accept()
        server = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for pump, ends in ((to_server, (client, server)), (to_client, (server, client))):
            threading.Thread(target=pump, args=ends, daemon=True).start()


main()
