// Reads past the page cache.
#include "store/reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <stdexcept>
#include <thread>
#include <utility>

namespace conifer::store {

namespace {

#ifdef O_DIRECT
constexpr int DIRECT = O_DIRECT;
#else
constexpr int DIRECT = 0;
#endif

constexpr int MAX_TRIES = 8;  // of a read that returns less than a page
constexpr int SPINS = 500;    // before a wait sleeps

int open_file(const std::string& path, int flags) {
  return open(path.c_str(), O_RDONLY | O_CLOEXEC | flags);
}

}  // namespace

File::File(const std::string& path) : number_(open_file(path, DIRECT)), direct_(true) {
  if (number_ < 0 && errno == EINVAL) {
    direct_ = false;
    number_ = open_file(path, 0);
  }
  if (number_ < 0) throw std::runtime_error("cannot open " + path + ": " + std::strerror(errno));
#ifdef F_NOCACHE
  fcntl(number_, F_NOCACHE, 1);
#endif
}

File::~File() { close(number_); }

int File::read(const ReadAt& read_at, uint8_t* to, int64_t begin, int64_t end,
               int64_t needed) const {
  int tries = 0;
  for (int64_t at = begin; at < needed;) {
    const ssize_t got = read_at(number_, to + (at - begin), size_t(end - at), off_t(at));
    if (got < 0) {
      if (errno == EINTR) continue;
      if (errno != EINVAL || !direct_.exchange(false)) return errno ? errno : EIO;
#ifdef O_DIRECT
      fcntl(number_, F_SETFL, fcntl(number_, F_GETFL) & ~O_DIRECT);
#endif
      continue;
    }
#ifdef POSIX_FADV_DONTNEED
    if (!direct_) posix_fadvise(number_, off_t(at), off_t(got), POSIX_FADV_DONTNEED);
#endif
    if (at + got >= needed) return 0;
    const int64_t whole = page_start(got);
    struct stat now;
    if (fstat(number_, &now) == 0 && now.st_size < needed) return SHRANK;
    if (whole == 0 && ++tries == MAX_TRIES) return EIO;
    at += whole;
  }
  return 0;
}

struct Readers::Queue {
  std::mutex mutex;
  std::condition_variable more, arrived;
  std::deque<Read> reads;
  ReadAt read_at = pread;
  Failure failure;
  std::atomic<bool> ending{false}, stopped{false};
  std::atomic<int> sleepers{0};
  std::atomic<int64_t> bytes{0};

  void work() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      more.wait(lock, [&] { return ending || !reads.empty(); });
      if (ending) return;
      const Read read = std::move(reads.front());
      reads.pop_front();
      const ReadAt read_at = this->read_at;
      lock.unlock();
      const int error = read.file->read(read_at, read.to, read.begin, read.end, read.needed);
      bytes.fetch_add(read.end - read.begin, std::memory_order_relaxed);
      if (error) {
        lock.lock();
        if (!failure.error) failure = {error, read.layer, read.expert, read.part, read.begin};
        stopped = true;  // before the count says that the matrix is there
        lock.unlock();
      }
      read.left->fetch_sub(1);
      wake();
      lock.lock();
    }
  }

  void wake() {
    if (sleepers == 0) return;
    {
      const std::lock_guard<std::mutex> lock(mutex);
    }  // those that checked before now wait
    arrived.notify_all();
  }
};

Readers::Readers(int threads) : queue_(std::make_shared<Queue>()) {
  // A read may hang with its disk, so nothing joins these threads.
  for (int i = 0; i < threads; ++i) {
    try {
      std::thread([queue = queue_] { queue->work(); }).detach();
    } catch (const std::system_error&) {
      if (i == 0) throw;
      return;
    }
  }
}

Readers::~Readers() {
  {
    const std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->ending = true;
    queue_->reads.clear();
  }
  queue_->more.notify_all();
}

void Readers::add(const std::vector<Read>& reads) {
  {
    const std::lock_guard<std::mutex> lock(queue_->mutex);
    queue_->reads.insert(queue_->reads.end(), reads.begin(), reads.end());
  }
  if (reads.size() == 1) queue_->more.notify_one();
  else queue_->more.notify_all();
}

void Readers::drop() {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  for (const Read& read : queue_->reads) read.left->fetch_sub(1);
  queue_->reads.clear();
}

bool Readers::wait_for(const std::function<bool()>& ready, std::atomic<int64_t>* waited_ns) {
  using Clock = std::chrono::steady_clock;
  const auto start = Clock::now();
  bool done = false;
  for (int i = 0; i < SPINS && !done; ++i) done = queue_->stopped || ready();
  if (!done) {
    std::unique_lock<std::mutex> lock(queue_->mutex);
    ++queue_->sleepers;  // before the last check; wake() looks in reverse order
    queue_->arrived.wait(lock, [&] { return queue_->stopped || ready(); });
    --queue_->sleepers;
  }
  if (waited_ns) *waited_ns += std::chrono::nanoseconds(Clock::now() - start).count();
  return !queue_->stopped;
}

void Readers::stop() {
  queue_->stopped = true;
  queue_->wake();
}

void Readers::resume() {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  queue_->failure = {};
  queue_->stopped = false;
}

bool Readers::stopped() const { return queue_->stopped; }

Failure Readers::failure() const {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  return queue_->failure;
}

int64_t Readers::bytes_read() const { return queue_->bytes; }

void Readers::replace(ReadAt read_at) {
  const std::lock_guard<std::mutex> lock(queue_->mutex);
  queue_->read_at = read_at ? std::move(read_at) : ReadAt(pread);
}

}  // namespace conifer::store
