"""Reader of DTU scenes as IDR and NeuS lay them out: cameras_sphere.npz (or cameras.npz) beside the folders `image` and `mask`.

For photo i of the sorted folder, world_mat_i [4,4] projects the world to its pixels, and scale_mat_i [4,4] takes the unit sphere that
holds the object to the world. Pixels have their centres at whole numbers there. (Yariv et al., IDR, 2020; Wang et al., NeuS, 2021.)
"""

import numpy as np

from nerf.errors import UserError
from nerf.scene.cameras import LARGEST, OPENCV_TO_OPENGL, PERSPECTIVE
from nerf.scene.capture import Capture
from nerf.scene.folder import listing, photo_files, reduced
from nerf.scene.masks import named_masks
from nerf.scene.numpy_file import parse_npz
from nerf.scene.photo_places import photo_places
from nerf.scene.photos import read_headers

FILES = ("cameras_sphere.npz", "cameras.npz")
MAX_SKEW = 0.01  # of the focal length
PIXEL_CENTRE = 0.5  # in Cameras, of the pixel that these files count as 0
REMEDY = "copy the file again or export it anew"


def find_dtu(root):
    """The file of cameras of the scene in folder `root`, or None."""
    return next((root / name for name in FILES if (root / name).is_file()), None)


def read_dtu(root, options):
    """Capture of the DTU scene in folder `root`, in file-name order; the unit sphere of scale_mat stays what it is.

    options: downscale. Raises UserError for a missing or malformed file, and where its cameras and the photos are not equally many.
    """
    file = find_dtu(root)
    folder = next((root / name for name in ("image", "images") if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"{root}: there is no folder image (the folder holds {listing(root)}); put the photos there")
    full = photo_files(folder)
    projections, framed = _projections(file, len(full), folder)
    names = [photo.name for photo in full]
    files, moved = photo_places(root, [f"{folder.name}/{name}" for name in names], options.downscale)
    masks, notes = _masks(root, names, options.downscale)
    if masks:
        notes.append("what the masks leave out is usually the table under the object; move them elsewhere to learn it too, with a larger --bound")
    intrinsics, poses = zip(*(_decomposed(file, i, projection) for i, projection in enumerate(projections)), strict=True)
    return Capture(
        source=file, files=files, names=names, at_full_size=np.array([one == other for one, other in zip(files, full, strict=True)]),
        full_sizes=read_headers(full).sizes.astype(np.float64), poses=np.stack(poses), intrinsics=np.array(intrinsics),
        distortion=np.zeros((len(full), 6)), lens=np.full(len(full), PERSPECTIVE, dtype=np.int32), framed=framed, masks=masks,
        notes=[f"{len(full)} photos from {file}", *moved, *notes])


def _masks(root, names, downscale):
    """As named_masks; a folder `mask` of as many files is taken in its order, because its names (000.png) may not be the photos' (000000.png)."""
    if not (root / "mask").is_dir():
        return named_masks(root, names, downscale)
    files = photo_files(reduced(root, "mask/photo", downscale).parent)
    return (files, []) if len(files) == len(names) else named_masks(root, names, downscale, "mask")


def _projections(file, count, folder):
    """[count,3,4] from the unit sphere (else the world) to pixels, and whether it is the unit sphere."""
    try:
        arrays = parse_npz(file, r"(?:world|scale)_mat_\d{1,6}")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read ({getattr(error, 'strerror', None) or error}); {REMEDY}") from None
    held = sum(name.startswith("world") for name in arrays)
    if not count or held != count:
        raise UserError(f"{file}: {held} cameras (world_mat_0, ...) are not those of the {count} photos in {folder}; remove what is too many")
    framed = any(name.startswith("scale") for name in arrays)
    projections = []
    for i in range(count):
        scale = _matrix(file, arrays, f"scale_mat_{i}") if framed else np.eye(4)
        projections.append((_matrix(file, arrays, f"world_mat_{i}") @ scale)[:3])
    return projections, framed


def _matrix(file, arrays, name):
    matrix = arrays.get(name, np.zeros(0))
    if matrix.shape == (3, 4):
        matrix = np.vstack([matrix, (0, 0, 0, 1)])
    if matrix.shape != (4, 4) or not (np.abs(matrix) < LARGEST).all():  # NaN compares false
        raise UserError(f"{file}: {name} is no 4x4 matrix of sensible numbers; {REMEDY}")
    return matrix


def _decomposed(file, i, projection):
    """fx, fy, cx, cy as in Cameras and the camera-to-world pose [3,4] (OpenGL axes) of projection [3,4] = K [R | -R C]: Hartley & Zisserman, 6.2.4."""
    projection = projection / (np.abs(projection[:, :3]).max() or 1)
    projection = projection * (np.sign(np.linalg.det(projection[:, :3])) or 1)  # which is known up to its sign
    square = projection[:, :3]
    # QR of the matrix with its rows in reverse is its decomposition into upper triangle times rotation.
    q, r = np.linalg.qr(square[::-1].T)
    triangle, rotation = r.T[::-1, ::-1], q.T[::-1]
    signs = np.where(np.diag(triangle) < 0, -1.0, 1.0)
    triangle, rotation = triangle * signs, rotation * signs[:, None]
    if not np.diag(triangle).min() > 1e-9:
        raise UserError(f"{file}: world_mat_{i} projects everything to a line or a point; {REMEDY}")
    calibration = triangle / triangle[2, 2]
    if abs(calibration[0, 1]) > MAX_SKEW * calibration[0, 0]:
        raise UserError(f"{file}: world_mat_{i} is that of a camera with skewed pixels, which no lens here has; {REMEDY}")
    centre = -np.linalg.solve(square, projection[:, 3])
    intrinsics = calibration[0, 0], calibration[1, 1], calibration[0, 2] + PIXEL_CENTRE, calibration[1, 2] + PIXEL_CENTRE
    return intrinsics, np.column_stack([rotation.T * OPENCV_TO_OPENGL, centre])
