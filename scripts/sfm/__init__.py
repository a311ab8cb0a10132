"""From a video or a folder of photos to a COLMAP scene: frames, features, matches, poses, and a report on what came of them."""
