"""The ChromaDB side of package proof: reads requests as lines of JSON, answers each with one.

  proof.py apply PATH HNSW NAME…   a PersistentClient that applies writes to the collections, several at once
  proof.py ballast PATH            makes a database with a collection that nobody changes, so that copying takes a while
  proof.py check                   opens copies of databases and tells all that is in them

Document n in version v has the id id-%07d, the vector, the text and the metadata that
follow from n and v; integration/proof/operation.go knows the same rule.
"""

import json
import sqlite3
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import chromadb
import numpy as np
from chromadb.config import Settings

BALLAST, BALLAST_SIZE = "ballast", 4000
NEAR = 5  # a document must be among this many found by its own vector
GAMMA, MIX1, MIX2 = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))
STEPS = np.arange(1, 17, dtype=np.uint64) * GAMMA


def vector(n, version):
    """What harness.Vector makes of n*1000+version."""
    z = STEPS + np.uint64(n * 1000 + version)
    z = (z ^ (z >> np.uint64(30))) * MIX1
    z = (z ^ (z >> np.uint64(27))) * MIX2
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.float32) / np.float32(1 << 24)


def text(n, version):
    return "document %d version %d " % (n, version) * 10


def open_client(path):
    return chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))


def apply(path, hnsw, *names):
    chroma, say = open_client(path), threading.Lock()
    collections = {
        name: chroma.get_or_create_collection(
            name, configuration={"hnsw": json.loads(hnsw)}, embedding_function=None
        )
        for name in names
    }
    print(json.dumps({"ready": True}), flush=True)

    def handle(request):
        error = None
        try:
            getattr(collections[request["collection"]], request["verb"])(**request["body"])
        except Exception as e:
            error = "%s: %s" % (type(e).__name__, e)
        with say:
            print(json.dumps({"number": request["number"], "error": error}), flush=True)

    with ThreadPoolExecutor(16) as pool:
        for line in sys.stdin:
            pool.submit(handle, json.loads(line))


def ballast(path):
    client = open_client(path)
    target = client.create_collection(BALLAST, embedding_function=None)
    numbers = range(BALLAST_SIZE)
    for start in numbers[::500]:
        part = numbers[start : start + 500]
        target.add(
            ids=["id-%07d" % n for n in part],
            embeddings=[noise.tolist() for noise in np.random.default_rng(start).random((len(part), 256), np.float32)],
            documents=["%d " % n * 100 for n in part],
        )
    client.close()


def integrity(path):
    database = sqlite3.connect("file:%s/chroma.sqlite3?mode=rw" % path, uri=True)
    try:
        return "; ".join(row[0] for row in database.execute("PRAGMA integrity_check"))
    finally:
        database.close()


def check_collection(collection, problems):
    """Returns the version of each document, by its number."""

    def complain(what):
        problems.append("%s: %s" % (collection.name, what))

    records = collection.get(include=["embeddings", "documents", "metadatas"])
    count = collection.count()
    if count != len(records["ids"]):
        complain("counts %d documents and lists %d" % (count, len(records["ids"])))
    versions, wrong = {}, {"text": [], "vector": [], "lost": [], "far": []}
    for id, embedding, document, metadata in zip(
        records["ids"], records["embeddings"], records["documents"], records["metadatas"]
    ):
        n, version = int(id[3:]), int(metadata["version"])
        versions[n] = version
        if document != text(n, version):
            wrong["text"].append("%s version %d: %r" % (id, version, document))
        if not np.array_equal(np.asarray(embedding, dtype=np.float32), vector(n, version)):
            wrong["vector"].append("%s version %d" % (id, version))
    numbers = sorted(versions)
    for start in range(0, len(numbers), 250):
        part = numbers[start : start + 250]
        found = collection.query(
            query_embeddings=[vector(n, versions[n]) for n in part], n_results=NEAR, include=["distances"]
        )
        for n, ids, distances in zip(part, found["ids"], found["distances"]):
            id = "id-%07d" % n
            if id not in ids:
                wrong["lost"].append(id)
            elif distances[ids.index(id)] > 1e-9:
                wrong["far"].append(id)
    for kind, what in (
        ("text", "other text than belongs to the version in the metadata"),
        ("vector", "another vector than belongs to the version in the metadata"),
        ("lost", "not found by its own vector"),
        ("far", "found, but at a distance from its own vector"),
    ):
        if wrong[kind]:
            complain("%d of %d: %s: %s" % (len(wrong[kind]), len(versions), what, ", ".join(wrong[kind][:5])))
    return versions


def check_path(path):
    problems, collections, started = [], {}, time.monotonic()
    try:
        said = integrity(path)
        if said != "ok":
            problems.append("SQLite says: " + said[:300])
        client = open_client(path)
        try:
            for collection in client.list_collections():
                try:
                    if collection.name == BALLAST:
                        if len(collection.get(include=[])["ids"]) != BALLAST_SIZE:
                            problems.append("the ballast is not complete")
                        continue
                    collections[collection.name] = {}
                    collections[collection.name] = check_collection(collection, problems)
                except Exception as e:
                    problems.append("%s: %s: %s" % (collection.name, type(e).__name__, str(e)[:300]))
        finally:
            client.close()
    except Exception as e:
        problems.append("%s: %s" % (type(e).__name__, str(e)[:300]))
    return {"problems": problems, "collections": collections, "seconds": time.monotonic() - started}


def check():
    for line in sys.stdin:
        print(json.dumps(check_path(json.loads(line)["path"])), flush=True)


if __name__ == "__main__":
    {"apply": apply, "ballast": ballast, "check": check}[sys.argv[1]](*sys.argv[2:])
