"""What nerf/mesh.py is made of: where to look, the surface, its cleaning, what cameras see of it, its colours and its files."""
