// IdMap: raw 64-bit ids -> dense rows 0, 1, 2, ... in the order in which the ids came.
//
// Every id has a row number of 4 bytes in a bucket of 64 bytes, one cache line, and its own 8 bytes
// in a list in row order. A bucket has 12 places, each with a one-byte tag made from the id's hash,
// so that a lookup reads the bucket, compares 12 tags at once, and then one id: two places in
// memory, both fetched ahead for the ids that follow in a batch. A full bucket sends ids to the
// next one, and remembers that it did. 256 shards grow one at a time, each by two fifths and at its
// own moment: no growth stops a stream for long, none needs a second table, and on average an id
// takes 8 + 64 / 12 / 0.74 bytes (each shard is filled to between 0.625 and 0.875).
#pragma once

#include "mix.h"
#include "threads.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <vector>

namespace varemb {

class IdMap {
 public:
  static constexpr int64_t kMostIds = 0xFFFFFFFE;

  explicit IdMap(int64_t capacity) {
    for (int64_t shard = 0; shard < kShards; ++shard) {
      // A shard gets its share of the ids up to a few standard deviations.
      const double share = static_cast<double>(capacity) / kShards;
      const double rows = share + 4 * std::sqrt(share);
      Shard& own = shards_[shard];
      while (own.most_rows() < rows || own.buckets.empty()) own.set_level(own.level + 1, shard);
    }
  }

  int64_t size() const {
    const std::shared_lock lock(mutex_);
    return size_;
  }

  // Bytes of everything the map holds.
  int64_t nbytes() const {
    const std::shared_lock lock(mutex_);
    int64_t bytes = sizeof(*this) + chunks_.capacity() * sizeof(chunks_[0]);
    bytes += static_cast<int64_t>(chunks_.size()) * kChunkIds * sizeof(uint64_t);
    for (const Shard& shard : shards_) bytes += shard.buckets.capacity() * sizeof(Bucket);
    return bytes;
  }

  // Ids in row order; `ids` has room for `count` of them, which must not exceed size().
  void copy_ids(int64_t* ids, int64_t count) const {
    const std::shared_lock lock(mutex_);
    for (int64_t row = 0; row < count; row += kChunkIds) {
      const int64_t length = std::min(kChunkIds, count - row);
      std::memcpy(ids + row, chunks_[row / kChunkIds].get(), length * sizeof(uint64_t));
    }
  }

  // rows[i] = row of ids[i], or -1 when it has none. Returns the first i whose id is not in
  // [0, 2^63), else -1; then `rows` means nothing.
  int64_t find(
      const int64_t* ids,  // [count]
      int64_t count,
      int64_t* rows,  // [count]
      int64_t threads) const {
    const std::shared_lock lock(mutex_);
    std::atomic<int64_t> first_bad = count;
    parallel_for(count, kGrain, threads, [&](int64_t begin, int64_t end) {
      const int64_t bad = find_range(ids, begin, end, rows);
      int64_t seen = first_bad.load();
      while (bad < seen && !first_bad.compare_exchange_weak(seen, bad)) {
      }
    });
    return first_bad == count ? -1 : first_bad.load();
  }

  // Gives the ids that `find` left at -1 the next rows, in order of first appearance.
  void add(
      const int64_t* ids,  // [count], all in [0, 2^63)
      int64_t count,
      int64_t* rows) {  // [count], as find has left them
    const std::unique_lock lock(mutex_);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t ahead = i + kBlock;
      if (ahead < count && rows[ahead] < 0) prefetch_bucket(mix(ids[ahead]));
      if (rows[i] < 0) rows[i] = find_or_add(ids[i]);
    }
  }

 private:
  static constexpr int64_t kShards = 256;
  static constexpr double kGrowth = 1.4;
  static constexpr double kMostLoad = 0.875;
  static constexpr int64_t kChunkIds = 1 << 13;
  static constexpr int64_t kBlock = 32;    // ids whose memory is fetched together
  static constexpr int64_t kGrain = 8192;  // ids worth a thread
  // In place of a row: the id has none; or the bucket alone does not tell.
  static constexpr uint32_t kAbsent = 0xFFFFFFFF;
  static constexpr uint32_t kUnknown = 0xFFFFFFFE;

  // Every part is taken from other bits of the hash: shard, bucket and tag.
  static uint64_t shard_of(uint64_t hash) { return hash >> 56; }
  static uint8_t tag_of(uint64_t hash) { return std::max<uint8_t>(hash & 0xFF, 1); }

  struct alignas(64) Bucket {
    static constexpr int kPlaces = 12;
    uint8_t tags[kPlaces] = {};  // 0 where a place is free; places fill from the first
    uint32_t is_passed = 0;      // 1 if an id whose bucket this is stands in a later one
    uint32_t rows[kPlaces] = {};

    bool is_full() const { return tags[kPlaces - 1] != 0; }

    // One bit (the highest of its byte) for each place with this tag: places 0-7, then 8-11.
    std::array<uint64_t, 2> find_tag(uint8_t tag) const {
      static_assert(std::endian::native == std::endian::little, "place 0 must be the lowest byte");
      constexpr uint64_t kLow = 0x7F7F7F7F7F7F7F7Full;
      std::array<uint64_t, 2> words;
      std::memcpy(words.data(), this, sizeof(words));  // the tags, and is_passed behind them
      for (uint64_t& word : words) {
        word ^= tag * 0x0101010101010101ull;
        word = ~(((word & kLow) + kLow) | word | kLow);  // bytes that became 0
      }
      words[1] &= 0xFFFFFFFF;
      return words;
    }

    void put(uint8_t tag, uint32_t row) {
      const int place = std::find(tags, tags + kPlaces, 0) - tags;
      tags[place] = tag;
      rows[place] = row;
    }
  };

  struct Shard {
    std::vector<Bucket> buckets;
    int64_t rows = 0;
    int level = 0;

    double most_rows() const { return kMostLoad * Bucket::kPlaces * buckets.size(); }

    uint64_t first_bucket(uint64_t hash) const {
      return (((hash >> 8) & 0xFFFFFFFF) * buckets.size()) >> 32;
    }

    // 1.4^(level + shard / 256) buckets, all empty: the shards grow one after another.
    void set_level(int new_level, int64_t shard) {
      const double power = new_level + static_cast<double>(shard) / kShards;
      buckets = std::vector<Bucket>(static_cast<size_t>(std::ceil(std::pow(kGrowth, power))));
      level = new_level;
    }

    void put(uint64_t hash, uint32_t row) {
      uint64_t number = first_bucket(hash);
      while (buckets[number].is_full()) {
        buckets[number].is_passed = 1;
        number = number + 1 == buckets.size() ? 0 : number + 1;
      }
      buckets[number].put(tag_of(hash), row);
      ++rows;
    }
  };

  const uint64_t& id_at(uint32_t row) const {
    return chunks_[row / kChunkIds][static_cast<size_t>(row) % kChunkIds];
  }

  void prefetch_bucket(uint64_t hash) const {
    const Shard& shard = shards_[shard_of(hash)];
    __builtin_prefetch(&shard.buckets[shard.first_bucket(hash)]);
  }

  // The row of the first place of the id's first bucket that has its tag: nearly always the right
  // one. Reads no id.
  uint32_t guess(uint64_t hash) const {
    const Shard& shard = shards_[shard_of(hash)];
    const Bucket& bucket = shard.buckets[shard.first_bucket(hash)];
    const auto [low, high] = bucket.find_tag(tag_of(hash));
    if (low) return bucket.rows[std::countr_zero(low) / 8];
    if (high) return bucket.rows[8 + std::countr_zero(high) / 8];
    return bucket.is_passed ? kUnknown : kAbsent;
  }

  uint32_t find_one(uint64_t id, uint64_t hash) const {
    const Shard& shard = shards_[shard_of(hash)];
    uint64_t number = shard.first_bucket(hash);
    while (true) {  // a shard always has a bucket that is not full, and so not passed
      const Bucket& bucket = shard.buckets[number];
      const auto words = bucket.find_tag(tag_of(hash));
      for (int half = 0; half < 2; ++half) {
        for (uint64_t left = words[half]; left; left &= left - 1) {
          const uint32_t row = bucket.rows[8 * half + std::countr_zero(left) / 8];
          if (id_at(row) == id) return row;
        }
      }
      if (!bucket.is_passed) return kAbsent;
      number = number + 1 == shard.buckets.size() ? 0 : number + 1;
    }
  }

  // Looks ids [begin, end) up, a block at a time: first all buckets are fetched, then all ids that
  // the tags point to, then they are compared. Returns the first bad position, or int64's largest.
  int64_t find_range(const int64_t* ids, int64_t begin, int64_t end, int64_t* rows) const {
    std::array<uint64_t, kBlock> hashes;
    std::array<uint32_t, kBlock> guesses;
    for (int64_t start = begin; start < end; start += kBlock) {
      const int64_t length = std::min(kBlock, end - start);
      int64_t signs = 0;
      for (int64_t i = 0; i < length; ++i) {
        signs |= ids[start + i];
        hashes[i] = mix(ids[start + i]);
        prefetch_bucket(hashes[i]);
      }
      if (signs < 0) {
        return std::find_if(ids + start, ids + end, [](int64_t id) { return id < 0; }) - ids;
      }
      for (int64_t i = 0; i < length; ++i) {
        guesses[i] = guess(hashes[i]);
        if (guesses[i] < kUnknown) __builtin_prefetch(&id_at(guesses[i]));
      }
      for (int64_t i = 0; i < length; ++i) {
        const uint64_t id = ids[start + i];
        uint32_t row = guesses[i];
        const bool is_known = row == kAbsent || (row != kUnknown && id_at(row) == id);
        if (!is_known) row = find_one(id, hashes[i]);
        rows[start + i] = row == kAbsent ? -1 : static_cast<int64_t>(row);
      }
    }
    return std::numeric_limits<int64_t>::max();
  }

  int64_t find_or_add(uint64_t id) {
    const uint64_t hash = mix(id);
    const uint32_t known = find_one(id, hash);
    if (known != kAbsent) return known;
    if (size_ == kMostIds)
      throw std::overflow_error("IdMap: holds 2^32 - 2 ids, which is the most");
    Shard& shard = shards_[shard_of(hash)];
    if (shard.rows + 1 > shard.most_rows()) grow(shard);
    if (size_ == static_cast<int64_t>(chunks_.size()) * kChunkIds) {
      chunks_.push_back(std::make_unique_for_overwrite<uint64_t[]>(kChunkIds));
    }
    chunks_.back()[size_ % kChunkIds] = id;
    shard.put(hash, static_cast<uint32_t>(size_));
    return size_++;
  }

  // Moves a shard's rows into two fifths more buckets.
  void grow(Shard& shard) {
    constexpr size_t kAhead = 4;  // buckets whose ids are fetched
    Shard larger;
    larger.set_level(shard.level + 1, &shard - shards_.data());
    const std::vector<Bucket>& old = shard.buckets;
    for (size_t number = 0; number < old.size(); ++number) {
      if (number + kAhead < old.size()) {
        for (const uint32_t row : old[number + kAhead].rows) {
          if (row < size_) __builtin_prefetch(&id_at(row));
        }
      }
      for (int place = 0; place < Bucket::kPlaces && old[number].tags[place]; ++place) {
        const uint32_t row = old[number].rows[place];
        larger.put(mix(id_at(row)), row);
      }
    }
    shard = std::move(larger);
  }

  mutable std::shared_mutex mutex_;  // lookups beside each other, additions alone
  std::array<Shard, kShards> shards_;
  std::vector<std::unique_ptr<uint64_t[]>> chunks_;  // kChunkIds ids each, in row order
  int64_t size_ = 0;
};

}  // namespace varemb
