"""What the quickstart's ChromaDB does: an ordinary PersistentClient, nothing special.

  quickstart.py add PATH      adds a few documents
  quickstart.py query PATH    prints what three searches find

The embeddings are given here, so that no model has to be downloaded: three
numbers per document, saying how much it is about the sea, the city and food.
"""

import sys

import chromadb
from chromadb.config import Settings

DOCUMENTS = {
    "lighthouse": ("A lighthouse keeper watches the storm.", [0.9, 0.1, 0.0]),
    "harbour": ("Fishing boats come home to the harbour.", [0.8, 0.3, 0.3]),
    "tram": ("The last tram rattles through the suburbs.", [0.0, 1.0, 0.0]),
    "market": ("The market sells bread, cheese and olives.", [0.0, 0.5, 0.9]),
    "soup": ("A slow soup of lentils and smoked paprika.", [0.0, 0.0, 1.0]),
    "chowder": ("Clam chowder tastes best within sight of the waves.", [0.6, 0.0, 0.8]),
}
SEARCHES = {"the sea": [1.0, 0.0, 0.0], "the city": [0.0, 1.0, 0.0], "food by the sea": [0.6, 0.1, 0.7]}


def main(command, path):
    client = chromadb.PersistentClient(path, settings=Settings(anonymized_telemetry=False))
    collection = client.get_or_create_collection("quickstart", embedding_function=None)
    if command == "add":
        collection.upsert(
            ids=list(DOCUMENTS),
            documents=[text for text, _ in DOCUMENTS.values()],
            embeddings=[vector for _, vector in DOCUMENTS.values()],
        )
    print(f"  {collection.count()} documents")
    for topic, vector in SEARCHES.items():
        found = collection.query(query_embeddings=[vector], n_results=2)
        print(f"  about {topic}: " + " | ".join(found["documents"][0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
