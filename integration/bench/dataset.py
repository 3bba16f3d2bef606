"""Makes the directory that scripts/bench store backs up, by a real ChromaDB.

  dataset.py make PATH BYTES SEED     fills PATH until it takes BYTES on disk
  dataset.py change PATH SEED         writes 1 % of its documents anew, all in one collection
  dataset.py touch PATH SEED COUNT    writes COUNT consecutive documents anew

Documents are chunks of sources, twenty each: text of about five hundred bytes, some
metadata, and 384 floats. Embeddings of one source lie near each other, as those of one
text do. What is written anew is consecutive, as when a source is read in again.
"""

import os
import sys

import chromadb
import numpy
from chromadb.config import Settings

COLLECTIONS = ["articles", "manuals", "tickets", "notes", "code"]
DIMENSIONS = 384
BATCH = 1000
CHUNKS = 20  # of one source


def client(path):
    return chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))


def words():
    letters = numpy.array(list("aabcdeefghiiklmnooprsttuvwy"))
    rnd = numpy.random.default_rng(0)
    return numpy.array(["".join(rnd.choice(letters, n)) for n in rnd.integers(2, 11, 5000)])


VOCABULARY = words()


def batch(first, count, collection, seed):
    """The documents first … first+count-1 of a collection, as add and update take them."""
    numbers = range(first, first + count)
    sources = [n // CHUNKS for n in numbers]
    middle = {s: numpy.random.default_rng([collection, s]).standard_normal(DIMENSIONS) for s in set(sources)}
    rnd = numpy.random.default_rng([seed, collection, first])
    noise = rnd.standard_normal((count, DIMENSIONS)) * 0.3
    ranks = numpy.minimum(rnd.zipf(1.3, (count, 75)), len(VOCABULARY)) - 1  # frequent words are frequent
    return {
        "ids": ["id-%07d" % n for n in numbers],
        "embeddings": [(middle[s] + noise[i]).astype(numpy.float32) for i, s in enumerate(sources)],
        "documents": [" ".join(VOCABULARY[r]) for r in ranks],
        "metadatas": [{"source": "file-%d.txt" % s, "chunk": n % CHUNKS, "seed": seed} for n, s in zip(numbers, sources)],
    }


def size(path):
    return sum(os.path.getsize(os.path.join(folder, f)) for folder, _, files in os.walk(path) for f in files)


def make(path, wanted, seed):
    chroma = client(path)
    made = [chroma.create_collection(name, embedding_function=None) for name in COLLECTIONS]
    first = 0
    while True:
        for number, collection in enumerate(made):
            collection.add(**batch(first, BATCH, number, seed))
            if size(path) >= wanted:
                return
        first += BATCH


def touch(path, seed, count):
    chroma = client(path)
    number = seed % len(COLLECTIONS)
    collection = chroma.get_collection(COLLECTIONS[number], embedding_function=None)
    room = collection.count() - count
    first = int(numpy.random.default_rng(seed).integers(room + 1)) // CHUNKS * CHUNKS
    for start in range(first, first + count, BATCH):
        collection.update(**batch(start, min(BATCH, first + count - start), number, seed))


def change(path, seed):
    chroma = client(path)
    touch(path, seed, sum(c.count() for c in chroma.list_collections()) // 100)


if __name__ == "__main__":
    {"make": make, "change": change, "touch": touch}[sys.argv[1]](sys.argv[2], *map(int, sys.argv[3:]))
