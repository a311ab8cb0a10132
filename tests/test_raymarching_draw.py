"""Drawing training rays and how many: every row must be the ray and the colour of the pixel that its random numbers mean."""

import math

import numpy as np
import pytest
import torch

import raymarching
from nerf.rays import Views
from nerf.scene import Cameras
from raymarching import draw, reference_draw
from test_raymarching import LENSES, random_pose

FLOAT_MAX = torch.finfo(torch.float32).max
ALMOST_ONE = 1 - 2.0**-24  # the greatest float32 below 1
compiled = pytest.mark.skipif(draw.kernels is reference_draw, reason="no compiler: the kernels are their own twin")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])

SIZES = [(12, 9), (7, 15), (20, 4), (1, 1), (31, 17), (8, 8)]  # of the six views, each with its own lens
IMAGES = [4, 0, 2, 1]  # the views that are photos to learn from


def scene(channels=3, device="cpu"):
    """All arguments of draw_rays but random, count and mixed. A photo's pixels tell where they are: (x, y, 10 view[, 128])."""
    generator = torch.Generator().manual_seed(5)
    parts = []
    for image in IMAGES:
        width, height = SIZES[image]
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        parts.append(torch.stack([x, y, torch.full_like(x, 10 * image), torch.full_like(x, 128)][:channels], -1).reshape(-1, channels))
    sizes = torch.tensor(SIZES)
    focal = sizes.max(1).values.float()
    found = {
        "pixels": torch.cat(parts).to(torch.uint8),
        "offsets": torch.tensor([0, *map(len, parts[:-1])]).cumsum(0),
        "sizes": sizes[IMAGES],
        "images": torch.tensor(IMAGES),
        "poses": torch.stack([random_pose(generator) for _ in SIZES]),
        "intrinsics": torch.stack([focal, focal * 1.1, sizes[:, 0] / 2, sizes[:, 1] / 2], 1),
        "distortion": torch.tensor([k for _, k in LENSES.values()], dtype=torch.float32),
        "lens": torch.tensor([kind for kind, _ in LENSES.values()], dtype=torch.int32),
        "near": torch.tensor([0.1, 0.5, 0.0, 0.2, 1.0, 0.3]),
        "far": torch.tensor([math.inf, 4.0, 2.0, math.inf, 3.5, 1.0]),
        "aabb": torch.tensor([-0.7, -0.7, -0.5, 0.7, 0.7, 0.5]),
    }
    return {name: value.to(device) for name, value in found.items()}


def chances(rows, columns=3, seed=0, device="cpu"):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).to(device)


def number(value, device="cpu"):
    return torch.tensor([value], dtype=torch.int32, device=device)


def told(target):
    """What a pixel tells: [N, C] int64."""
    return (target * 255).round().long()


def assert_same(ours, theirs, tolerance=1e-5):
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, equal_nan=True, check_device=False)


@devices
@pytest.mark.parametrize("mixed", [True, False])
@pytest.mark.parametrize("channels, columns", [(3, 3), (4, 7)])
def test_equals_the_twin(mixed, channels, columns, device):
    photos, random = scene(channels, device), chances(3000, columns, device=device)
    random[1::2, 1:3] = random[1::2, 1:3].round() * ALMOST_ONE  # corners
    for count in (3000, 1234, 1, 0, -5, 9999):
        arguments = {"random": random, "count": number(count, device), "mixed": mixed, **photos}
        assert_same(raymarching.draw_rays(**arguments), reference_draw.draw_rays(**arguments))


@pytest.mark.gpu
def test_cuda_equals_cpu():
    arguments = {"random": chances(20000), "count": number(15000), "mixed": True, **scene(4)}
    on_cuda = {name: value.cuda() if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    assert_same(raymarching.draw_rays(**arguments), raymarching.draw_rays(**on_cuda))


@devices
def test_rays_are_those_of_the_views(device):
    photos, count = scene(device=device), number(2000, device)
    cameras = Cameras(*(photos[name].cpu().numpy() for name in ("poses", "intrinsics", "distortion", "lens")),
                      np.array(SIZES, dtype=np.int32), photos["near"].cpu().numpy(), photos["far"].cpu().numpy())  # fmt: skip
    origins, directions, near, far, image, target = raymarching.draw_rays(chances(2000, device=device), count, mixed=True, **photos)
    assert torch.equal(image * 10, told(target)[:, 2]) and set(image.tolist()) == set(IMAGES)
    pixel = told(target)[:, :2] + 0.5
    expected = Views(cameras, photos["aabb"].cpu().numpy(), torch.device(device)).rays(image, pixel, count)
    assert_same((origins, directions, near, far), (expected.origins, expected.directions, expected.near, expected.far))
    assert 50 < (near == FLOAT_MAX).sum() < 1950  # some miss the box, some hit it


@devices
def test_each_photo_and_each_of_its_pixels_are_as_likely(device):
    """Chi-square of all pixels' counts: within five standard deviations of what chance gives."""
    photos, rows = scene(device=device), 400000
    target = raymarching.draw_rays(chances(rows, seed=1, device=device), number(rows, device), mixed=True, **photos)[-1]
    seen, often = told(target).unique(dim=0, return_counts=True)
    area = {10 * image: SIZES[image][0] * SIZES[image][1] for image in IMAGES}
    assert len(seen) == sum(area.values())
    expected = torch.tensor([rows / len(IMAGES) / area[view] for view in seen[:, 2].tolist()])
    chi_square = ((often.cpu() - expected) ** 2 / expected).sum().item()
    freedom = len(seen) - 1
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)


@devices
def test_one_photo_for_all_rows(device):
    photos, random = scene(device=device), chances(500, device=device)
    drawn = set()
    for k in range(len(IMAGES)):
        random[0, 0] = (k + 0.5) / len(IMAGES)
        image = raymarching.draw_rays(random, number(500, device), mixed=False, **photos)[4]
        assert (image == IMAGES[k]).all()
        drawn.add(int(image[0]))
    assert drawn == set(IMAGES)


@devices
def test_alpha_comes_along(device):
    target = raymarching.draw_rays(chances(100, device=device), number(100, device), mixed=True, **scene(4, device))[-1]
    assert target.shape == (100, 4)
    torch.testing.assert_close(target[:, 3], torch.full((100,), 128 / 255, device=device))


@devices
def test_rows_beyond_the_count_are_empty(device):
    random = chances(1000, device=device)
    random[300:] = math.nan
    photos = scene(device=device)
    for count in (300, 128, 0, -1):  # in the middle of a block of threads, at its end, none
        origins, directions, near, far, image, target = raymarching.draw_rays(random, number(count, device), mixed=True, **photos)
        used = max(count, 0)
        assert (near[used:] == FLOAT_MAX).all() and (far[used:] == FLOAT_MAX).all()
        assert not origins[used:].any() and not directions[used:].any() and not image[used:].any() and not target[used:].any()
        assert directions[:used].any(1).all() and target.isfinite().all()


@devices
def test_no_rows(device):
    found = raymarching.draw_rays(chances(0, device=device), number(5, device), mixed=False, **scene(4, device))
    assert [tuple(one.shape) for one in found] == [(0, 3), (0, 3), (0,), (0,), (0,), (0, 4)]


@devices
def test_the_ends_of_the_random_numbers(device):
    """Just below 1 is the last photo's last pixel, 0 the first; what no generator gives chooses a pixel too."""
    u = torch.tensor([0, ALMOST_ONE, 1.0, 7.0, math.inf, -0.5, -math.inf, math.nan], device=device)
    random = u[:, None].expand(-1, 3)  # not contiguous
    target = raymarching.draw_rays(random, number(8, device), mixed=True, **scene(device=device))[-1]
    first, last = [0, 0, 10 * IMAGES[0]], [SIZES[IMAGES[-1]][0] - 1, SIZES[IMAGES[-1]][1] - 1, 10 * IMAGES[-1]]
    assert told(target).tolist() == [first, last, last, last, last, first, first, first]


@devices
def test_foreign_pixels_are_not_read(device):
    photos = scene(device=device)
    whole = len(photos["pixels"])
    photos["offsets"] = torch.tensor([-1000, whole, 2**62, -(2**63)], device=device)
    random, count = chances(400, device=device), number(400, device)
    found = raymarching.draw_rays(random, count, mixed=True, **photos)
    assert found[-1].isnan().all() and found[1].isfinite().all()
    photos["offsets"] = torch.tensor([whole - 5 * SIZES[IMAGES[0]][0]] * 4, device=device)  # the fifth row of the first photo is the last
    found = raymarching.draw_rays(random, count, mixed=True, **photos)
    assert_same(found, reference_draw.draw_rays(random, count, mixed=True, **photos))
    assert 10 < found[-1].isnan().any(1).sum() < 390
    for sizes in ([[0, 3], [3, 0], [-4, -4], [0, 0]], [[2**62, 2**62]] * 4):
        photos = scene(device=device) | {"sizes": torch.tensor(sizes, device=device)}
        assert raymarching.draw_rays(random.clamp(min=0.01), count, mixed=True, **photos)[-1].isnan().all()
    none = scene(device=device) | {"pixels": torch.zeros(0, 3, dtype=torch.uint8, device=device)}
    assert raymarching.draw_rays(random, count, mixed=True, **none)[-1].isnan().all()


@devices
def test_a_photo_of_no_view_gives_rays_that_miss(device):
    photos = scene(device=device) | {"images": torch.tensor([6, -1, 2**40, 1], device=device)}
    random, count = chances(400, device=device), number(400, device)
    found = raymarching.draw_rays(random, count, mixed=True, **photos)
    foreign = found[4] != 1
    assert found[0][foreign].isnan().all() and (found[2][foreign] == FLOAT_MAX).all() and (found[3][foreign] == FLOAT_MAX).all()
    assert found[0][~foreign].isfinite().all() and found[-1].isfinite().all() and 0 < foreign.sum() < 400
    assert_same(found, reference_draw.draw_rays(random, count, mixed=True, **photos))
    views = ("poses", "intrinsics", "distortion", "lens", "near", "far")
    photos |= {name: photos[name][:0] for name in views}
    assert_same(raymarching.draw_rays(random, count, mixed=True, **photos), reference_draw.draw_rays(random, count, mixed=True, **photos))


def literal_ray_count(value, wanted, capacity, samples, fill, growth):
    ratio = min(max(fill * samples / max(wanted, 1), growth**-4), growth)
    return min(max(round(value * ratio), 1), capacity)


@devices
@pytest.mark.parametrize("function", [raymarching.adapt_ray_count, reference_draw.adapt_ray_count])
def test_adapt_ray_count(function, device):
    for value in (1, 3, 977, 2**17, 2**31 - 1):
        for wanted in (-7, 0, 1, 4096, 1000003, 2**31 - 1):
            for capacity, samples, fill, growth in [(2**18, 2**20, 0.96, 2.0), (2**31 - 1, 4097, 0.5, 1.5), (1, 0, 1.0, 1.0)]:
                count, counts = number(value, device), torch.tensor([5, 6, wanted], dtype=torch.int32, device=device)
                assert function(count, counts, capacity, samples, fill, growth) is None
                assert count.item() == literal_ray_count(value, wanted, capacity, samples, fill, growth)
                assert counts.tolist() == [5, 6, wanted]


@devices
def test_ray_count_settles_where_the_samples_fill_the_buffers(device):
    count = number(100, device)
    for _ in range(30):
        counts = torch.cat([torch.zeros(2, dtype=torch.int32, device=device), count * 16])
        raymarching.adapt_ray_count(count, counts, 1000, 4096, 0.96, 2.0)
    assert count.item() == pytest.approx(0.96 * 4096 / 16, abs=1)


@compiled
def test_opcheck():
    raw = torch.ops.raymarching
    photos = scene()
    order = [photos[name] for name in ("pixels", "offsets", "sizes", "images")]
    views = [photos[name] for name in ("poses", "intrinsics", "distortion", "lens", "near", "far", "aabb")]
    torch.library.opcheck(raw.draw_rays, (chances(9), number(7), *order, True, *views))
    torch.library.opcheck(raw.adapt_ray_count, (number(7), torch.tensor([1, 2, 3], dtype=torch.int32), 9, 99, 0.9, 2.0))


@pytest.mark.parametrize(
    "name, wrong, error",
    [
        ("random", torch.rand(9, 3, dtype=torch.float64), (TypeError, "random must be torch.float32")),
        ("random", torch.rand(9, 2), (ValueError, "random must have at least 3 columns")),
        ("random", torch.rand(9), (ValueError, "random must have the shape")),
        ("count", 7, (TypeError, "count must be a tensor")),
        ("count", torch.tensor(7, dtype=torch.int32), (ValueError, "count must have the shape")),
        ("pixels", torch.zeros(9, 3), (TypeError, "pixels must be torch.uint8")),
        ("pixels", torch.zeros(9, 2, dtype=torch.uint8), (ValueError, "pixels must have 3 or 4 channels, got 2")),
        ("offsets", torch.zeros(3, dtype=torch.int64), (ValueError, "offsets")),
        ("offsets", torch.zeros(4, dtype=torch.int64, device="meta"), (ValueError, "offsets is on meta but images is on cpu")),
        ("sizes", torch.zeros(4, 2, dtype=torch.int32), (TypeError, "sizes")),
        ("images", torch.zeros(4, 1, dtype=torch.int64), (ValueError, "images")),
        ("poses", torch.zeros(6, 4, 4), (ValueError, "poses")),
        ("poses", torch.zeros(6, 3, 4, device="meta"), (ValueError, "poses is on meta but random is on cpu")),
        ("intrinsics", torch.zeros(5, 4), (ValueError, "intrinsics")),
        ("distortion", torch.zeros(6, 5), (ValueError, "distortion")),
        ("lens", torch.zeros(6), (TypeError, "lens")),
        ("near", torch.zeros(6, 1), (ValueError, "near")),
        ("far", torch.zeros(6).half(), (TypeError, "far")),
        ("aabb", torch.zeros(2, 3), (ValueError, "aabb")),
    ],
)
def test_bad_arguments_are_named(name, wrong, error):
    with pytest.raises(error[0], match=error[1]):
        raymarching.draw_rays(**{"random": chances(9), "count": number(9), "mixed": True, **scene(), name: wrong})


def test_no_photo_is_refused():
    photos = scene()
    photos |= {name: photos[name][:0] for name in ("offsets", "sizes", "images")}
    with pytest.raises(ValueError, match="images must name at least one photo"):
        raymarching.draw_rays(chances(9), number(9), mixed=True, **photos)


@pytest.mark.parametrize(
    "position, wrong, error",
    [
        (0, torch.tensor([5]), (TypeError, "value")),
        (0, torch.zeros(2, dtype=torch.int32), (ValueError, "value")),
        (1, torch.zeros(2, dtype=torch.int32), (ValueError, "counts")),
        (1, torch.zeros(3, dtype=torch.int32, device="meta"), (ValueError, "counts is on meta")),
        (2, 0, (ValueError, "capacity must be at least 1")),
        (2, 2**31, (ValueError, "capacity must be at most")),
        (3, -1, (ValueError, "samples")),
        (4, math.nan, (ValueError, "fill")),
        (5, 0.5, (ValueError, "growth")),
    ],
)
def test_bad_arguments_of_the_ray_count_are_named(position, wrong, error):
    arguments = [number(5), torch.zeros(3, dtype=torch.int32), 100, 1000, 0.9, 2.0]
    arguments[position] = wrong
    with pytest.raises(error[0], match=error[1]):
        raymarching.adapt_ray_count(*arguments)


@devices
def test_march_takes_samples_of_the_rows_in_use_alone(device):
    drawn = raymarching.draw_rays(chances(1000, 4, device=device), number(400, device), mixed=True, **scene(device=device))
    march = {"bound": 2.0, "cascades": 1, "grid_size": 32, "contract": False, "dt_gamma": 0.0, "max_steps": 64, "capacity": 200000}
    bits = torch.full((32**3 // 8,), 255, dtype=torch.uint8, device=device)
    *_, rays, _ = raymarching.march_rays_train(*drawn[:4], torch.zeros(1000, device=device), number(1000, device), bits, **march)
    assert rays[:400, 1].any() and not rays[400:, 1].any()
    assert torch.equal(rays[:400, 1] > 0, drawn[2][:400] < drawn[3][:400])


@pytest.mark.gpu
def test_cuda_honours_the_current_stream():
    stream, random = torch.cuda.Stream(), chances(5000)
    expected = raymarching.draw_rays(random, number(4000), mixed=True, **scene())
    with torch.cuda.stream(stream):
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(20):
            busy = busy @ busy  # the inputs come late: a kernel on another stream would not see them
        late = {name: torch.zeros_like(value, device="cuda").copy_(value) for name, value in scene().items()}
        found = raymarching.draw_rays(random.cuda(), number(4000, "cuda"), mixed=True, **late)
        count, counts = number(4000, "cuda"), torch.tensor([0, 0, 8000], dtype=torch.int32).cuda()
        raymarching.adapt_ray_count(count, counts, 10000, 4000, 1.0, 2.0)
    stream.synchronize()
    assert_same(expected, found)
    assert count.item() == 2000


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_cuda_honours_a_second_device():
    expected = raymarching.draw_rays(chances(5000), number(4000), mixed=True, **scene())
    found = raymarching.draw_rays(chances(5000, device="cuda:1"), number(4000, "cuda:1"), mixed=True, **scene(device="cuda:1"))
    assert torch.cuda.current_device() == 0 and all(one.device.index == 1 for one in found)
    assert_same(expected, found)
    count = number(4000, "cuda:1")
    raymarching.adapt_ray_count(count, torch.zeros(3, dtype=torch.int32, device="cuda:1"), 10000, 4000, 1.0, 2.0)
    assert torch.cuda.current_device() == 0 and count.item() == 8000


@pytest.mark.gpu
def test_cuda_reads_nothing_back_and_captures():
    """Under a CUDA graph, where any synchronisation is an error; replayed after the count and the random numbers have changed."""
    photos, random, count = scene(device="cuda"), chances(5000, 7, device="cuda"), number(4000, "cuda")
    counts = torch.tensor([0, 0, 8000], dtype=torch.int32, device="cuda")

    def step():
        found = raymarching.draw_rays(random, count, mixed=True, **photos)
        raymarching.adapt_ray_count(count, counts, 10000, 4000, 1.0, 2.0)
        return found

    step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    for seed, rays, wanted in [(1, 4000, 8000), (2, 17, 1000), (3, 0, 0)]:
        random.copy_(chances(5000, 7, seed))
        count.fill_(rays)
        counts[2] = wanted
        graph.replay()
        assert_same(reference_draw.draw_rays(random, number(rays, "cuda"), mixed=True, **photos), captured)
        assert count.item() == literal_ray_count(rays, wanted, 10000, 4000, 1.0, 2.0)
