"""The rays that a step draws: each must belong to the pixel whose colour it is to reach."""

import numpy as np
import pytest
import torch

from nerf.rays import RayCount, RaySource, Views
from nerf.scene import Cameras, Photos, Scene

SIZES = np.array([[12, 9], [7, 15], [20, 4]], dtype=np.int32)


def three_photos(channels=3):
    """Three photos of different sizes whose pixels tell where they are: (x, y, 10 photo[, alpha])."""
    images = []
    for k, (width, height) in enumerate(SIZES):
        x, y = np.meshgrid(np.arange(width), np.arange(height))
        images.append(np.stack([x, y, np.full_like(x, 10 * k), np.full_like(x, 128)][:channels], axis=-1).reshape(-1, channels).astype(np.uint8))
    offsets = np.cumsum([0, *map(len, images)]).astype(np.int64)
    poses = np.tile(np.eye(4, dtype=np.float32)[:3], (3, 1, 1))
    poses[:, :, 3] = np.arange(9).reshape(3, 3)
    intrinsics = np.array([[10, 11, 6, 4], [8, 8, 3.5, 7], [15, 14, 10, 2]], dtype=np.float32)
    cameras = Cameras(poses, intrinsics, np.zeros((3, 6), np.float32), np.zeros(3, np.int32), SIZES, np.full(3, 0.1, np.float32), np.full(3, np.inf, np.float32))
    index = np.arange(3)
    box = np.array([-50.0] * 3 + [50.0] * 3, dtype=np.float32)
    return Scene("three", None, cameras, Photos(np.concatenate(images), offsets), list("abc"), None, index, index[:1], index[:1], 1.0, 64.0, box, [])


def source_of(scene, indices, **changes):
    views = Views(scene.cameras, scene.aabb, torch.device("cpu"))
    return RaySource(scene, np.array(indices), views, 500, **{"cache": "auto", "preload": True, "mixed": True, "seed": 0} | changes), views


def drawn(source, count=500, seed=0):
    """A batch of fresh random numbers."""
    source.fetch(seed)
    return source.draw(torch.rand(500, 3, generator=torch.Generator().manual_seed(seed)), torch.tensor([count], dtype=torch.int32))


@pytest.mark.parametrize("preload", [True, False])
def test_each_ray_belongs_to_its_pixel(preload):
    scene = three_photos()
    source, views = source_of(scene, [0, 2], preload=preload)
    rays, target = drawn(source)
    told = (target * 255).round().long()
    assert torch.equal(rays.image * 10, told[:, 2]) and set(rays.image.tolist()) == {0, 2}
    assert rays.count == 500 and len(rays.near) == 500
    local = torch.einsum("nij,ni->nj", views.poses[rays.image][:, :, :3], rays.directions)
    fx, fy, cx, cy = views.intrinsics[rays.image].T
    pixel = torch.stack([fx * local[:, 0] / -local[:, 2] + cx, -fy * local[:, 1] / -local[:, 2] + cy], dim=-1)
    torch.testing.assert_close(pixel, told[:, :2] + 0.5, rtol=0, atol=1e-3)
    torch.testing.assert_close(rays.directions.norm(dim=-1), torch.ones(500))
    torch.testing.assert_close(rays.origins, views.poses[rays.image][:, :, 3])


def test_every_pixel_can_be_drawn_and_none_outside():
    source, _ = source_of(three_photos(), [1])
    seen = torch.cat([(drawn(source, seed=seed).target * 255).round().long() for seed in range(20)])
    assert {(x, y) for x, y, _ in seen.tolist()} == {(x, y) for x in range(7) for y in range(15)}


def test_one_photo_a_step():
    source, _ = source_of(three_photos(), [0, 1, 2], mixed=False)
    images = [drawn(source, seed=seed).rays.image for seed in range(20)]
    assert all((image == image[0]).all() for image in images)
    assert {int(image[0]) for image in images} == {0, 1, 2}


def test_alpha_comes_along():
    source, _ = source_of(three_photos(channels=4), [0, 1, 2])
    assert torch.allclose(drawn(source).target[:, 3], torch.tensor(128 / 255))


def test_a_views_rays_go_row_by_row():
    _, views = source_of(three_photos(), [0])
    rays = views.image_rays(1)
    assert len(rays.near) == 7 * 15 and int(rays.count) == 105
    torch.testing.assert_close(rays.directions[7 + 2], views.rays(torch.tensor([1]), torch.tensor([[2.5, 1.5]])).directions[0])


def test_limits_of_views_narrow_the_box():
    scene = three_photos()
    scene.cameras.near[1], scene.cameras.far[1] = 2.0, 5.0
    views = Views(scene.cameras, scene.aabb, torch.device("cpu"))
    rays = views.image_rays(1)
    assert (rays.near == 2).all() and (rays.far == 5).all()
    assert (views.image_rays(0).near == pytest.approx(0.1)) and (views.image_rays(0).far > 5).all()


def test_ray_count_follows_the_samples():
    count = RayCount(100, True, 1000, 4096, torch.device("cpu"))
    for _ in range(30):
        count.adapt(torch.tensor([0, 0, int(count.value) * 16], dtype=torch.int32))
    assert count.value.item() == pytest.approx(0.96 * 4096 / 16, abs=2)
    for _ in range(30):
        count.adapt(torch.zeros(3, dtype=torch.int32))
    assert count.value == 1000
    fixed = RayCount(100, False, 1000, 4096, torch.device("cpu"))
    fixed.adapt(torch.tensor([0, 0, 9], dtype=torch.int32))
    assert fixed.value == 100
