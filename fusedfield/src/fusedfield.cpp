// The operators' signatures. Their only compiled form is that of CUDA (fusedfield_cuda.cpp); elsewhere reference.py serves.
#include <torch/library.h>

TORCH_LIBRARY(fusedfield, library) {
    library.def("ngp(Tensor encoding, Tensor directions, Tensor[] weights, Tensor? count, float start) -> Tensor");
    library.def(
        "ngp_at(Tensor positions, Tensor directions, Tensor table, Tensor offsets, Tensor resolutions, float bound, Tensor[] weights, "
        "Tensor? count, float start) -> Tensor");
    library.def(
        "ngp_density_at(Tensor positions, Tensor table, Tensor offsets, Tensor resolutions, float bound, Tensor[] weights, Tensor? count, "
        "float start) -> Tensor");
    library.def(
        "ngp_backward(Tensor encoding, Tensor directions, Tensor[] weights, Tensor? count, Tensor gradient, Tensor? scale, bool view) -> "
        "(Tensor, Tensor, Tensor)");
    library.def(
        "ngp_render(Tensor origins, Tensor directions, Tensor near, Tensor far, Tensor bitfield, Tensor table, Tensor offsets, Tensor resolutions, "
        "float bound, Tensor[] weights, float start, float march_bound, int cascades, int grid_size, bool contract, float dt_gamma, int max_steps, "
        "float T_thresh) -> (Tensor, Tensor, Tensor)");
    library.def("merf(Tensor[] encodings, Tensor[] weights, float density_limit, float feature_limit, Tensor? count) -> Tensor");
    library.def(
        "merf_at(Tensor positions, Tensor[] tables, Tensor[] offsets, Tensor[] resolutions, float bound, Tensor[] weights, float density_limit, "
        "float feature_limit, Tensor? count) -> Tensor");
    library.def(
        "merf_density_at(Tensor positions, Tensor[] tables, Tensor[] offsets, Tensor[] resolutions, float bound, Tensor[] weights, "
        "float density_limit, float feature_limit, Tensor? count) -> Tensor");
    library.def(
        "merf_backward(Tensor[] encodings, Tensor[] weights, float density_limit, float feature_limit, Tensor? count, Tensor gradient, "
        "Tensor? scale) -> (Tensor, Tensor)");
    library.def("proposal(Tensor encoding, Tensor[] weights, Tensor? count) -> Tensor");
    library.def(
        "proposal_at(Tensor positions, Tensor table, Tensor offsets, Tensor resolutions, float bound, Tensor[] weights, Tensor? count) -> "
        "Tensor");
    library.def(
        "proposal_backward(Tensor encoding, Tensor[] weights, Tensor? count, Tensor gradient, Tensor? scale) -> (Tensor, Tensor)");
}
