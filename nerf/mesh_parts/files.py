"""Files of a mesh: PLY, OBJ, glTF, with colours a vertex or a texture, and the frame in which their coordinates are."""

import json

import numpy as np
import trimesh
from PIL import Image
from trimesh.exchange.obj import export_obj
from trimesh.visual.material import PBRMaterial, SimpleMaterial
from trimesh.visual.texture import TextureVisuals

from nerf.files import writable, write_file
from nerf.images import to_uint8
from nerf.mesh_parts.surface import Mesh

UPRIGHT = np.array([[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0], [0, 0, 0, 1.0]])  # z up to y up, which glTF prescribes
WHITE, BLACK = [255, 255, 255, 255], [0, 0, 0, 255]
TEXTURE_FILES = ("mesh.mtl", "texture.png")
MATT = {"metallicFactor": 0.0, "roughnessFactor": 1.0}  # glTF's own default is metal, which is black where nothing is reflected
UNLIT = "KHR_materials_unlit"  # the colours are those of photos, with the scene's own light in them


def write_mesh(folder, mesh, normals, colours):
    """Writes mesh.ply, mesh.obj and mesh.glb into a folder, each with vertex colours and normals.

    PLY and OBJ hold world coordinates, z up. glTF holds the same, under a node that turns them y up, and its colours are linear, as that
    format prescribes; the others hold colours as the photos have them.

    Args:
        mesh: Mesh in the world; normals: [V, 3] float32, unit; colours: [V, 3] float32 in [0, 1].
    Raises:
        UserError: a file cannot be written.
    """
    shown = _trimesh(mesh, normals, vertex_colors=_bytes(colours))
    write_file(folder / "mesh.ply", shown.export(file_type="ply", vertex_normal=True))
    write_file(folder / "mesh.obj", shown.export(file_type="obj", include_normals=True, include_color=True).encode())
    shown.visual.vertex_colors = _bytes(linear(colours))
    write_file(folder / "mesh.glb", _glb(shown))
    for name in TEXTURE_FILES:
        with writable(folder / name):
            (folder / name).unlink(missing_ok=True)  # an earlier mesh.obj's


def write_textured(folder, mesh, normals, layout, picture):
    """Writes mesh.obj, with mesh.mtl and texture.png, and mesh.glb, which holds its texture, in the place of those without one.

    Args:
        mesh, normals: as of write_mesh; layout: nerf.mesh_parts.texture.Layout; picture: [H, W, 3] float32 in [0, 1], its texels.
    Raises:
        UserError: a file cannot be written.
    """
    shown = _trimesh(Mesh(mesh.vertices[layout.source], layout.faces), normals[layout.source])
    image = Image.fromarray(to_uint8(picture))
    matt = SimpleMaterial(image=image, diffuse=WHITE, ambient=WHITE, specular=BLACK, glossiness=0.0, name="texture")
    shown.visual = TextureVisuals(uv=layout.uv, material=matt)
    text, beside = export_obj(shown, include_normals=True, return_texture=True, mtl_name="mesh.mtl")
    for name, content in (*beside.items(), ("mesh.obj", text.encode())):
        write_file(folder / name, content)
    shown.visual.material = PBRMaterial(baseColorTexture=image, **MATT)
    write_file(folder / "mesh.glb", _glb(shown))


def linear(colours):
    """sRGB in [0, 1] -> linear light in [0, 1] (IEC 61966-2-1)."""
    return np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


def write_frame(path, scene, **facts):
    """Writes the JSON that says where a file's coordinates are, and how it was made.

    world_from_file and file_from_world are 4x4 matrices between the units of the scene's own camera file and the world, in which the file's
    coordinates are: z up, as in everything that the project writes.

    Args:
        scene: nerf.scene.Scene; facts: plain values, written beside the matrices.
    """
    world = np.eye(4)
    world[:3, :3] = scene.world.scale * scene.world.rotation
    world[:3, 3] = scene.world.points(np.zeros(3))
    content = {
        "frame": "world, z up",
        "scale": scene.scale,
        "world_from_file": world.tolist(),
        "file_from_world": np.linalg.inv(world).tolist(),
        **facts,
    }
    write_file(path, (json.dumps(content, indent=1) + "\n").encode())


def _trimesh(mesh, normals, **colours):
    return trimesh.Trimesh(mesh.vertices, mesh.faces, vertex_normals=normals, process=False, **colours)


def _glb(shown):
    upright = trimesh.Scene()
    upright.add_geometry(shown, geom_name="mesh", node_name="mesh", transform=UPRIGHT)
    return upright.export(file_type="glb", include_normals=True, tree_postprocessor=_need_no_light)


def _need_no_light(tree):
    """Makes the materials of a glTF tree unlit, matt where a program does not know that; gives one to what has none."""
    for material in tree.setdefault("materials", [{"pbrMetallicRoughness": MATT}]):
        material["extensions"] = {UNLIT: {}}
    for mesh in tree["meshes"]:
        for primitive in mesh["primitives"]:
            primitive.setdefault("material", 0)
    tree["extensionsUsed"] = [*tree.get("extensionsUsed", ()), UNLIT]


def _bytes(colours):
    return to_uint8(np.concatenate([colours, np.ones((len(colours), 1))], axis=1))
