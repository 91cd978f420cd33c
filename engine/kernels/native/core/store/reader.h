// Reads of a model's files past the page cache, by a few threads at once.
#pragma once

#include <sys/types.h>

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace conifer::store {

constexpr int64_t PAGE = 4096;  // direct reads start, end and arrive at multiples of it

constexpr int64_t page_start(int64_t at) { return at / PAGE * PAGE; }
constexpr int64_t page_end(int64_t at) { return page_start(at + PAGE - 1); }

// Same as pread. Tests replace it with one that is slow, reads less or fails.
using ReadAt = std::function<ssize_t(int file, void* to, size_t bytes, off_t at)>;

// A file, opened for direct reads if its file system allows them. Otherwise, what was read is
// dropped from the page cache.
class File {
 public:
  explicit File(const std::string& path);  // throws std::runtime_error
  ~File();
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  // Read begin..end, whole pages, into `to`. The file may end after `needed`. Returns 0, SHRANK if
  // the file ends before `needed`, or an errno.
  int read(const ReadAt& read_at, uint8_t* to, int64_t begin, int64_t end, int64_t needed) const;

  static constexpr int SHRANK = -1;

 private:
  int number_;
  mutable std::atomic<bool> direct_;
};

struct Read {
  const File* file;
  uint8_t* to;
  int64_t begin, end, needed;
  std::atomic<int>* left;  // reads that the same matrix still needs
  int layer, expert, part;
  std::shared_ptr<const void> memory;  // keeps all of this alive
};

// Why a read failed. error: File::SHRANK or an errno.
struct Failure {
  int error = 0, layer = 0, expert = 0, part = 0;
  int64_t offset = 0;
};

// Threads that read in the order of the calls to `add`.
class Readers {
 public:
  explicit Readers(int threads);
  // Does not wait for reads that have begun.
  ~Readers();
  Readers(const Readers&) = delete;
  Readers& operator=(const Readers&) = delete;

  void add(const std::vector<Read>& reads);
  // Forget the reads that have not begun.
  void drop();

  // Wait until `ready` or `stop`. Returns false if stopped. Adds the time to `waited_ns`, unless
  // null. `ready` must become true by the end of a read.
  template <class Ready>
  bool wait(Ready&& ready, std::atomic<int64_t>* waited_ns) {
    return ready() ? !stopped() : wait_for(std::ref(ready), waited_ns);
  }

  // Let every wait end, until `resume`. A failed read does the same.
  void stop();
  void resume();
  bool stopped() const;

  // The first failure since the last resume; error 0: none.
  Failure failure() const;
  int64_t bytes_read() const;
  void replace(ReadAt read_at);

 private:
  struct Queue;
  bool wait_for(const std::function<bool()>& ready, std::atomic<int64_t>* waited_ns);

  std::shared_ptr<Queue> queue_;
};

}  // namespace conifer::store
