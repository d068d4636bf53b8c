"""A source and a sink of UDP datagrams, each a process of its own.

    datagrams.py send ADDRESS PORT SIZE SECONDS     as fast as the socket takes them
    datagrams.py sink ADDRESS PORT                  counts until nothing has come for a second

One `sendmmsg` hands 64 datagrams to the kernel; all of them point to the same payload, so the sender's own work per
datagram is next to nothing and it offers more than any daemon can carry. It uses no segmentation offload: every datagram
is a packet on the tunnel device. Each prints one line of JSON.
"""

import ctypes
import json
import socket
import struct
import sys
import time

BATCH = 64
RECEIVE_BUFFER = 16 << 20
SO_RCVBUFFORCE = 33
MSG_WAITFORONE = 0x10000
QUIET_SECONDS = 1.0
PATIENCE_SECONDS = 20.0
PORT = 9

WORDS_PER_MESSAGE = 8  # struct mmsghdr on 64-bit machines
VECTOR_POINTER, VECTOR_COUNT = 2, 3


class Batch:
    """An array of `struct mmsghdr` that all share one buffer."""

    def __init__(self, size):
        self.buffer = ctypes.create_string_buffer(size)
        self.vector = (ctypes.c_uint64 * 2)(ctypes.addressof(self.buffer), size)
        self.messages = (ctypes.c_uint64 * (WORDS_PER_MESSAGE * BATCH))()
        for first in range(0, len(self.messages), WORDS_PER_MESSAGE):
            self.messages[first + VECTOR_POINTER] = ctypes.addressof(self.vector)
            self.messages[first + VECTOR_COUNT] = 1


def send(address, port, size, seconds):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect((address, port))
        batch, descriptor = Batch(size), sock.fileno()
        sent = 0
        began = now = time.monotonic()
        while now - began < seconds:
            # A negative result is a refusal: nobody listens yet, or no buffers.
            sent += max(0, libc.sendmmsg(descriptor, batch.messages, BATCH, 0))
            now = time.monotonic()
        return {"sent": sent, "seconds": now - began}


def sink(address, port):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        enlarge_receive_buffer(sock)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 100_000))
        sock.bind((address, port))
        print("ready", flush=True)
        batch, descriptor = Batch(2048), sock.fileno()
        received = 0
        began = first = last = time.monotonic()
        while True:
            count = libc.recvmmsg(descriptor, batch.messages, BATCH, MSG_WAITFORONE, None)
            now = time.monotonic()
            if count > 0:
                if not received:
                    first = now
                last = now
                received += count
            elif now - last > (QUIET_SECONDS if received else PATIENCE_SECONDS):
                return {"received": received, "seconds": last - first, "waited": first - began}


def enlarge_receive_buffer(sock):
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
    except PermissionError:
        pass  # not root, as in the self-test: whatever the system gives


def main(role, address, port, *rest):
    if role == "send":
        return send(address, int(port), int(rest[0]), float(rest[1]))
    return sink(address, int(port))


libc = ctypes.CDLL(None, use_errno=True)

if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])), flush=True)
