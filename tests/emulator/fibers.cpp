// A fiber runs one thread after another until one of them waits; then the next fiber is taken. So a
// kernel that never waits costs no switches.
#include "fibers.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <exception>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace emulator {
namespace {

constexpr size_t kStackBytes = 64 * 1024;
constexpr unsigned kWarp = 32;

struct Fiber {
  ucontext_t context{};
  char* stack = nullptr;
};

enum class State { kFresh, kRunning, kAtBarrier, kAtExchange, kReleased, kDone };

struct Thread {
  State state = State::kFresh;
  Fiber* fiber = nullptr;
  uint32_t mask = 0;
  uint64_t given = 0, taken = 0;
  int source = 0;
};

// Makes AddressSanitizer follow a change of stacks.
void leave_stack(void** saved, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}
void enter_stack(void* saved, const void** bottom, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

class Block {
 public:
  void run(
      unsigned threads,
      const std::function<void(unsigned)>& enter,
      const std::function<void()>& body) {
    threads_.assign(threads, Thread{});
    enter_ = &enter;
    body_ = &body;
    started_ = 0;
    error_ = nullptr;
    is_reversed_ = !is_reversed_;
    while (error_ == nullptr) {
      if (started_ < threads) {
        go(take_fiber());
      } else if (!resume_released() && !release()) {
        break;
      }
    }
    if (error_ != nullptr) {
      // Fibers that still wait are dropped with whatever is on their stacks.
      idle_.clear();
      for (const auto& fiber : fibers_) forget(*fiber), idle_.push_back(fiber.get());
      std::rethrow_exception(error_);
    }
  }

  void wait(State state) {
    Thread& self = threads_[current_];
    const unsigned number = current_;
    self.state = state;
    self.fiber = running_;
    void* fake = nullptr;
    leave_stack(&fake, main_bottom_, main_size_);
    swapcontext(&self.fiber->context, &main_);
    enter_stack(fake, &main_bottom_, &main_size_);
    current_ = number;
    running_ = self.fiber;
    self.state = State::kRunning;
    (*enter_)(number);
  }

  uint64_t exchange(uint32_t mask, uint64_t bits, int source) {
    Thread& self = threads_[current_];
    if ((mask >> current_ % kWarp & 1) == 0)
      throw std::logic_error("a lane is not in the mask of its own shuffle");
    if ((mask >> source & 1) == 0)
      throw std::logic_error("a shuffle reads a lane that is not in its mask");
    self.mask = mask;
    self.given = bits;
    self.source = source;
    wait(State::kAtExchange);
    return threads_[current_].taken;
  }

 private:
  static void entry() { instance().work(); }

  // The life of a fiber: threads that have not started, one after another.
  void work() {
    Fiber* const self = running_;
    void* fake = nullptr;
    while (true) {
      enter_stack(fake, &main_bottom_, &main_size_);
      while (started_ < threads_.size() && error_ == nullptr) {
        const unsigned place = started_++;
        const unsigned number =
            is_reversed_ ? static_cast<unsigned>(threads_.size()) - 1 - place : place;
        current_ = number;
        threads_[number].state = State::kRunning;
        (*enter_)(number);
        try {
          (*body_)();
        } catch (...) {
          error_ = std::current_exception();
        }
        threads_[number].state = State::kDone;
        // It waited: other threads have begun since, and this fiber's place is the idle list.
        if (threads_[number].fiber != nullptr) break;
      }
      idle_.push_back(self);
      leave_stack(&fake, main_bottom_, main_size_);
      swapcontext(&self->context, &main_);
    }
  }

  Fiber* take_fiber() {
    if (idle_.empty()) {
      fibers_.push_back(std::make_unique<Fiber>());
      Fiber& made = *fibers_.back();
      made.stack = static_cast<char*>(
          mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      if (made.stack == MAP_FAILED) throw std::bad_alloc();
      forget(made);
      return &made;
    }
    Fiber* const fiber = idle_.back();
    idle_.pop_back();
    return fiber;
  }

  // Sets a fiber back to its beginning.
  void forget(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, kStackBytes);
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, &Block::entry, 0);
  }

  void go(Fiber* fiber) {
    running_ = fiber;
    void* fake = nullptr;
    leave_stack(&fake, fiber->stack, kStackBytes);
    swapcontext(&main_, &fiber->context);
    enter_stack(fake, nullptr, nullptr);
  }

  bool resume_released() {
    bool any = false;
    for (unsigned i = 0; i < threads_.size() && error_ == nullptr; ++i) {
      const unsigned number = is_reversed_ ? static_cast<unsigned>(threads_.size()) - 1 - i : i;
      if (threads_[number].state != State::kReleased) continue;
      any = true;
      go(threads_[number].fiber);
    }
    return any;
  }

  // Frees the threads that wait for nothing any more; false when the block is done.
  bool release() {
    unsigned done = 0, at_barrier = 0;
    for (const Thread& thread : threads_) {
      done += thread.state == State::kDone;
      at_barrier += thread.state == State::kAtBarrier;
    }
    if (done == threads_.size()) return false;
    bool any = false;
    if (at_barrier == threads_.size()) {
      for (Thread& thread : threads_) thread.state = State::kReleased;
      return true;
    }
    for (unsigned first = 0; first < threads_.size(); first += kWarp) any |= release_warp(first);
    if (!any) {
      error_ = std::make_exception_ptr(
          std::logic_error(
              "threads wait for threads that do not come: " + std::to_string(at_barrier) +
              " at a barrier, " + std::to_string(done) + " done, of " +
              std::to_string(threads_.size())));
    }
    return true;
  }

  bool release_warp(unsigned first) {
    bool any = false;
    uint32_t handled = 0;
    for (unsigned lane = 0; lane < kWarp && first + lane < threads_.size(); ++lane) {
      const Thread& thread = threads_[first + lane];
      if (thread.state != State::kAtExchange || (handled >> lane & 1) != 0) continue;
      const uint32_t mask = thread.mask;
      bool is_complete = true;
      for (unsigned other = 0; other < kWarp; ++other) {
        if ((mask >> other & 1) == 0) continue;
        const bool is_there = first + other < threads_.size() &&
                              threads_[first + other].state == State::kAtExchange &&
                              threads_[first + other].mask == mask;
        is_complete = is_complete && is_there;
      }
      if (!is_complete) continue;
      handled |= mask;
      any = true;
      for (unsigned other = 0; other < kWarp; ++other) {
        if ((mask >> other & 1) == 0) continue;
        Thread& taker = threads_[first + other];
        taker.taken = threads_[first + static_cast<unsigned>(taker.source)].given;
      }
      for (unsigned other = 0; other < kWarp; ++other) {
        if ((mask >> other & 1) != 0) threads_[first + other].state = State::kReleased;
      }
    }
    return any;
  }

 public:
  static Block& instance() {
    static thread_local Block block;
    return block;
  }

 private:
  std::vector<Thread> threads_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<Fiber*> idle_;
  const std::function<void(unsigned)>* enter_ = nullptr;
  const std::function<void()>* body_ = nullptr;
  unsigned started_ = 0, current_ = 0;
  bool is_reversed_ = true;
  Fiber* running_ = nullptr;
  std::exception_ptr error_;
  ucontext_t main_{};
  const void* main_bottom_ = nullptr;
  size_t main_size_ = 0;
};

}  // namespace

void run_block(
    unsigned threads,
    const std::function<void(unsigned)>& enter,
    const std::function<void()>& body) {
  Block::instance().run(threads, enter, body);
}

void wait_for_block() { Block::instance().wait(State::kAtBarrier); }

uint64_t exchange(uint32_t mask, uint64_t bits, int source) {
  return Block::instance().exchange(mask, bits, source);
}

}  // namespace emulator
