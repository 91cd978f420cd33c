// Attention for one token over 8-bit keys and values, in AMX tiles. Requires a CPU with AMX.
#pragma once

#include "attention/attention.h"

namespace conifer::attention {

// True if attend_one_amx supports this head: Q8, with whole scale groups of 32.
bool amx_serves(const HeadView& head);

// Same as attend_one.
void attend_one_amx(const HeadView& head, const float* queries, int64_t group, int64_t begin,
                    int64_t end, Partial partial, float* scratch);

int64_t amx_scratch(int64_t key_dim, int64_t value_dim);  // floats

}  // namespace conifer::attention
