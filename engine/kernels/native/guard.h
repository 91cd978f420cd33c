// Mapped files whose pages may be lost: the file shrinks, or its disk fails. The kernel then raises
// SIGBUS. A handler maps zeros over the rest of the file and sets a flag, so that the step goes on
// and its caller can discard the result.
#pragma once

#include <cstddef>

namespace conifer {

// Watch a mapping. Returns its number, or -1 if too many are watched or signals cannot be handled.
int watch(const void* start, size_t bytes);

// True once a page of this mapping was lost.
bool lost(int watched);

void unwatch(int watched);

}  // namespace conifer
