// Half numbers: each operation in float, rounded.
#pragma once

#include "cuda_runtime.h"

struct __half {
    _Float16 value;
    __half() = default;
    explicit __half(float number) : value(static_cast<_Float16>(number)) {}
    explicit operator float() const { return value; }
};

struct alignas(4) __half2 {
    __half x, y;
};

inline __half __float2half_rn(float number) { return __half(number); }
inline float __half2float(__half number) { return static_cast<float>(number); }
inline float2 __half22float2(__half2 pair) { return {__half2float(pair.x), __half2float(pair.y)}; }
inline __half2 __floats2half2_rn(float x, float y) { return {__half(x), __half(y)}; }
inline __half2 __float22half2_rn(float2 pair) { return {__half(pair.x), __half(pair.y)}; }
inline __half2 __halves2half2(__half x, __half y) { return {x, y}; }
inline __half __low2half(__half2 pair) { return pair.x; }
inline __half __high2half(__half2 pair) { return pair.y; }
inline __half __hadd(__half a, __half b) { return __half(__half2float(a) + __half2float(b)); }

inline __half __hmax_nan(__half a, __half b) {
    const float x = __half2float(a), y = __half2float(b);
    return x != x || x > y ? a : b;  // where y is NaN, x > y is false
}
inline __half2 __hmax2_nan(__half2 a, __half2 b) { return {__hmax_nan(a.x, b.x), __hmax_nan(a.y, b.y)}; }

// Greater than, or one of the two NaN.
inline unsigned __hgtu2_mask(__half2 a, __half2 b) {
    const float2 x = __half22float2(a), y = __half22float2(b);
    return (x.x <= y.x ? 0u : 0xffffu) | (x.y <= y.y ? 0u : 0xffff0000u);
}
