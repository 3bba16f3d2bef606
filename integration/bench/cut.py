"""Calls whose times are taken: cut.py sync|create|commit FOLDER, until SIGINT. Prints
per call when it began and how long it took, in nanoseconds (real-time clock)."""

import os
import signal
import sqlite3
import sys
import time

kind, folder = sys.argv[1:]
ended = False


def end(*_):
    global ended
    ended = True


def sync():
    fd = os.open(os.path.join(folder, "synced"), os.O_RDWR | os.O_CREAT)

    def call(n):
        os.pwrite(fd, b"x" * 4096, n % 256 * 4096)
        os.fsync(fd)

    return call


def create():
    name = os.path.join(folder, "short-lived")

    def call(_):
        os.close(os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL))
        os.unlink(name)

    return call


def commit():
    db = sqlite3.connect(os.path.join(folder, "commits.sqlite3"), isolation_level=None)
    db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, x)")

    def call(n):
        db.execute("INSERT OR REPLACE INTO t VALUES (?, ?)", (n % 10000, "x" * 300))

    return call


signal.signal(signal.SIGINT, end)
call = {"sync": sync, "create": create, "commit": commit}[kind]()
times = []
n = 0
while not ended:
    began, start = time.time_ns(), time.monotonic_ns()
    call(n)
    times.append((began, time.monotonic_ns() - start))
    n += 1
    time.sleep(0.001)
for began, took in times:
    print(began, took)
