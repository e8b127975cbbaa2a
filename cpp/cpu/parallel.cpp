#include "cpu/parallel.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <new>
#include <system_error>
#include <thread>

namespace sigmoid_ce {
namespace cpu {
namespace {

void relax() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// A sleeping thread takes longer to wake than a small call takes to run, so threads look for work (and for
// the end of it) this long before they sleep. Short, since a busy CPU is taken from somebody else.
constexpr std::chrono::microseconds kSpin(20);

template <class Condition>
bool spin_until(Condition condition) {
  const auto end = std::chrono::steady_clock::now() + kSpin;
  do {
    for (int i = 0; i < 32; ++i) {
      if (condition()) return true;
      relax();
    }
  } while (std::chrono::steady_clock::now() < end);
  return condition();
}

class Pool {
 public:
  // One task at a time: false when another thread has the workers.
  bool acquire() { return !taken_.exchange(true, std::memory_order_acquire); }
  void release() { taken_.store(false, std::memory_order_release); }

  void run(int helpers, void (*task)(void*), void* context) {
    start_workers(helpers);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      task_ = task;
      context_ = context;
      open_.store(helpers, std::memory_order_relaxed);
    }
    if (helpers == 1) {
      wake_.notify_one();
    } else {
      wake_.notify_all();
    }
    task(context);
    std::unique_lock<std::mutex> lock(mutex_);
    open_.store(0, std::memory_order_relaxed);
    if (running_.load(std::memory_order_relaxed) == 0) return;
    lock.unlock();
    spin_until([this] { return running_.load(std::memory_order_relaxed) == 0; });
    lock.lock();
    done_.wait(lock, [this] { return running_.load(std::memory_order_relaxed) == 0; });
  }

 private:
  // Fewer, or none, where the system refuses a thread: the caller does the work then.
  void start_workers(int count) {
    while (workers_ < count) {
      try {
        std::thread(&Pool::work, this).detach();
      } catch (const std::system_error&) {
        return;
      } catch (const std::bad_alloc&) {
        return;
      }
      ++workers_;
    }
  }

  void work() {
    for (;;) {
      spin_until([this] { return open_.load(std::memory_order_relaxed) > 0; });
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, [this] { return open_.load(std::memory_order_relaxed) > 0; });
      open_.fetch_sub(1, std::memory_order_relaxed);
      running_.fetch_add(1, std::memory_order_relaxed);
      void (*task)(void*) = task_;
      void* context = context_;
      lock.unlock();
      task(context);
      lock.lock();
      running_.fetch_sub(1, std::memory_order_relaxed);
      done_.notify_one();
    }
  }

  std::atomic<bool> taken_{false};
  int workers_ = 0;  // of the thread that acquired the pool

  // Changed under the mutex; atomic so that spinning threads may look without it.
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::atomic<int> open_{0};     // workers that may still join
  std::atomic<int> running_{0};  // workers that have
  void (*task_)(void*) = nullptr;
  void* context_ = nullptr;
};

// Never destroyed: workers sleep in it until the process ends. A forked child has no workers, and the
// parent's pool may be locked in it for ever, so it starts another.
std::atomic<Pool*> pool{nullptr};

void forget_pool() { pool.store(nullptr, std::memory_order_relaxed); }

Pool* get_pool() {
  Pool* p = pool.load(std::memory_order_acquire);
  if (p != nullptr) return p;
  static const int registered = pthread_atfork(nullptr, nullptr, forget_pool);
  if (registered != 0) return nullptr;
  Pool* fresh = new (std::nothrow) Pool;
  if (fresh == nullptr) return nullptr;
  if (pool.compare_exchange_strong(p, fresh, std::memory_order_acq_rel)) return fresh;
  delete fresh;  // another thread was first
  return p;
}

}  // namespace

void run_parallel(int threads, void (*task)(void* context), void* context) {
  Pool* p = threads > 1 ? get_pool() : nullptr;
  if (p == nullptr || !p->acquire()) {
    task(context);
    return;
  }
  p->run(threads - 1, task, context);
  p->release();
}

}  // namespace cpu
}  // namespace sigmoid_ce
