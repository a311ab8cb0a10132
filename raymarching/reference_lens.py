"""`generate_rays` in plain PyTorch: the lens models and their inversion."""

import math

import torch

NEWTON_STEPS = 12
FISHEYE = 1


def generate_rays(image, pixels, poses, intrinsics, distortion, lens):
    missing = ((image < 0) | (image >= len(poses)))[:, None]
    if len(poses) == 0:
        return torch.full_like(pixels[:, :1].expand(-1, 3), math.nan), torch.full_like(pixels[:, :1].expand(-1, 3), math.nan)
    image = image.clamp(0, len(poses) - 1)
    pose, focal, k = poses[image], intrinsics[image], distortion[image]
    point = (pixels - focal[:, 2:]) / focal[:, :2]
    radius = point.norm(dim=1, keepdim=True)
    theta = _fisheye_angle(k, radius[:, 0])[:, None]
    stretch = torch.where(radius > 0, theta.sin() / radius, 1)
    fisheye = torch.cat([point * stretch, theta.cos()], 1)
    perspective = torch.cat([_undistort(k, point), torch.ones_like(radius)], 1)
    camera = torch.where(lens[image, None] == FISHEYE, fisheye, perspective) * pixels.new_tensor([1, -1, -1])
    direction = torch.nn.functional.normalize((pose[:, :, :3] * camera[:, None]).sum(2), dim=1, eps=0)
    return torch.where(missing, math.nan, pose[:, :, 3]), torch.where(missing, math.nan, direction)


def _distort(k, point):
    """Where the lens puts ideal image points [N, 2], and the Jacobian's xx, xy, yy."""
    (k1, k2, k3, k4, p1, p2), (x, y) = k.unbind(1), point.unbind(1)
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * (k3 + r2 * k4)))
    slope = k1 + r2 * (2 * k2 + r2 * (3 * k3 + r2 * 4 * k4))
    distorted = torch.stack([x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x), y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y], 1)
    xx = radial + 2 * x * x * slope + 2 * p1 * y + 6 * p2 * x
    xy = 2 * x * y * slope + 2 * p1 * x + 2 * p2 * y
    yy = radial + 2 * y * y * slope + 6 * p1 * y + 2 * p2 * x
    return distorted, torch.stack([xx, xy, yy], 1)


def _undistort(k, target):
    """Inverts `_distort` by Newton steps that are halved until they help."""
    point, scale = target, torch.ones_like(target[:, :1])
    image, jacobian = _distort(k, point)
    error = image - target
    for _ in range(NEWTON_STEPS):
        xx, xy, yy = jacobian.unbind(1)
        step = torch.stack([yy * error[:, 0] - xy * error[:, 1], xx * error[:, 1] - xy * error[:, 0]], 1) / (xx * yy - xy * xy)[:, None]
        trial = point - scale * step
        image, trial_jacobian = _distort(k, trial)
        trial_error = image - target
        better = trial_error.square().sum(1, keepdim=True) < error.square().sum(1, keepdim=True)
        point, error = torch.where(better, trial, point), torch.where(better, trial_error, error)
        jacobian, scale = torch.where(better, trial_jacobian, jacobian), torch.where(better, 1, scale / 2)
    return point


def _fisheye_angle(k, radius):
    """theta with theta (1 + k1 theta^2 + ... + k4 theta^8) = radius."""
    k1, k2, k3, k4 = k[:, :4].unbind(1)
    theta = best = radius.clamp(max=math.pi)
    best_error, scale, step = torch.full_like(radius, math.inf), torch.ones_like(radius), torch.zeros_like(radius)
    for _ in range(NEWTON_STEPS + 1):
        s = theta * theta
        error = theta * (1 + s * (k1 + s * (k2 + s * (k3 + s * k4)))) - radius
        slope = 1 + s * (3 * k1 + s * (5 * k2 + s * (7 * k3 + s * 9 * k4)))
        better = error.abs() < best_error
        best, best_error = torch.where(better, theta, best), torch.where(better, error.abs(), best_error)
        scale, step = torch.where(better, 1, scale / 2), torch.where(better, error / slope, step)
        theta = (best - scale * step).clamp(0, math.pi)
    return best
