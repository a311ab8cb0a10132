// Registration of the operators and their CPU form. Rows are handled in chunks; the order in which chunks finish changes nothing.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <mutex>
#include <string_view>
#include <tuple>
#include <vector>

#include "samplemining_checks.h"

namespace samplemining {
namespace {

constexpr int64_t chunk = 4096;        // rows of which one task counts what is kept
constexpr int64_t grain = 16 * chunk;  // rows worth a histogram of their own

// Scores of all rows and the histogram of those above 0.
std::vector<uint64_t> score_rows(const float* delta, int64_t rows, int64_t used, int columns, float* scores) {
    std::vector<uint64_t> histogram(bins, 0);
    std::mutex adding;
    at::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
        std::vector<uint64_t> own(bins, 0);
        for (int64_t row = begin; row < end; ++row) {
            const auto values = [=](int k) { return delta[row * columns + k]; };
            scores[row] = row < used ? score_of(values, columns) : absent;
            if (scores[row] > 0) own[bin_of(scores[row])] += packed_bin(1, rest_of(scores[row]));
        }
        const std::lock_guard<std::mutex> lock(adding);
        for (int bin = 0; bin < bins; ++bin) histogram[bin] += own[bin];
    });
    return histogram;
}

// The exponent of the largest scores such that at least `wanted` have it or a larger one; at least 1.
int exponent_of_largest(const std::vector<uint64_t>& histogram, int64_t wanted) {
    int bin = bins;
    for (int64_t found = 0; bin > bins_of_exponent && found < std::max<int64_t>(wanted, 1);) found += count_of(histogram[--bin]);
    return exponent_of(bin);
}

// Updates tau and finds how to draw.
Draw solve_draw(const std::vector<uint64_t>& histogram, int64_t used, const Rule& rule, float& tau) {
    const int largest = exponent_of_largest(histogram, 1);
    int64_t scored = 0;
    double sum = 0, sum_of_squares = 0;
    for (int bin = 0; bin < bins; ++bin) {
        if (histogram[bin] == 0) continue;
        const float count = static_cast<float>(count_of(histogram[bin])), mean = mean_of(bin, histogram[bin], largest);
        scored += count_of(histogram[bin]);
        sum += count * mean;
        sum_of_squares += count * mean * mean;
    }
    tau = followed_tau(tau, static_cast<double>(used), sum, sum_of_squares, rule.momentum);
    const int64_t budget = budget_of(rule, static_cast<double>(used), tau);
    if (budget == 0) return {0, 1};
    if (rule.law == Law::uniform) return {static_cast<float>(static_cast<double>(budget) / static_cast<double>(used)), 1};
    if (budget >= scored) return {std::numeric_limits<float>::infinity(), 1};
    const int unit = exponent_of_largest(histogram, budget);
    const auto expected = [&](float c, float& count, float& slope) {
        double counts = 0, slopes = 0;
        for (int bin = 0; bin < bins; ++bin) {
            if (histogram[bin] == 0) continue;
            add_expected(rule.law, c, static_cast<float>(count_of(histogram[bin])), mean_of(bin, histogram[bin], unit), counts, slopes);
        }
        count = static_cast<float>(counts), slope = static_cast<float>(slopes);
    };
    return draw_of(solve(rule.law, static_cast<float>(budget), static_cast<float>(scored - budget), expected), unit);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> thin_samples(const at::Tensor& delta_, const at::Tensor& noise_, const at::Tensor& count,
                                                            at::Tensor tau, int64_t room, std::string_view budget, double fraction,
                                                            double floor, double cap, double momentum, std::string_view law, double alpha) {
    check_thin(delta_, noise_, count, tau);
    const Rule rule = rule_of(room, budget, fraction, floor, cap, momentum, law, alpha);
    const at::Tensor delta = delta_.contiguous(), noise = noise_.contiguous();
    const int64_t rows = delta.size(0), chunks = (rows + chunk - 1) / chunk;
    const int64_t used = std::clamp<int64_t>(*count.const_data_ptr<int32_t>(), 0, rows);
    const int columns = static_cast<int>(delta.size(1));
    const auto gradients = delta.const_data_ptr<float>(), noises = noise.const_data_ptr<float>();

    std::vector<float> scores(rows);
    const std::vector<uint64_t> histogram = score_rows(gradients, rows, used, columns, scores.data());
    const Draw draw = rule.law == Law::all ? Draw{std::numeric_limits<float>::infinity(), 1}
                                           : solve_draw(histogram, used, rule, *tau.mutable_data_ptr<float>());
    std::vector<uint8_t> keep(rows);
    std::vector<int64_t> before(chunks + 1, 0);  // kept rows before each chunk
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
        for (int64_t row = begin * chunk; row < std::min(end * chunk, rows); ++row) {
            keep[row] = rule.law == Law::all ? scores[row] > 0 : noises[row] < probability(rule.law, draw, scores[row]);
            before[row / chunk + 1] += keep[row];
        }
    });
    for (int64_t i = 0; i < chunks; ++i) before[i + 1] += before[i];

    const int64_t drawn = before[chunks], kept = std::min(drawn, room);
    at::Tensor index = at::empty({room}, delta.options().dtype(at::kLong)), gradient = at::empty({room, columns}, delta.options());
    at::Tensor counts = at::empty({2}, delta.options().dtype(at::kInt));
    const auto chosen = index.mutable_data_ptr<int64_t>();
    const auto weighted = gradient.mutable_data_ptr<float>();
    at::parallel_for(0, chunks, 1, [&](int64_t begin, int64_t end) {
        int64_t place = before[begin];
        for (int64_t row = begin * chunk; row < std::min(end * chunk, rows) && place < room; ++row) {
            if (!keep[row]) continue;
            const float weight = weight_of(probability(rule.law, draw, scores[row]), rule.alpha);
            chosen[place] = row;
            for (int k = 0; k < columns; ++k) weighted[place * columns + k] = gradients[row * columns + k] * weight;
            ++place;
        }
    });
    std::fill(chosen + kept, chosen + room, int64_t(0));
    std::fill(weighted + kept * columns, weighted + room * columns, 0.0f);
    counts.mutable_data_ptr<int32_t>()[0] = static_cast<int32_t>(kept);
    counts.mutable_data_ptr<int32_t>()[1] = static_cast<int32_t>(drawn);
    return {index, gradient, counts};
}

std::vector<at::Tensor> take_rows(at::TensorList tensors, const at::Tensor& index_) {
    check_take(tensors, index_);
    const at::Tensor index = index_.contiguous();
    const auto chosen = index.const_data_ptr<int64_t>();
    const int64_t rows = index.size(0), held = tensors[0].size(0);
    for (int64_t i = 0; i < rows; ++i)
        TORCH_CHECK_INDEX(chosen[i] >= 0 && chosen[i] < held, "index[", i, "] = ", chosen[i], " is outside the ", held, " rows");
    std::vector<at::Tensor> taken;
    for (const at::Tensor& tensor : tensors) {
        const at::Tensor source = tensor.contiguous();
        taken.push_back(at::empty(taken_sizes(source, rows), source.options()));
        const auto from = static_cast<const char*>(source.const_data_ptr());
        const auto to = static_cast<char*>(taken.back().mutable_data_ptr());
        const int64_t bytes = row_bytes(source);
        at::parallel_for(0, rows, chunk, [=](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) std::copy_n(from + chosen[i] * bytes, bytes, to + i * bytes);
        });
    }
    return taken;
}

}  // namespace

TORCH_LIBRARY(samplemining, library) {
    library.def(
        "thin_samples(Tensor delta, Tensor noise, Tensor count, Tensor(a!) tau, int room, str budget, float fraction, float floor, "
        "float cap, float momentum, str law, float alpha) -> (Tensor, Tensor, Tensor)");
    library.def("take_rows(Tensor[] tensors, Tensor index) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(samplemining, CPU, library) {
    library.impl("thin_samples", thin_samples);
    library.impl("take_rows", take_rows);
}

}  // namespace samplemining
