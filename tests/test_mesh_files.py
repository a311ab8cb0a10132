"""What viewers are told of a mesh's material: its colours are those of photos, so that no lamp of the viewer's may change them."""

import json
import struct

import numpy as np
import pytest
import trimesh

from nerf.mesh_parts.files import UNLIT, write_mesh, write_textured
from nerf.mesh_parts.surface import Mesh
from nerf.mesh_parts.texture import Layout

SHAPE = trimesh.creation.icosphere(1)
BALL = Mesh(np.float32(SHAPE.vertices), np.asarray(SHAPE.faces))
NORMALS = np.float32(SHAPE.vertices)


def tree_of(path):
    """The JSON of a .glb file."""
    content = path.read_bytes()
    (length,) = struct.unpack("<I", content[12:16])
    return json.loads(content[20 : 20 + length])


def layout_of(mesh, size=8):
    return Layout(np.arange(len(mesh.vertices)), mesh.faces, np.random.default_rng(0).uniform(0, size, (len(mesh.vertices), 2)), size, size)


@pytest.mark.parametrize("textured", [False, True])
def test_glb_is_unlit_and_no_metal(tmp_path, textured):
    write_mesh(tmp_path, BALL, NORMALS, np.full((len(NORMALS), 3), 0.5, np.float32))
    if textured:
        write_textured(tmp_path, BALL, NORMALS, layout_of(BALL), np.full((8, 8, 3), 0.5, np.float32))
    tree = tree_of(tmp_path / "mesh.glb")
    (material,) = tree["materials"]
    (primitive,) = tree["meshes"][0]["primitives"]
    assert UNLIT in tree["extensionsUsed"] and material["extensions"] == {UNLIT: {}} and primitive["material"] == 0
    assert material["pbrMetallicRoughness"]["metallicFactor"] == 0 and material["pbrMetallicRoughness"]["roughnessFactor"] == 1
    assert ("baseColorTexture" in material["pbrMetallicRoughness"], "COLOR_0" in primitive["attributes"]) == (textured, not textured)
