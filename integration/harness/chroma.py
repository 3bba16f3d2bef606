"""A ChromaDB application for the tests.

  chroma.py add PATH COLLECTION FROM COUNT    adds documents FROM … FROM+COUNT-1
  chroma.py load PATH COLLECTION…             adds until it is killed, says "COLLECTION n" for what is acknowledged
  chroma.py verify PATH                       prints what is there, as JSON

Document i has the id id-%07d and a vector that follows from i; harness/documents.go
knows the same rule.
"""

import json
import sqlite3
import sys
import threading

import chromadb
from chromadb.config import Settings

DIMENSIONS = 16
BATCH = 50
HNSW = {"hnsw": {"space": "l2", "sync_threshold": 200, "batch_size": 100}}
MASK = (1 << 64) - 1


def name(i):
    return "id-%07d" % i


def vector(i):
    state, values = i, []
    for _ in range(DIMENSIONS):
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        values.append(((z ^ (z >> 31)) >> 40) / float(1 << 24))
    return values


def client(path):
    return chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))


def open_collection(chroma, collection):
    return chroma.get_or_create_collection(collection, configuration=HNSW, embedding_function=None)


def put(collection, first, count):
    numbers = range(first, first + count)
    collection.add(
        ids=[name(i) for i in numbers],
        embeddings=[vector(i) for i in numbers],
        documents=["document %d" % i for i in numbers],
    )


def add(path, collection, first, count):
    target, first, count = open_collection(client(path), collection), int(first), int(count)
    for start in range(first, first + count, BATCH):
        put(target, start, min(BATCH, first + count - start))


def load(path, *collections):
    chroma = client(path)
    say = threading.Lock()

    def writer(collection):
        target = open_collection(chroma, collection)
        n = target.count()
        while True:
            put(target, n, BATCH)
            n += BATCH
            with say:
                print(collection, n, flush=True)

    threads = [threading.Thread(target=writer, args=(c,)) for c in collections]
    for t in threads:
        t.start()
    for t in threads:
        t.join()


def verify(path):
    database = sqlite3.connect("file:%s/chroma.sqlite3?mode=rw" % path, uri=True)
    integrity = database.execute("PRAGMA integrity_check").fetchone()[0]
    database.close()
    report = {"integrity": integrity, "collections": {}}
    for collection in client(path).list_collections():
        ids = sorted(collection.get(include=[])["ids"])
        gap = next((n for n, i in enumerate(ids) if i != name(n)), -1)
        lost = []
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            found = collection.query(
                query_embeddings=[vector(int(i[3:])) for i in part], n_results=3, include=["documents"]
            )
            lost += [
                i
                for i, near, texts in zip(part, found["ids"], found["documents"])
                if i not in near or "document %d" % int(i[3:]) not in texts
            ]
        report["collections"][collection.name] = {
            "count": collection.count(), "ids": len(ids), "gap": gap, "lost": lost[:5], "lost_count": len(lost),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    {"add": add, "load": load, "verify": verify}[sys.argv[1]](*sys.argv[2:])
