"""The marches: against a slow literal one, against the twin to the bit, at the edges, and rendering against training."""

import math

import numpy as np
import pytest
import torch

import raymarching
from raymarching import ops, reference

compiled = pytest.mark.skipif(ops.kernels is reference, reason="no compiler: the kernels are their own twin")

SETTINGS = [
    {"bound": 1.0, "cascades": 1, "grid_size": 16, "contract": False, "dt_gamma": 0.0, "max_steps": 128},
    {"bound": 1.5, "cascades": 2, "grid_size": 8, "contract": False, "dt_gamma": 0.02, "max_steps": 64},
    {"bound": 8.0, "cascades": 4, "grid_size": 16, "contract": False, "dt_gamma": 1 / 64, "max_steps": 128},
    {"bound": 8.0, "cascades": 4, "grid_size": 32, "contract": False, "dt_gamma": 0.3, "max_steps": 1024},
    {"bound": 0.5, "cascades": 1, "grid_size": 8, "contract": False, "dt_gamma": 0.1, "max_steps": 4},  # least step above the greatest
    {"bound": 2.0, "cascades": 2, "grid_size": 16, "contract": True, "dt_gamma": 0.05, "max_steps": 64},
]


def scene(settings, rays=60, share=0.1, seed=0):
    """Random rays around and inside the box, and a random bit field."""
    generator = torch.Generator().manual_seed(seed)
    reach = 6.0 if settings["contract"] else settings["bound"]
    origins = (torch.rand(rays, 3, generator=generator) * 2 - 1) * 1.2 * reach
    aim = (torch.rand(rays, 3, generator=generator) * 2 - 1) * 0.5 * reach
    directions = torch.nn.functional.normalize(aim - origins, dim=1)
    directions[0] = torch.tensor([0.0, 1, 0])
    origins[1], directions[1] = 3 * reach, torch.tensor([1.0, 0, 0])  # misses
    near, far = raymarching.near_far_from_aabb(origins, directions, torch.tensor([-reach] * 3 + [reach] * 3), 0.05)
    noise = torch.rand(rays, generator=generator)
    cells = torch.rand(settings["cascades"] * settings["grid_size"] ** 3, generator=generator)
    bitfield = raymarching.packbits(cells, torch.tensor([1 - share]))
    return {"origins": origins, "directions": directions, "near": near, "far": far, "noise": noise, "bitfield": bitfield}


def train_march(scene, settings, capacity=20000, num_rays=None, function=raymarching.march_rays_train):
    count = torch.tensor([len(scene["origins"]) if num_rays is None else num_rays], dtype=torch.int32)
    order = [scene[name] for name in ("origins", "directions", "near", "far", "noise")]
    return function(*order, count, scene["bitfield"], capacity=capacity, **settings)


def literal_march(origin, direction, near, far, noise, bitfield, *, bound, cascades, grid_size, contract, dt_gamma, max_steps):
    """One ray in plain Python: the recurrence of the steps in doubles; returns (position, middle, dt) of each sample."""
    dt_max = 2 * math.sqrt(3) * bound / grid_size
    dt_min = min(2 * math.sqrt(3) / max_steps, dt_max)

    def step(t):
        return min(max(t * dt_gamma, dt_min), dt_max)

    origin, direction, near, far, noise = ([float(x) for x in v] if v.ndim else float(v) for v in (origin, direction, near, far, noise))
    t, samples = near + noise * step(near), []
    while t < far and len(samples) < max_steps:
        dt = step(t)
        middle = t + 0.5 * dt
        position = [o + middle * d for o, d in zip(origin, direction)]
        norm = max(map(abs, position))
        if contract and norm > 1:
            position = [math.copysign(2 - 1 / norm, x) if abs(x) == norm else x / norm for x in position]
        norm = max(map(abs, position))
        by_position = next((c for c in range(cascades) if norm < 2**c), cascades - 1)
        by_step = next((c for c in range(cascades) if dt < 2 * 2**c / grid_size), cascades - 1)
        cascade = max(by_position, by_step)
        half = min(2.0**cascade, bound)
        cell = [min(max(math.floor((x / half + 1) / 2 * grid_size), 0), grid_size - 1) for x in position]
        code = sum(((cell[axis] >> bit) & 1) << (3 * bit + axis) for axis in range(3) for bit in range(10))
        bit = cascade * grid_size**3 + code
        if bitfield[bit // 8] >> (bit % 8) & 1:
            samples.append((position, middle, dt))
        t += dt
    return samples


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"bound{s['bound']}-{s['contract']}-{s['dt_gamma']:.3f}")
def test_against_the_literal_march(settings):
    data = scene(settings)
    positions, directions, t, dt, ray_index, rays, _counts = train_march(data, settings)
    literal = [
        literal_march(
            *(data[name][i].numpy() for name in ("origins", "directions", "near", "far", "noise")), data["bitfield"].numpy(), **settings
        )
        for i in range(len(data["origins"]))
    ]
    differing = [i for i, samples in enumerate(literal) if len(samples) != rays[i, 1]]
    assert len(differing) <= 1  # the literal one works in doubles: a middle on the face of a cell may fall on either side
    assert sum(map(len, literal)) > 20
    for i, samples in enumerate(literal):
        if i in differing or not samples:
            continue
        rows = slice(rays[i, 0], rays[i, 0] + rays[i, 1])
        assert np.allclose(positions[rows], [s[0] for s in samples], atol=1e-5)
        assert np.allclose(t[rows], [s[1] for s in samples], rtol=1e-6) and np.allclose(dt[rows], [s[2] for s in samples], rtol=1e-6)
        assert (ray_index[rows] == i).all() and (directions[rows] == data["directions"][i]).all()
    assert rays[1].tolist()[1] == 0


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"bound{s['bound']}-{s['contract']}-{s['dt_gamma']:.3f}")
@pytest.mark.parametrize("share", [0.02, 0.6])
def test_equals_the_twin_to_the_bit(settings, share):
    data = scene(settings, rays=400, share=share, seed=1)
    for capacity, num_rays in [(60000, 400), (1000, 400), (60000, 123)]:
        ours = train_march(data, settings, capacity, num_rays)
        twin = train_march(data, settings, capacity, num_rays, reference.march_rays_train)
        for name, one, other in zip(["positions", "directions", "t", "dt", "ray_index", "rays", "counts"], ours, twin):
            assert torch.equal(one, other), name
        again = train_march(data, settings, capacity, num_rays)
        assert all(torch.equal(one, other) for one, other in zip(ours, again))


def test_packing_and_padding():
    settings = SETTINGS[2]
    _, _, _t, dt, ray_index, rays, counts = train_march(scene(settings, 300), settings)
    written, kept, wanted = counts.tolist()
    assert written == wanted == rays[:, 1].sum() > 0 and kept == 300
    assert torch.equal(rays[:, 0], rays[:, 1].cumsum(0).int() - rays[:, 1])
    assert torch.equal(ray_index[:written], torch.repeat_interleave(torch.arange(300), rays[:, 1]).int())
    assert (ray_index[written:] == -1).all() and (dt[:written] > 0).all()


def test_samples_do_not_overlap_and_stay_before_far():
    settings = SETTINGS[2]
    data = scene(settings, 300, share=0.9)
    _, _, t, dt, ray_index, _rays, counts = train_march(data, settings)
    t, dt, ray = t[: counts[0]], dt[: counts[0]], ray_index[: counts[0]].long()
    same = ray[1:] == ray[:-1]
    assert (t[1:] - dt[1:] / 2 >= t[:-1] + dt[:-1] / 2 - 1e-5)[same].all()
    assert (t - dt / 2 < data["far"][ray] + 1e-5).all() and (t - dt / 2 >= data["near"][ray] - 1e-5).all()


def test_capacity_overflow_keeps_whole_first_rays():
    settings = SETTINGS[2]
    data = scene(settings, 300)
    full = train_march(data, settings)
    ends = full[5][:, 1].cumsum(0)
    for capacity in (0, 1, int(ends[100]), int(ends[100]) + 1, int(ends[-1]) - 1):
        *samples, ray_index, rays, counts = train_march(data, settings, capacity)
        kept = int((ends <= capacity).sum())
        assert counts.tolist() == [int(ends[kept - 1]) if kept else 0, kept, int(ends[-1])]
        assert torch.equal(rays[:kept], full[5][:kept]) and (rays[kept:] == 0).all()
        written = counts[0]
        for one, other in zip((*samples, ray_index), full[:5]):
            assert torch.equal(one[:written], other[:written])
        assert all((x[written:] == 0).all() for x in samples) and (ray_index[written:] == -1).all()


def test_rays_beyond_num_rays_take_no_samples():
    settings = SETTINGS[0]
    data = scene(settings, 50, share=0.5)
    for num_rays in (0, 20, 50, 1000, -3):
        *samples, ray_index, rays, counts = train_march(data, settings, num_rays=num_rays)
        asked = min(max(num_rays, 0), 50)
        assert counts[1] == asked and (rays[asked:] == 0).all() and counts[0] == rays[:asked, 1].sum()
        assert num_rays or (counts.tolist() == [0, 0, 0] and all((x == 0).all() for x in samples) and (ray_index == -1).all())


def test_no_rays_and_no_capacity():
    settings = SETTINGS[0]
    data = {name: value[:0] if name != "bitfield" else value for name, value in scene(settings).items()}
    *samples, ray_index, rays, counts = train_march(data, settings, capacity=7)
    assert counts.tolist() == [0, 0, 0] and rays.shape == (0, 2) and (ray_index == -1).all() and all((x == 0).all() for x in samples)
    assert train_march(scene(settings), settings, capacity=0)[0].shape == (0, 3)


def test_skipping_does_not_change_the_samples():
    """With a constant step the samples are those of the full lattice that lie in occupied cells."""
    settings = SETTINGS[0]
    data = scene(settings, 200, share=0.3)
    some = train_march(data, settings)
    every = train_march({**data, "bitfield": torch.full_like(data["bitfield"], 255)}, settings)
    cells = ((every[0] + 1) / 2 * 16).int().clamp(0, 15)
    bit = raymarching.morton3D(cells).long()
    inside = (data["bitfield"][bit // 8] >> (bit % 8).to(torch.uint8)) & 1 == 1
    expected = every[2][inside & (every[4] >= 0)]
    found = some[2][: some[6][0]]
    assert abs(len(expected) - len(found)) <= 2 and len(found) > 1000
    if len(expected) == len(found):
        assert torch.allclose(expected, found, atol=1e-6)


def shell(settings, thickness=0.6):
    """A bit field as of a real scene: a floor and a ball with empty space around, occupied where a cell of any cascade touches them."""
    size, bits = settings["grid_size"], []
    cells = raymarching.morton3D_invert(torch.arange(size**3, dtype=torch.int32)).float()
    for cascade in range(settings["cascades"]):
        half = min(2.0**cascade, settings["bound"])
        centre = ((cells + 0.5) * 2 / size - 1) * half
        near = thickness * 2 * half / size + 0.01
        bits.append(((centre.norm(dim=1) - 0.4).abs() < near) | ((centre[:, 2] + 0.5).abs() < near))
    return raymarching.packbits(torch.cat(bits).float(), torch.tensor([0.5]))


REAL = {"bound": 8.0, "cascades": 4, "grid_size": 64, "contract": False, "dt_gamma": 1 / 256, "max_steps": 1024}


def test_a_scene_of_surfaces_equals_the_twin_to_the_bit():
    """Long rays through mostly empty cells, at the settings of a real scene: hundreds of steps and few samples a ray."""
    data = {**scene(REAL, 300), "bitfield": shell(REAL)}
    ours, twin = (train_march(data, REAL, 60000, function=f) for f in (raymarching.march_rays_train, reference.march_rays_train))
    assert all(torch.equal(one, other) for one, other in zip(ours, twin))
    assert ours[6][0] > 5000 and ours[5][:, 1].min() == 0
    on_floor = (ours[0][:, 2] + 0.5).abs() < 0.5
    on_ball = (ours[0].norm(dim=1) - 0.4).abs() < 0.1
    assert (on_floor | on_ball)[: ours[6][0]].all()


def test_steps_are_those_of_the_recurrence():
    """With every cell occupied: t grows by dt, and dt is clamp(t dt_gamma), across the onset and the end of growth."""
    for settings in SETTINGS + [REAL]:
        data = scene({**settings, "contract": False}, 100, share=2.0)
        settings = dict(settings, contract=False)
        _, _, t, dt, ray, _, counts = train_march(data, settings, 100000)
        t, dt, ray = t[: counts[0]].double(), dt[: counts[0]].double(), ray[: counts[0]]
        start = t - dt / 2
        dt_max = 2 * 3**0.5 * settings["bound"] / settings["grid_size"]
        assert torch.allclose(dt, (start * settings["dt_gamma"]).clamp(min(2 * 3**0.5 / settings["max_steps"], dt_max), dt_max), rtol=1e-5)
        same = ray[1:] == ray[:-1]
        assert torch.allclose(start[1:][same], (start + dt)[:-1][same], rtol=1e-6, atol=1e-6)


def test_at_most_max_steps_samples():
    settings = dict(SETTINGS[2], max_steps=16, dt_gamma=0.0, bound=8.0, grid_size=128)
    data = scene(settings, 40, share=2.0)
    rays = train_march(data, settings)[5]
    assert rays[:, 1].max() == 16


def test_hostile_rays_end():
    """NaN, infinite and endless rays stop and reach no foreign memory."""
    settings = dict(SETTINGS[0], dt_gamma=0.0, max_steps=4)
    data = scene(settings, 6, share=0.0)
    data["origins"][2], data["directions"][3] = math.nan, math.inf
    data["directions"][4], data["near"][4], data["far"][4] = 0, 1e7, torch.finfo(torch.float32).max
    data["near"][5] = math.nan
    data["far"][0] = math.inf
    counts = train_march(data, settings)[6]
    assert counts[0] == 0
    data["bitfield"].fill_(255)
    data["far"][[0, 4]] = data["near"][[0, 4]]
    for function in (raymarching.march_rays_train, reference.march_rays_train):
        rays = train_march(data, settings, function=function)[5]
        assert (rays[[0, 2, 3, 4, 5], 1] == 0).all()  # ray 1 misses its box


def wavefront(data, settings, density_of, features_of, steps, T_thresh):
    """A whole picture by rounds of march_rays and composite_rays."""
    count, limit = len(data["origins"]), 0
    alive, t_now = torch.arange(count, dtype=torch.int32), data["near"].clone()
    composited, opacity, depth = torch.zeros(count, 3), torch.zeros(count), torch.zeros(count)
    while len(alive) and limit < 3000:
        march = (alive, t_now, data["origins"], data["directions"], data["far"], data["bitfield"])
        positions, _, t, dt, t_next = raymarching.march_rays(*march, steps=steps, **settings)
        raymarching.composite_rays(
            alive, t_now, t_next, density_of(positions), features_of(positions), t, dt, composited, opacity, depth, T_thresh
        )
        alive, limit = alive[alive >= 0], limit + 1
    assert len(alive) == 0
    return composited, opacity, depth


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"bound{s['bound']}-{s['contract']}-{s['dt_gamma']:.3f}")
@pytest.mark.parametrize("steps", [1, 5])
def test_rendering_equals_training(settings, steps):
    data = scene(settings, 200, share=0.3)
    data["noise"] = torch.zeros(200)

    def density_of(positions):
        return 6 * (positions * 4).sin().prod(1).abs() / settings["bound"]

    def features_of(positions):
        return (positions + torch.tensor([0.0, 1, 2])).cos()

    positions, _, t, dt, _, rays, counts = train_march(data, settings, capacity=60000)
    assert counts[1] == 200 and counts[0] > 300
    full = rays[:, 1] < settings["max_steps"]  # rendering has no such limit of its own
    trained = raymarching.composite_rays_train(density_of(positions), features_of(positions), t, dt, rays, 1e-4)
    rendered = wavefront(data, settings, density_of, features_of, steps, 1e-4)
    same = torch.ones(200, dtype=torch.bool)
    for one, other in zip(trained, rendered):
        same &= torch.isclose(one, other, atol=2e-5 * settings["bound"], rtol=1e-4).view(200, -1).all(1)
    assert (~same & full).sum() <= 1  # each round begins its groups anew and rounds otherwise: a middle on a face may fall on either side


def test_march_rays_equals_the_twin():
    for settings in SETTINGS:
        data = scene(settings, 100, share=0.4)
        alive = torch.arange(100, dtype=torch.int32)[torch.randperm(100)][:70].contiguous()
        alive[3], alive[4] = -1, 1000
        arguments = (alive, data["near"], data["origins"], data["directions"], data["far"], data["bitfield"])
        for one, other in zip(
            raymarching.march_rays(*arguments, steps=7, **settings), reference.march_rays(*arguments, steps=7, **settings)
        ):
            assert torch.equal(one, other)
        _, _, _, dt, t_next = raymarching.march_rays(*arguments, steps=7, **settings)
        assert (dt.view(70, 7)[3:5] == 0).all() and (t_next[3:5] == 0).all()


def test_march_rays_without_alive_rays():
    settings, none = SETTINGS[0], torch.zeros(0, dtype=torch.int32)
    data = scene(settings)
    positions, _, _, _, t_next = raymarching.march_rays(
        none, data["near"], data["origins"], data["directions"], data["far"], data["bitfield"], steps=4, **settings
    )
    assert positions.shape == (0, 3) and t_next.shape == (0,)


@compiled
def test_opcheck():
    settings = SETTINGS[2]
    data = scene(settings, 20)
    order = [data[name] for name in ("origins", "directions", "near", "far", "noise")]
    raw = torch.ops.raymarching
    torch.library.opcheck(
        raw.march_rays_train, (*order, torch.tensor([20], dtype=torch.int32), data["bitfield"]), dict(settings, capacity=500)
    )
    alive = torch.arange(20, dtype=torch.int32)
    torch.library.opcheck(raw.march_rays, (alive, order[2], *order[:2], order[3], data["bitfield"]), dict(settings, steps=3))


@pytest.mark.parametrize(
    "change, error, word",
    [
        ({"bound": 0.0}, ValueError, "bound"),
        ({"grid_size": 12}, ValueError, "grid_size"),
        ({"cascades": 0}, ValueError, "cascades"),
        ({"cascades": 65}, ValueError, "cascades must be at most 64"),
        ({"contract": True}, ValueError, "bound must be 2 with contract"),
        ({"cascades": 5}, ValueError, "bitfield"),
        ({"max_steps": 0}, ValueError, "max_steps"),
        ({"dt_gamma": -1.0}, ValueError, "dt_gamma"),
        ({"dt_gamma": math.nan}, ValueError, "dt_gamma"),
        ({"capacity": -1}, ValueError, "capacity"),
        ({"capacity": 2**31}, ValueError, "capacity"),
        ({"noise": torch.zeros(3)}, ValueError, "noise"),
        ({"far": torch.zeros(60).double()}, TypeError, "far"),
        ({"bitfield": torch.zeros(9, dtype=torch.int8)}, TypeError, "bitfield"),
        ({"near": torch.zeros(60, device="meta")}, ValueError, "near is on meta"),
        ({"num_rays": torch.tensor([60])}, TypeError, "num_rays"),
        ({"num_rays": 60}, TypeError, "num_rays must be a tensor"),
    ],
)
def test_bad_arguments_are_named(change, error, word):
    settings = SETTINGS[2]
    arguments = {**scene(settings), **settings, "num_rays": torch.tensor([60], dtype=torch.int32), "capacity": 100, **change}
    with pytest.raises(error, match=word):
        raymarching.march_rays_train(**arguments)
