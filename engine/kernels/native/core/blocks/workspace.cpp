// Defined here because block.h only declares Workspace::Parts.
#include "blocks/workspace.h"

namespace conifer::blocks {

Workspace::Workspace() : parts(std::make_unique<Parts>()) {}
Workspace::~Workspace() = default;

}  // namespace conifer::blocks
