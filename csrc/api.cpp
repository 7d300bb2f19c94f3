// The functions of laq.h: the choice of a tier, checks of arguments, and no exception that leaves.
#include <algorithm>
#include <atomic>
#include <new>

#include "encode.hpp"
#include "matrix.hpp"
#include "pool.hpp"

namespace laq {
namespace {

const Tier *const kTiers[] = {
    &scalar_tier,
#if defined(LAQ_TIER_AVX2)
    &avx2_tier,
#endif
#if defined(LAQ_TIER_AVX_VNNI)
    &avx_vnni_tier,
#endif
#if defined(LAQ_TIER_AVX512)
    &avx512_tier,
#endif
#if defined(LAQ_TIER_AVX512_VBMI)
    &avx512_vbmi_tier,
#endif
#if defined(LAQ_TIER_NEON)
    &neon_tier,
#endif
};

const Tier *find_tier(int32_t index) {
    for (const Tier *tier : kTiers) {
        if (tier->runs_here() && index-- == 0) return tier;
    }
    return nullptr;
}

std::atomic<const Tier *> chosen{nullptr};

const Tier &current() {
    const Tier *tier = chosen.load(std::memory_order_acquire);
    if (tier == nullptr) {
        for (int32_t i = 0; const Tier *next = find_tier(i); i++) tier = next;
        chosen.store(tier, std::memory_order_release);
    }
    return *tier;
}

bool is_call(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type, int64_t n_inputs,
             void *const *y, int32_t activation_bits) {
    if (n_matrices < 1 || n_inputs < 0 || type < LAQ_FLOAT32 || type > LAQ_FLOAT16 || y == nullptr) return false;
    if (activation_bits != 8 && activation_bits != 16) return false;
    if (n_inputs > 0 && x == nullptr) return false;
    for (int32_t i = 1; i < n_matrices; i++) {
        if (matrices[i].n_columns != matrices[0].n_columns || matrices[i].group_size != matrices[0].group_size ||
            matrices[i].column_permutation != matrices[0].column_permutation) {
            return false;
        }
    }
    return true;
}

struct Reading {
    const uint8_t *bytes;
    int64_t n;
    std::atomic<uint64_t> sum{0};
};

constexpr int64_t kReadBytes = 1 << 17;

void read_part(void *context, int64_t index) {
    Reading &reading = *static_cast<Reading *>(context);
    const int64_t first = index * kReadBytes, last = std::min(reading.n, first + kReadBytes);
    uint64_t sum = 0;
    for (int64_t at = first; at + kLineBytes <= last; at += kLineBytes) {
        uint64_t word;  // memory sends the whole line; asking ahead for others made it slower
        memcpy(&word, reading.bytes + at, sizeof word);
        sum ^= word;
    }
    reading.sum ^= sum;
}

}  // namespace
}  // namespace laq

extern "C" {

int32_t laq_abi_version(void) { return LAQ_ABI_VERSION; }

const char *laq_tier(int32_t index) {
    const laq::Tier *tier = laq::find_tier(index);
    return tier == nullptr ? nullptr : tier->name;
}

const char *laq_current_tier(void) { return laq::current().name; }

int32_t laq_use_tier(const char *name) {
    for (int32_t i = 0; const laq::Tier *tier = laq::find_tier(i); i++) {
        if (strcmp(tier->name, name) == 0) {
            laq::chosen.store(tier, std::memory_order_release);
            return LAQ_OK;
        }
    }
    return LAQ_BAD_ARGUMENT;
}

int32_t laq_set_threads(int32_t n_threads) {
    if (n_threads < 1 || n_threads > 1024) return LAQ_BAD_ARGUMENT;
    laq::Pool::get().set_threads(n_threads);
    return LAQ_OK;
}

int32_t laq_threads(void) { return laq::Pool::get().threads(); }

int32_t laq_check(const laq_matrix *matrix) {
    try {
        return laq::check(*matrix);
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
}

int32_t laq_linear(const laq_matrix *matrices, int32_t n_matrices, const void *x, int32_t type, int64_t n_inputs,
                   int64_t stride, void *const *y, const float *const *bias, int32_t activation_bits) {
    if (!laq::is_call(matrices, n_matrices, x, type, n_inputs, y, activation_bits)) return LAQ_BAD_ARGUMENT;
    try {
        return laq::linear(laq::current(), matrices, n_matrices, x, type, n_inputs, stride, y, bias, activation_bits);
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
}

int32_t laq_rows(const laq_matrix *matrix, const int64_t *stored_rows, int64_t n, void *out, int32_t type) {
    if (n < 0 || type < LAQ_FLOAT32 || type > LAQ_FLOAT16) return LAQ_BAD_ARGUMENT;
    for (int64_t i = 0; i < n; i++) {
        if (stored_rows[i] < 0 || stored_rows[i] >= matrix->n_rows) return LAQ_BAD_ARGUMENT;
    }
    try {
        laq::rows(*matrix, laq::current(), stored_rows, n, static_cast<uint8_t *>(out), type);
    } catch (const std::bad_alloc &) {
        return LAQ_NO_MEMORY;
    }
    return LAQ_OK;
}

int32_t laq_outlier_product(const laq_outliers *outliers, const void *x, int32_t type, int64_t n_inputs, int64_t stride,
                            void *y) {
    if (n_inputs < 0 || type < LAQ_FLOAT32 || type > LAQ_FLOAT16) return LAQ_BAD_ARGUMENT;
    const int32_t problem = laq::check(*outliers);
    if (problem == LAQ_OK) laq::multiply_outliers(*outliers, x, type, n_inputs, stride, y);
    return problem;
}

int32_t laq_run(const laq_step *steps, int64_t n_steps) {
    const laq::Tier &tier = laq::current();
    try {
        for (int64_t i = 0; i < n_steps; i++) {
            const int32_t code = laq::run_step(steps[i], tier);
            if (code != LAQ_OK) return code;
        }
    } catch (const std::exception &) {  // a vector that is too long throws another one
        return LAQ_NO_MEMORY;
    }
    return LAQ_OK;
}

int32_t laq_errors(const laq_source *source, float *errors) {
    const int32_t problem = laq::check(*source);
    return problem == LAQ_OK ? laq::errors(laq::current(), *source, errors) : problem;
}

int32_t laq_round(const laq_source *source, const laq_rounding *rounding) {
    const int32_t problem = laq::check(*source);
    return problem == LAQ_OK ? laq::round(laq::current(), *source, *rounding) : problem;
}

int32_t laq_pack(const laq_tiles *tiles, const uint8_t *codes, uint8_t *payload) {
    const int32_t problem = laq::check(*tiles);
    if (problem == LAQ_OK) laq::pack(laq::current(), *tiles, codes, payload);
    return problem;
}

int32_t laq_unpack(const laq_tiles *tiles, const uint8_t *payload, uint8_t *codes) {
    const int32_t problem = laq::check(*tiles);
    return problem == LAQ_OK ? laq::unpack(laq::current(), *tiles, payload, codes) : problem;
}

uint64_t laq_read(const uint8_t *bytes, int64_t n) {
    laq::Reading reading{bytes, n};
    laq::Pool::get().run((n + laq::kReadBytes - 1) / laq::kReadBytes, laq::read_part, &reading);
    return reading.sum;
}

}  // extern "C"
