// Ranges of work on a few threads of our own: host code does not see torch's pool.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

namespace varemb {

// Calls work(begin, end) for disjoint ranges that cover [0, count), at most `threads` at a time and
// none shorter than `grain` but for the only one: a thread costs about as much as 1,000 lookups.
// `work` must not throw.
template <class Work>
void parallel_for(int64_t count, int64_t grain, int64_t threads, const Work& work) {
  const int64_t parts = std::clamp<int64_t>(count / grain, 1, std::max<int64_t>(threads, 1));
  std::vector<std::jthread> others;  // joined when it goes, also when a thread cannot be started
  for (int64_t part = 1; part < parts; ++part) {
    others.emplace_back(work, count * part / parts, count * (part + 1) / parts);
  }
  work(int64_t{0}, count / parts);
}

}  // namespace varemb
