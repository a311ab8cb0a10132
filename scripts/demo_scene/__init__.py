"""A small still life, its ray tracer and its COLMAP files: the scene that `scripts/quickstart.sh` learns.

Notation of the whole package: points, directions, normals and colours are float64 arrays `[3, n]` (a row a coordinate, so that every
operation runs over long contiguous rows), world units, z up, the table top at z = 0. Distances along a ray are `[n]`, infinity for a miss.
"""
