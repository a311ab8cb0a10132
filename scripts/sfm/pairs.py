"""Which photos to match with which, found from the features themselves: no vocabulary file is needed.

Each photo gets a VLAD vector (Jegou et al., Aggregating local descriptors into a compact image representation, CVPR 2010): its SIFT
descriptors go to the nearest of some visual words, learned from these photos, and what they differ from it by is summed for each word.
Photos whose vectors point the same way show the same things.
"""

import contextlib
import sqlite3

import cv2
import numpy as np

WORDS = 64
DESCRIPTORS_A_PHOTO = 1500
DESCRIPTORS_TO_LEARN_FROM = 60_000
LENGTH = 128  # of a SIFT descriptor


def similar_pairs(database, neighbours, seed=0):
    """Pairs (image id, image id), the smaller first, of each photo with the `neighbours` that look most like it.

    database: COLMAP's, with features.
    """
    with contextlib.closing(sqlite3.connect(database)) as connection:
        ids = [row[0] for row in connection.execute("SELECT image_id FROM descriptors WHERE rows > 0 ORDER BY image_id")]
        if len(ids) < 2:
            return []
        words = _words([_descriptors(connection, key, max(1, DESCRIPTORS_TO_LEARN_FROM // len(ids))) for key in ids], seed)
        vectors = np.stack([_vlad(_descriptors(connection, key, DESCRIPTORS_A_PHOTO), words) for key in ids])
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1)[:, :min(neighbours, len(ids) - 1)]
    return sorted({(min(ids[i], ids[j]), max(ids[i], ids[j])) for i, row in enumerate(nearest) for j in row})


@contextlib.contextmanager
def numbered_names(database):
    """Within the block the photos in `database` are named by their ids: lists of pairs are split at spaces, which names may contain."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        names = connection.execute("SELECT name, image_id FROM images").fetchall()
        with connection:
            connection.execute("UPDATE images SET name = CAST(image_id AS TEXT)")
    try:
        yield
    finally:
        with contextlib.closing(sqlite3.connect(database)) as connection, connection:
            connection.executemany("UPDATE images SET name = ? WHERE image_id = ?", names)


def _descriptors(connection, image, most):
    """At most `most` descriptors [k,128] float32 of a photo, spread over all it has."""
    rows, cols, data = connection.execute("SELECT rows, cols, data FROM descriptors WHERE image_id = ?", (image,)).fetchone()
    table = np.frombuffer(data, np.uint8).reshape(rows, cols)[:, :LENGTH]
    return table[np.linspace(0, rows - 1, min(rows, most)).astype(int)].astype(np.float32)


def _words(samples, seed):
    samples = np.concatenate(samples)
    cv2.setRNGSeed(seed)
    criteria = (cv2.TERM_CRITERIA_MAX_ITER, 15, 0)
    _, _, words = cv2.kmeans(samples, min(WORDS, len(samples)), None, criteria, 1, cv2.KMEANS_PP_CENTERS)
    return words


def _vlad(descriptors, words):
    nearest = np.argmin((words * words).sum(axis=1) - 2 * descriptors @ words.T, axis=1)
    sums = np.zeros_like(words)
    np.add.at(sums, nearest, descriptors - words[nearest])
    sums /= np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-6)  # each word counts alike, however often it occurs
    return (sums / np.linalg.norm(sums)).ravel()
