"""scripts/bench_images.py --make: a scene of large photos from a real one."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import bench_images
from nerf.scene import load_scene
from scene_files import options, ring_scene


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["bench_images.py", *map(str, arguments)])
    return bench_images.main()


def test_a_made_scene_is_the_real_one_enlarged(tmp_path, monkeypatch):
    ring_scene(tmp_path / "real")
    assert run(monkeypatch, "--make", tmp_path / "large", "--like", tmp_path / "real", "--photos", 20, "--megapixels", 0.02) == 0
    real, large = (load_scene(options(tmp_path / name, data_format=kind)) for name, kind in (("real", "colmap"), ("large", "nerf")))
    assert len(large.names) == 20 and large.points.shape == real.points.shape
    np.testing.assert_allclose(large.cameras.sizes.prod(axis=1), 20_000, rtol=0.02)
    angle = [scene.cameras.sizes[0] / scene.cameras.intrinsics[0, :2] for scene in (real, large)]
    np.testing.assert_allclose(angle[1], angle[0], rtol=0.02)


def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys):
    ring_scene(tmp_path / "real")
    (tmp_path / "file").write_text("")
    for target, like in ((tmp_path / "file", tmp_path / "real"), (tmp_path / "large", tmp_path / "nowhere")):
        assert run(monkeypatch, "--make", target, "--like", like, "--photos", 2, "--megapixels", 0.01) == 1
        assert capsys.readouterr().err.startswith("bench_images.py: ")
    for flags in (["--photos", 0], ["--megapixels", "nan"]):
        with pytest.raises(SystemExit, match="2"):
            run(monkeypatch, "--make", tmp_path / "large", "--like", tmp_path / "real", *flags)
    assert not (tmp_path / "large").exists()
