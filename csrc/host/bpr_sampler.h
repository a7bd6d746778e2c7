// BprSampler: (user, positive, negative) triples, the negative uniform over what the user has not
// seen.
//
// A user's seen items lie sorted, so the k-th unseen item is found by one binary search: nothing is
// drawn in vain, also for a user who has seen nearly everything. Triple number i is a function of
// the seed and i alone, so that any number of threads gives the same triples.
#pragma once

#include "mix.h"
#include "threads.h"

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

namespace varemb {

// One entry per interaction; every number is in range.
struct Pairs {
  std::span<const int64_t> users;
  std::span<const int64_t> items;
};

class BprSampler {
 public:
  // Positives come from `pairs`; nobody gets a negative from `pairs` or `also_seen`, or one that is
  // not in `allowed` (sorted, distinct). Throws std::invalid_argument for a user without negatives.
  BprSampler(
      const Pairs& pairs,
      const Pairs& also_seen,
      int64_t num_users,
      int64_t num_items,
      std::span<const int64_t> allowed,
      uint64_t seed,
      bool is_per_user)
      : allowed_(allowed.begin(), allowed.end()), key_(mix(seed + kStep)), per_user_(is_per_user) {
    const ByUser positives = group(pairs.users, pairs.items, num_users);
    positive_starts_ = positives.starts;
    positives_ = positives.items;
    fill_seen(pairs, also_seen, num_users, num_items);
    for (int64_t user = 0; user < num_users; ++user) {
      const int64_t count = positive_starts_[user + 1] - positive_starts_[user];
      if (count == 0) continue;
      if (unseen(user) == 0) {
        throw std::invalid_argument(
            "BprSampler: every user needs an item that may be a negative, user " +
            std::to_string(user) + " has seen all of " + std::to_string(allowed_.size()));
      }
      active_.insert(active_.end(), per_user_ ? 1 : count, static_cast<int32_t>(user));
    }
  }

  // Triples number first, first + 1, ..., first + count - 1.
  void sample(
      int64_t first,
      int64_t count,
      int64_t* users,      // [count]
      int64_t* positives,  // [count]
      int64_t* negatives,  // [count]
      int64_t threads) const {
    parallel_for(count, kGrain, threads, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const uint64_t number = 3 * static_cast<uint64_t>(first + i);
        const int64_t place = draw(number, active_.size());
        const int64_t user = active_[place];
        const int64_t start = positive_starts_[user];
        const int64_t chosen =
            per_user_ ? start + draw(number + 1, positive_starts_[user + 1] - start) : place;
        users[i] = user;
        positives[i] = positives_[chosen];
        negatives[i] = allowed_[unseen_at(user, draw(number + 2, unseen(user)))];
      }
    });
  }

 private:
  static constexpr int64_t kGrain = 8192;  // triples worth a thread
  static constexpr uint64_t kStep = 0x9E3779B97F4A7C15ull;

  struct ByUser {
    std::vector<int64_t> starts;  // [num_users + 1]
    std::vector<int32_t> items;
  };

  // Items of each user, in the order given.
  static ByUser group(
      std::span<const int64_t> users,
      std::span<const int64_t> items,
      int64_t num_users) {
    ByUser grouped{std::vector<int64_t>(num_users + 1), std::vector<int32_t>(items.size())};
    for (const int64_t user : users) ++grouped.starts[user + 1];
    std::partial_sum(grouped.starts.begin(), grouped.starts.end(), grouped.starts.begin());
    std::vector<int64_t> next(grouped.starts.begin(), grouped.starts.end() - 1);
    for (size_t i = 0; i < items.size(); ++i) {
      grouped.items[next[users[i]]++] = static_cast<int32_t>(items[i]);
    }
    return grouped;
  }

  // seen_: per user, sorted and distinct, the places in `allowed_` of the items seen.
  void fill_seen(const Pairs& pairs, const Pairs& also_seen, int64_t num_users, int64_t num_items) {
    std::vector<int32_t> place_of(num_items, -1);
    for (size_t i = 0; i < allowed_.size(); ++i) place_of[allowed_[i]] = static_cast<int32_t>(i);
    std::vector<int64_t> users, places;
    for (const Pairs* each : {&pairs, &also_seen}) {
      for (size_t i = 0; i < each->users.size(); ++i) {
        if (place_of[each->items[i]] < 0) continue;
        users.push_back(each->users[i]);
        places.push_back(place_of[each->items[i]]);
      }
    }
    ByUser seen = group(users, places, num_users);
    int64_t kept = 0;
    for (int64_t user = 0; user < num_users; ++user) {
      const auto begin = seen.items.begin() + seen.starts[user];
      const auto end = seen.items.begin() + seen.starts[user + 1];
      seen.starts[user] = kept;  // read for the last time before
      std::sort(begin, end);
      kept = std::unique_copy(begin, end, seen.items.begin() + kept) - seen.items.begin();
    }
    seen.starts[num_users] = kept;
    seen.items.resize(kept);
    seen.items.shrink_to_fit();
    seen_ = std::move(seen);
  }

  int64_t unseen(int64_t user) const {
    const int64_t seen = seen_.starts[user + 1] - seen_.starts[user];
    return static_cast<int64_t>(allowed_.size()) - seen;
  }

  // The k-th place of `allowed_` that the user has not seen: k plus the seen ones up to there.
  int64_t unseen_at(int64_t user, int64_t k) const {
    const int32_t* seen = seen_.items.data() + seen_.starts[user];
    int64_t low = 0;
    int64_t high = seen_.starts[user + 1] - seen_.starts[user];
    while (low < high) {  // the first i with seen[i] - i > k; the difference never falls
      const int64_t middle = (low + high) / 2;
      if (seen[middle] - middle > k) {
        high = middle;
      } else {
        low = middle + 1;
      }
    }
    return k + low;
  }

  // Number `number` of the random sequence, as one of 0 ... below - 1 (uniform up to below / 2^64).
  int64_t draw(uint64_t number, int64_t below) const {
    const auto wide = static_cast<unsigned __int128>(mix(key_ + kStep * number));
    return static_cast<int64_t>((wide * static_cast<uint64_t>(below)) >> 64);
  }

  std::vector<int32_t> allowed_;
  uint64_t key_;
  bool per_user_;
  std::vector<int64_t> positive_starts_;  // [num_users + 1]
  std::vector<int32_t> positives_;        // grouped by user
  ByUser seen_;
  std::vector<int32_t> active_;  // the user of every pair, or every user who has one
};

}  // namespace varemb
