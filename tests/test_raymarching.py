"""Rays, boxes, Morton codes, bit packing, contraction, and the arguments that every operator refuses."""

import cv2
import numpy as np
import pytest
import torch

import raymarching
from raymarching import ops, reference

FLOAT_MAX = torch.finfo(torch.float32).max
compiled = pytest.mark.skipif(ops.kernels is reference, reason="no compiler: the kernels are their own twin")

LENSES = {
    "pinhole": (0, [0, 0, 0, 0, 0, 0]),
    "radial": (0, [0.12, -0.06, 0.01, 0, 0, 0]),
    "opencv": (0, [-0.21, 0.07, 0, 0, 0.002, -0.003]),
    "k4": (0, [0.05, 0.02, -0.01, 0.004, 0.001, 0.001]),
    "fisheye": (1, [0.04, -0.02, 0.006, -0.001, 0, 0]),
    "plain fisheye": (1, [0, 0, 0, 0, 0, 0]),
}


def project(kind, k, points):
    """OpenCV's models, literally: points [N, 3] in camera axes (z forward) -> distorted image points [N, 2]."""
    k1, k2, k3, k4, p1, p2 = k
    x, y = points[:, 0] / points[:, 2], points[:, 1] / points[:, 2]
    r = np.hypot(x, y)
    if kind == 1:
        theta = np.arctan(r)
        scale = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8) / r
        return np.stack([x * scale, y * scale], 1)
    radial = 1 + k1 * r**2 + k2 * r**4 + k3 * r**6 + k4 * r**8
    return np.stack([x * radial + 2 * p1 * x * y + p2 * (r**2 + 2 * x**2), y * radial + p1 * (r**2 + 2 * y**2) + 2 * p2 * x * y], 1)


def random_pose(generator):
    rotation = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
    rotation[:, 0] *= torch.linalg.det(rotation)
    return torch.cat([rotation, torch.randn(3, 1, generator=generator, dtype=torch.float64)], 1).float()


def rays_of(pixels, pose, intrinsics, k, kind):
    return raymarching.generate_rays(
        torch.zeros(len(pixels), dtype=torch.int64),
        pixels,
        pose[None],
        torch.tensor([intrinsics], dtype=torch.float32),
        torch.tensor([k], dtype=torch.float32),
        torch.tensor([kind], dtype=torch.int32),
    )


@pytest.mark.parametrize("name", LENSES)
def test_rays_invert_the_projection(name):
    kind, k = LENSES[name]
    generator = torch.Generator().manual_seed(1)
    pose, (fx, fy, cx, cy) = random_pose(generator), (900.0, 880.0, 400.0, 310.0)
    pixels = torch.rand(500, 2, generator=generator) * torch.tensor([800.0, 600.0])
    origins, directions = rays_of(pixels, pose, (fx, fy, cx, cy), k, kind)
    assert torch.allclose(directions.norm(dim=1), torch.ones(500), atol=1e-6)
    assert torch.equal(origins, pose[:, 3].expand(500, 3))
    camera = (directions.double() @ pose[:, :3].double()).numpy() * [1, -1, -1]
    image = project(kind, k, camera) * [fx, fy] + [cx, cy]
    assert np.abs(image - pixels.numpy()).max() < 2e-3  # pixels


@pytest.mark.parametrize("name", ["radial", "opencv", "fisheye"])
def test_rays_agree_with_opencv(name):
    kind, k = LENSES[name]
    matrix = np.array([[700.0, 0, 320], [0, 710.0, 240], [0, 0, 1]])
    points = np.random.default_rng(2).uniform([-1.0, -0.8, 2.5], [1.0, 0.8, 3.5], (200, 3))
    if kind == 1:
        pixels = cv2.fisheye.projectPoints(points[:, None], np.zeros(3), np.zeros(3), matrix, np.array(k[:4]))[0][:, 0]
    else:
        pixels = cv2.projectPoints(points, np.zeros(3), np.zeros(3), matrix, np.array([k[0], k[1], k[4], k[5], k[2]]))[0][:, 0]
    pose = torch.eye(4)[:3]
    _, directions = rays_of(torch.tensor(pixels, dtype=torch.float32), pose, (700, 710, 320, 240), k, kind)
    expected = points * [1, -1, -1] / np.linalg.norm(points, axis=1, keepdims=True)
    assert np.abs(directions.numpy() - expected).max() < 2e-6


def test_fisheye_sees_behind_the_image_plane():
    pixels = torch.tensor([[100 + 100 * 2.0, 100.0]])  # theta_d = 2 rad, more than a right angle
    _, directions = rays_of(pixels, torch.eye(4)[:3], (100, 100, 100, 100), [0] * 6, 1)
    assert torch.allclose(directions, torch.tensor([[np.sin(2.0), 0, -np.cos(2.0)]], dtype=torch.float32), atol=1e-6)


def test_a_lens_without_inverse_gives_finite_rays():
    pixels = torch.rand(300, 2) * 4000 - 2000
    for kind, k in [
        (0, [-0.5, 0, 0, 0, 0, 0]),
        (0, [-0.4, 0.1, -2, 0, 0.05, 0.05]),
        (1, [-0.5, 0, 0, 0, 0, 0]),
        (0, [1e6, -1e9, 1e12, 0, 0, 0]),
    ]:
        _, directions = rays_of(pixels, torch.eye(4)[:3], (500, 500, 0, 0), k, kind)
        assert directions.isfinite().all()


def mixed_cameras(count=400):
    """Every lens at once, and two image indices that do not exist."""
    generator = torch.Generator().manual_seed(3)
    image = torch.randint(len(LENSES), (count,), generator=generator)
    image[:2] = torch.tensor([-1, len(LENSES)])
    poses = torch.stack([random_pose(generator) for _ in LENSES])
    distortion = torch.tensor([k for _, k in LENSES.values()], dtype=torch.float32)
    lens = torch.tensor([kind for kind, _ in LENSES.values()], dtype=torch.int32)
    return (
        image,
        torch.rand(count, 2, generator=generator) * 500,
        poses,
        torch.tensor([[600.0, 620, 250, 240]] * len(LENSES)),
        distortion,
        lens,
    )


def test_generate_rays_equals_the_twin():
    cameras = mixed_cameras()
    for ours, twin in zip(raymarching.generate_rays(*cameras), reference.generate_rays(*cameras)):
        assert torch.allclose(ours, twin, atol=3e-6, equal_nan=True)
        assert ours[:2].isnan().all() and ours[2:].isfinite().all()


def boxed_rays(count=2000):
    generator = torch.Generator().manual_seed(4)
    origins = torch.randn(count, 3, generator=generator) * 2
    directions = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=1)
    directions[::7, 0] = 0
    directions[::21, 1] = -0.0
    directions[5], origins[6], directions[8] = 0, float("nan"), float("nan")
    origins[::35, :] = 1.0  # on a corner of the box
    return origins, directions, torch.tensor([-1.0, -1, -1, 1, 1, 1])


def test_near_far_against_a_literal_slab_test():
    origins, directions, aabb = boxed_rays()
    near, far = raymarching.near_far_from_aabb(origins, directions, aabb, 0.05)
    hits = 0
    for o, d, n, f in zip(origins.tolist(), directions.tolist(), near.tolist(), far.tolist()):
        first, last = 0.05, np.inf
        for axis in range(3):
            if d[axis] == 0:
                last = last if -1 <= o[axis] <= 1 else -np.inf
                continue
            low, high = sorted([(-1 - o[axis]) / d[axis], (1 - o[axis]) / d[axis]])
            first, last = max(first, low), min(last, high)
        if np.isnan(o + d).any() or not first < last < np.inf:
            assert n == f == FLOAT_MAX
        else:
            hits += 1
            assert n >= np.float32(0.05) and np.isclose(n, first, rtol=1e-5) and np.isclose(f, last, rtol=1e-5)
    assert 200 < hits < 1800
    for ours, twin in zip((near, far), reference.near_far_from_aabb(origins, directions, aabb, 0.05)):
        assert torch.equal(ours, twin)


def test_morton_codes_invert_and_interleave():
    coords = torch.randint(1024, (5000, 3), dtype=torch.int32)
    codes = raymarching.morton3D(coords)
    assert torch.equal(raymarching.morton3D_invert(codes), coords)
    assert torch.equal(codes, reference.morton3D(coords)) and torch.equal(reference.morton3D_invert(codes), coords)
    every = torch.arange(16**3, dtype=torch.int32)
    assert torch.equal(raymarching.morton3D(raymarching.morton3D_invert(every)), every)
    x, y, z = coords[0].tolist()
    spread = [int("".join(bits), 2) for bits in [[f"{z:010b}"[i] + f"{y:010b}"[i] + f"{x:010b}"[i] for i in range(10)]]]
    assert codes[0].item() == spread[0]


def test_packbits_equals_numpy():
    density, threshold = torch.randn(8 * 999), torch.tensor([0.3])
    density[:3] = torch.tensor([0.3, float("nan"), float("inf")])
    expected = np.packbits((density > 0.3).numpy(), bitorder="little")
    assert np.array_equal(raymarching.packbits(density, threshold).numpy(), expected)
    assert np.array_equal(reference.packbits(density, threshold).numpy(), expected)


def test_contract():
    positions = torch.randn(3000, 3) * torch.logspace(-1, 3, 3000)[:, None]
    ours = raymarching.contract(positions)
    assert torch.equal(ours, reference.contract(positions))
    assert ours.abs().max() < 2
    for p, q in zip(positions[::50].tolist(), ours[::50].tolist()):
        m = max(map(abs, p))
        literal = p if m <= 1 else [np.sign(x) * (2 - 1 / m) if abs(x) == m else x / m for x in p]
        assert np.allclose(q, literal, atol=1e-6)
    assert torch.equal(raymarching.contract(torch.tensor([[0.3, -1.0, 1.0]])), torch.tensor([[0.3, -1.0, 1.0]]))


def test_flatten_rays_inverts_the_packing():
    rays = torch.tensor([[4, 3], [0, 0], [0, 2], [-1, 2], [9, 5], [7, 1], [3, -4]], dtype=torch.int32)
    expected = [2, 2, -1, -1, 0, 0, 0, 5, -1, -1, -1]
    assert raymarching.flatten_rays(rays, 11).tolist() == reference.flatten_rays(rays, 11).tolist() == expected
    count = torch.randint(0, 50, (1000,))
    rays = torch.stack([count.cumsum(0) - count, count], 1).int()
    assert torch.equal(raymarching.flatten_rays(rays, int(count.sum())).long(), torch.arange(1000).repeat_interleave(count))


def test_sphere_coordinates():
    origins, directions, _ = boxed_rays()
    origins, directions = origins / 3, directions * torch.rand(len(origins), 1)
    ours, twin = raymarching.sph_from_ray(origins, directions, 4.0), reference.sph_from_ray(origins, directions, 4.0)
    assert torch.allclose(ours, twin, atol=1e-5, equal_nan=True)
    assert ours[[5, 6, 8]].isnan().all()
    theta, phi = (ours[:, 0] + 1) / 2 * np.pi, ours[:, 1] * np.pi
    point = 4 * torch.stack([theta.sin() * phi.cos(), theta.cos(), theta.sin() * phi.sin()], 1)
    along = ((point - origins) * directions).sum(1, keepdim=True) / directions.square().sum(1, keepdim=True)
    good = (directions.norm(dim=1) > 0.01) & ours.isfinite().all(1)
    assert good.sum() > 1900
    assert (along[good] > 0).all() and torch.allclose((origins + along * directions)[good], point[good], atol=1e-3)
    centre = torch.zeros(3, 3), torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]])
    assert torch.allclose(raymarching.sph_from_ray(*centre, 1.0), torch.tensor([[-1.0, 0], [0, 0], [0, 0.5]]), atol=1e-6)
    assert raymarching.sph_from_ray(torch.tensor([[0.0, 5, 0]]), torch.tensor([[1.0, 0, 0]]), 1.0).isnan().all()  # misses


def test_empty_inputs():
    none = torch.zeros(0, 3)
    assert [x.shape for x in raymarching.near_far_from_aabb(none, none, torch.zeros(6), 0.1)] == [(0,), (0,)]
    assert raymarching.morton3D(none.int()).shape == (0,) and raymarching.morton3D_invert(torch.zeros(0, dtype=torch.int32)).shape == (0, 3)
    assert raymarching.packbits(torch.zeros(0), torch.zeros(1)).shape == (0,) and raymarching.contract(none).shape == (0, 3)
    assert raymarching.sph_from_ray(none, none, 1.0).shape == (0, 2)
    assert raymarching.flatten_rays(torch.zeros(0, 2).int(), 3).tolist() == [-1, -1, -1]
    assert raymarching.flatten_rays(torch.zeros(2, 2).int(), 0).shape == (0,)
    cameras = mixed_cameras()
    assert raymarching.generate_rays(cameras[0][:0], cameras[1][:0], *cameras[2:])[1].shape == (0, 3)


@compiled
def test_opcheck():
    cameras = [x[2:] if i < 2 else x for i, x in enumerate(mixed_cameras(9))]  # without NaN, which equals nothing
    origins, directions, aabb = torch.randn(9, 3), torch.randn(9, 3), torch.tensor([-1.0, -1, -1, 1, 1, 1])
    raw = torch.ops.raymarching
    for operator, arguments in [
        (raw.generate_rays, cameras),
        (raw.near_far_from_aabb, (origins, directions, aabb, 0.1)),
        (raw.morton3D, (torch.randint(99, (4, 3), dtype=torch.int32),)),
        (raw.morton3D_invert, (torch.randint(99, (4,), dtype=torch.int32),)),
        (raw.packbits, (torch.randn(16), torch.zeros(1))),
        (raw.contract, (origins,)),
        (raw.flatten_rays, (torch.tensor([[1, 2], [0, 1]], dtype=torch.int32), 4)),
        (raw.sph_from_ray, (origins * 0.1, directions, 2.0)),
    ]:
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize(
    "operator, position, wrong, error",
    [
        ("generate_rays", 0, torch.zeros(400, dtype=torch.int32), (TypeError, "image must be torch.int64, got torch.int32")),
        ("generate_rays", 2, torch.zeros(6, 4, 4), (ValueError, r"poses must have the shape \[6, 3, 4\], got \[6, 4, 4\]")),
        ("generate_rays", 1, None, (TypeError, "pixels must be a tensor")),
        ("generate_rays", 4, torch.zeros(6, 6, device="meta"), (ValueError, "distortion is on meta but image is on cpu")),
        ("near_far_from_aabb", 2, torch.zeros(2, 3), (ValueError, "aabb")),
        ("near_far_from_aabb", 0, torch.zeros(2000, 3, dtype=torch.float64), (TypeError, "origins")),
        ("morton3D", 0, torch.zeros(4, 3), (TypeError, "coords")),
        ("morton3D_invert", 0, torch.zeros(4, 1, dtype=torch.int32), (ValueError, "indices")),
        ("packbits", 0, torch.zeros(12), (ValueError, "density must hold a multiple of 8")),
        ("packbits", 1, torch.tensor(0.1), (ValueError, "threshold")),
        ("contract", 0, torch.zeros(4, 2), (ValueError, "positions")),
        ("flatten_rays", 0, torch.zeros(4, 2), (TypeError, "rays")),
        ("flatten_rays", 1, -1, (ValueError, "samples")),
        ("sph_from_ray", 1, torch.zeros(3, 3), (ValueError, "directions")),
        ("sph_from_ray", 2, 0.0, (ValueError, "radius")),
    ],
)
def test_bad_arguments_are_named(operator, position, wrong, error):
    good = {
        "generate_rays": mixed_cameras(),
        "near_far_from_aabb": (*boxed_rays(), 0.1),
        "morton3D": (torch.zeros(4, 3).int(),),
        "morton3D_invert": (torch.zeros(4).int(),),
        "packbits": (torch.zeros(16), torch.zeros(1)),
        "contract": (torch.zeros(4, 3),),
        "flatten_rays": (torch.zeros(4, 2).int(), 5),
        "sph_from_ray": (torch.zeros(4, 3), torch.zeros(4, 3), 1.0),
    }[operator]
    arguments = list(good)
    arguments[position] = wrong
    with pytest.raises(error[0], match=error[1]):
        getattr(raymarching, operator)(*arguments)


@pytest.mark.gpu
def test_cuda_equals_cpu():
    cameras, (origins, directions, aabb) = mixed_cameras(4000), boxed_rays(4000)
    coords = torch.randint(1024, (5000, 3), dtype=torch.int32)
    for operator, arguments, tolerance in [
        (raymarching.generate_rays, cameras, 3e-6),
        (raymarching.near_far_from_aabb, (origins, directions, aabb, 0.1), 0),
        (raymarching.morton3D, (coords,), 0),
        (raymarching.morton3D_invert, (raymarching.morton3D(coords),), 0),
        (raymarching.packbits, (torch.randn(80000), torch.zeros(1)), 0),
        (raymarching.contract, (origins * 5,), 0),
        (raymarching.flatten_rays, (torch.tensor([[5, 90], [0, 2], [-1, 3]], dtype=torch.int32), 100), 0),
        (raymarching.sph_from_ray, (origins / 3, directions, 4.0), 3e-6),
    ]:
        on_cpu = operator(*arguments)
        on_cuda = operator(*(x.cuda() if isinstance(x, torch.Tensor) else x for x in arguments))
        for one, other in zip(*((x,) if isinstance(x, torch.Tensor) else x for x in (on_cpu, on_cuda))):
            assert torch.allclose(one.double(), other.cpu().double(), atol=tolerance, rtol=tolerance, equal_nan=True), operator.__name__
