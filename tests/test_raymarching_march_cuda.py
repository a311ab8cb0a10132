"""The marches on a GPU: the CPU's results to the bit, streams, devices and capture."""

import math

import pytest
import torch

import raymarching
from raymarching import reference
from test_raymarching_march import REAL, SETTINGS, scene, shell, train_march


@pytest.mark.gpu
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: f"bound{s['bound']}-{s['contract']}-{s['dt_gamma']:.3f}")
def test_cuda_equals_cpu_to_the_bit(settings):
    data = scene(settings, 3000, share=0.2, seed=2)
    on_cuda = {name: value.cuda() for name, value in data.items()}
    for capacity, num_rays in [(200000, 3000), (5000, 3000), (200000, 1234), (0, 3000)]:
        count = torch.tensor([num_rays], dtype=torch.int32)
        ours = raymarching.march_rays_train(**data, num_rays=count, capacity=capacity, **settings)
        theirs = raymarching.march_rays_train(**on_cuda, num_rays=count.cuda(), capacity=capacity, **settings)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(ours, theirs))
    alive = torch.randperm(3000)[:2000].int()
    order = ("origins", "directions", "far", "bitfield")
    ours = raymarching.march_rays(alive, data["near"], *(data[name] for name in order), steps=6, **settings)
    theirs = raymarching.march_rays(alive.cuda(), on_cuda["near"], *(on_cuda[name] for name in order), steps=6, **settings)
    assert all(torch.equal(one, other.cpu()) for one, other in zip(ours, theirs))


@pytest.mark.gpu
@pytest.mark.parametrize("share", [0, 2.0])
def test_cuda_equals_cpu_on_a_scene_of_surfaces_and_in_fog(share):
    """Few samples a ray, and (in fog) rays with more groups than a warp remembers."""
    data = scene(REAL, 2001, share=2.0)
    data["bitfield"] = shell(REAL) if share == 0 else data["bitfield"]
    count = torch.tensor([2001], dtype=torch.int32)
    for settings in (REAL, dict(REAL, max_steps=4096), dict(REAL, dt_gamma=0.0)):
        ours = raymarching.march_rays_train(**data, num_rays=count, capacity=400000, **settings)
        on_cuda = {name: value.cuda() for name, value in data.items()}
        for _ in range(3):
            theirs = raymarching.march_rays_train(**on_cuda, num_rays=count.cuda(), capacity=400000, **settings)
            assert all(torch.equal(one, other.cpu()) for one, other in zip(ours, theirs))


@pytest.mark.gpu
def test_cuda_equals_the_twin_on_the_gpu():
    data = {name: value.cuda() for name, value in {**scene(REAL, 300), "bitfield": shell(REAL)}.items()}
    order = [data[name] for name in ("origins", "directions", "near", "far", "noise")]
    count = torch.tensor([300], dtype=torch.int32, device="cuda")
    both = raymarching.march_rays_train, reference.march_rays_train
    ours, twin = (function(*order, count, data["bitfield"], capacity=60000, **REAL) for function in both)
    assert torch.equal(ours[5], twin[5]) and torch.equal(ours[6], twin[6])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(ours, twin))


@pytest.mark.gpu
def test_cuda_takes_no_rays_one_ray_and_hostile_rays():
    settings = SETTINGS[0]
    data = {name: value.cuda() for name, value in scene(settings, 40, share=0.5).items()}
    data["origins"][2], data["directions"][3], data["near"][5], data["far"][6] = math.nan, math.inf, math.nan, math.nan
    for rows in (0, 1, 40):
        some = {name: value[:rows] if name != "bitfield" else value for name, value in data.items()}
        cuda = train_march(some, settings, 700, function=lambda *x, **y: raymarching.march_rays_train(*(z.cuda() for z in x), **y))
        cpu = train_march({name: value.cpu() for name, value in some.items()}, settings, 700)
        assert all(torch.equal(one, other.cpu()) for one, other in zip(cpu, cuda))


@pytest.mark.gpu
def test_cuda_honours_the_current_stream():
    settings, stream = SETTINGS[2], torch.cuda.Stream()
    data = scene(settings, 3000)
    count = torch.tensor([3000], dtype=torch.int32)
    expected = raymarching.march_rays_train(**data, num_rays=count, capacity=50000, **settings)
    with torch.cuda.stream(stream):
        busy = torch.randn(4000, 4000, device="cuda")
        for _ in range(20):
            busy = busy @ busy  # the inputs come late: a kernel on another stream would not see them
        late = {name: torch.zeros_like(value, device="cuda").copy_(value) for name, value in data.items()}
        found = raymarching.march_rays_train(**late, num_rays=count.cuda(), capacity=50000, **settings)
    stream.synchronize()
    assert all(torch.equal(one, other.cpu()) for one, other in zip(expected, found))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="no second CUDA device")
def test_cuda_honours_a_second_device():
    settings = SETTINGS[2]
    data = scene(settings, 3000)
    count = torch.tensor([3000], dtype=torch.int32)
    expected = raymarching.march_rays_train(**data, num_rays=count, capacity=50000, **settings)
    on_second = {name: value.to("cuda:1") for name, value in data.items()}
    found = raymarching.march_rays_train(**on_second, num_rays=count.to("cuda:1"), capacity=50000, **settings)
    assert torch.cuda.current_device() == 0
    assert all(other.device.index == 1 and torch.equal(one, other.cpu()) for one, other in zip(expected, found))


@pytest.mark.gpu
def test_cuda_march_reads_nothing_back_and_captures():
    """Under a CUDA graph, where any synchronisation is an error, and on a side stream."""
    settings = SETTINGS[2]
    data = {name: value.cuda() for name, value in scene(settings, 3000).items()}
    count = torch.tensor([3000], dtype=torch.int32, device="cuda")
    eager = raymarching.march_rays_train(**data, num_rays=count, capacity=50000, **settings)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = raymarching.march_rays_train(**data, num_rays=count, capacity=50000, **settings)
    graph.replay()
    assert all(torch.equal(one, other) for one, other in zip(eager, captured))
    count.fill_(17)
    graph.replay()
    assert captured[6][1].item() == 17
