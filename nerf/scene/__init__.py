"""Scenes: photos with their cameras, read from disk, brought to one size unit and split into training, validation and test views."""

from nerf.scene.cameras import FISHEYE, PERSPECTIVE, Cameras
from nerf.scene.photos import Photos
from nerf.scene.scene import Scene, load_scene

__all__ = ["FISHEYE", "PERSPECTIVE", "Cameras", "Photos", "Scene", "load_scene"]
