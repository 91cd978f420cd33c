// The output head. See block.h.
#include "blocks/steps.h"

namespace conifer::blocks {

void head_block(const Head& head, const float* x, int64_t tokens, float* logits, Workspace& work,
                Pool& pool) {
  Workspace::Parts& parts = *work.parts;
  const int64_t width = head.output.cols;
  float* normed = parts.normed.need(tokens * width);
  // The head only sees the last token, so it is the same for a prompt and for decoding.
  const gemm::Tokens kind = tokens == 1 ? gemm::Tokens::Single : gemm::Tokens::Prompt;
  parts.input.prepare(normed, tokens, width, width, false, kind);
  RowSharing rows;
  pool.run([&](int thread, int threads) {
    const Range tokens_here = share(tokens, thread, threads, 1);
    for (int64_t t = tokens_here.begin; t < tokens_here.end; ++t)
      normalize(x + t * width, head.norm, width, normed + t * width);
    pool.barrier();
    parts.input.quantize(thread, threads);
    pool.barrier();
    rows.share_out(head.output.rows, thread, threads,
                   [&](Range some) { multiply_rows(head.output, parts.input, logits, some); });
  });
}

}  // namespace conifer::blocks
