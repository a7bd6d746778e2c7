// The threads of a block as fibers of one host thread, switched where a thread waits for others.
#pragma once

#include <cstdint>
#include <functional>

namespace emulator {

// Runs body once for each thread of a block; enter(thread) is called before a thread runs or goes
// on. Even blocks start their threads in order, odd ones in reverse, so that code that leans on an
// order shows.
//
// Throws what body throws; std::logic_error when threads wait for others that do not come.
void run_block(
    unsigned threads,
    const std::function<void(unsigned)>& enter,
    const std::function<void()>& body);

// Waits until every thread of the block waits here.
void wait_for_block();

// Waits until every lane of the mask has called; returns the bits of lane `source` of the warp.
uint64_t exchange(uint32_t mask, uint64_t bits, int source);

}  // namespace emulator
