// A recurrent layer's steps, as tasks. Callers check shapes. All arrays are float32.
#pragma once

#include <optional>
#include <utility>

#include "core/recurrent/recurrence.h"
#include "task.h"

namespace conifer {

// x (T, C), tail (K-1, C), taps (K, C), bias (C) -> y (T, C) and the new tail.
std::pair<mx::array, mx::array> convolve_task(const mx::array& x, const mx::array& tail,
                                              const mx::array& taps,
                                              const std::optional<mx::array>& bias, bool activate);

// q and k (T, A or 1, B or 1, N), v (T, A, B, P), log_decay (T, A, B) or (T, A, B, N), beta
// (T, A, B), state (A, B, N, P) -> y, with the shape of v, and the new state.
std::pair<mx::array, mx::array> scan_task(const mx::array& q, const mx::array& k,
                                          const mx::array& v, const mx::array& log_decay,
                                          const mx::array& state,
                                          const std::optional<mx::array>& beta, float eps);

// y and gate (T, M, n), weight (M or 1, n) -> (T, M, n).
mx::array gated_norm_task(const mx::array& y, const mx::array& gate, const mx::array& weight,
                          float eps, bool gate_first);

}  // namespace conifer
