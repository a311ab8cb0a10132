"""Which photos COLMAP matches with which, and how its program is asked to."""

import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest

from captures import write_database

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from sfm.colmap_program import ColmapProgram
from sfm.pairs import numbered_names, similar_pairs
from sfm.reconstruct import attempts
from sfm.work import Features, Work


def test_matchers_follow_from_the_input():
    assert attempts("auto", 60, False) == [["exhaustive"]]
    assert attempts("auto", 60, True) == [["sequential", "retrieval"], ["exhaustive"]]
    assert attempts("auto", 2000, False) == [["sequential", "retrieval"]]
    assert attempts("spatial", 2000, True) == [["spatial"]]


def test_photos_that_look_alike_are_paired(tmp_path):
    random = np.random.default_rng(0)
    places = random.integers(0, 256, (5, 80, 128))
    tables = [np.clip(places[i % 5] + random.integers(-20, 20, (80, 128)), 0, 255).astype(np.uint8) for i in range(20)]
    write_database(tmp_path / "colmap.db", [*tables, np.zeros((0, 128), np.uint8)])
    pairs = similar_pairs(tmp_path / "colmap.db", 3)
    assert len(pairs) == 5 * 6 and all(a < b and a % 5 == b % 5 for a, b in pairs)


def test_names_come_back_after_the_pairs(tmp_path):
    file = tmp_path / "colmap.db"
    write_database(file, [np.zeros((1, 128), np.uint8)] * 2)
    names = "SELECT name FROM images ORDER BY image_id"
    with pytest.raises(KeyboardInterrupt), numbered_names(file):
        assert sqlite3.connect(file).execute(names).fetchall() == [("1",), ("2",)]
        raise KeyboardInterrupt
    assert sqlite3.connect(file).execute(names).fetchall() == [("photo 1.jpg",), ("photo 2.jpg",)]


@pytest.mark.parametrize("groups", [("SiftExtraction", "SiftMatching"), ("FeatureExtraction", "FeatureMatching")])
def test_option_names_are_those_of_the_program_at_hand(groups, tmp_path, monkeypatch):
    extraction, matching = groups
    names = (f"--database_path --image_path --image_list_path --match_list_path --match_type --ImageReader.camera_model --ImageReader.single_camera "
             f"--ImageReader.single_camera_per_image --{extraction}.max_image_size --{extraction}.use_gpu --SiftExtraction.estimate_affine_shape "
             f"--SiftExtraction.domain_size_pooling --{matching}.use_gpu --{matching}.guided_matching --SequentialMatching.overlap")
    program = tmp_path / "colmap"
    program.write_text(f'#!/bin/sh\necho "COLMAP 3.13 -- (Commit x on y with CUDA) sequential_matcher"\ncase "$*" in *-h) printf "%s\\n" {names} ;; *) echo "$@" >> "{tmp_path}/calls" ;; esac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    colmap, work = ColmapProgram(), Work(tmp_path, tmp_path, None, tmp_path / "log")
    features = Features("OPENCV", False, 900, False)
    assert colmap.has_matcher("sequential") and not colmap.has_matcher("transitive")
    colmap.extract(work, ["a b.jpg"], True, features)
    colmap.match(work, "sequential", features)
    colmap.match_pairs(work, [("1", "2")], features)
    calls = (tmp_path / "calls").read_text().splitlines()
    assert f"--{extraction}.max_image_size 900" in calls[0] and "--ImageReader.single_camera 1" in calls[0]
    assert f"--{matching}.guided_matching 0" in calls[1] and "--SequentialMatching.overlap 10" in calls[1]
    assert calls[2].startswith("matches_importer") and (tmp_path / "pairs.txt").read_text() == "1 2\n"
    assert colmap.name == "colmap 3.13 (program)" and (tmp_path / "photos.txt").read_text() == "a b.jpg\n"
