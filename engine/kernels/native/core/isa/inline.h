#pragma once

#define CONIFER_INLINE inline __attribute__((always_inline))
