// Enough of CUDA's execution model to run csrc/cuda with g++ alone: the threads of a block are fibers, blocks run one
// after another, barriers and shuffles wait for exactly the threads they name.  What the hardware would punish is an
// error here too: misaligned vector accesses, empty or oversized grids, a barrier that some thread never reaches.  The
// order in which threads and blocks run is chosen by the caller, so that a missing barrier shows as a changing result.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __shared__ static
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(bytes) __attribute__((aligned(bytes)))

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorMisalignedAddress = 716,
  cudaErrorLaunchFailure = 719
};
using cudaStream_t = void*;

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

inline cudaError_t error = cudaSuccess;
inline void raise(cudaError_t e) { error = error ? error : e; }

template <class T>
const T& aligned(const T& a) {
  volatile uintptr_t address = reinterpret_cast<uintptr_t>(&a);  // else the compiler trusts the type
  if (address % sizeof(T)) raise(cudaErrorMisalignedAddress);
  return a;
}

template <class T>
struct alignas(2 * sizeof(T)) Two {
  T x, y;
  Two(T x = {}, T y = {}) : x(x), y(y) {}
  Two(const Two& from) : x(aligned(from).x), y(from.y) {}
  Two& operator=(const Two& from) {
    aligned(*this), x = aligned(from).x, y = from.y;
    return *this;
  }
};

template <class T>
struct alignas(4 * sizeof(T)) Four {
  T x, y, z, w;
  Four(T x = {}, T y = {}, T z = {}, T w = {}) : x(x), y(y), z(z), w(w) {}
  Four(const Four& from) : x(aligned(from).x), y(from.y), z(from.z), w(from.w) {}
  Four& operator=(const Four& from) {
    aligned(*this), x = aligned(from).x, y = from.y, z = from.z, w = from.w;
    return *this;
  }
};

constexpr unsigned kMaxThreads = 1024;

struct Barrier {
  unsigned arrived = 0, generation = 0;
};

struct Fiber {
  ucontext_t context;  // to start; from then on `jump`, which needs no system call
  jmp_buf jump;
  std::unique_ptr<char[]> stack{new char[1 << 16]};
  dim3 index;
  bool started = false, done = false;
  unsigned shuffles = 0;
};

enum class Order { Forward, Backward, Shuffled };
inline Order order = Order::Forward;
inline std::string launches;  // "grid.x,grid.y,block.x,block.y;" for each launch

inline std::vector<Fiber> fibers(kMaxThreads);
inline Fiber* current = nullptr;
inline jmp_buf scheduler;
inline std::function<void()> body;
inline uint64_t progress = 0;
inline Barrier barriers[16], warp_barriers[kMaxThreads / 32];
inline uint32_t lanes[2][kMaxThreads];

inline void resume(Fiber& fiber) {
  current = &fiber;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.jump, 1);
  fiber.started = true;
  setcontext(&fiber.context);
}

inline void yield() {
  if (!_setjmp(current->jump)) _longjmp(scheduler, 1);
}

inline void wait(Barrier& barrier, unsigned threads) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
  }
  while (barrier.generation == generation) yield();
  ++progress;
}

inline unsigned linear_thread() { return threadIdx.x + blockDim.x * threadIdx.y; }

inline uint32_t draw(uint32_t& seed) {
  seed = seed * 1664525u + 1013904223u;
  return seed >> 8;
}

inline void permute(std::vector<unsigned>& indices, uint32_t& seed) {
  if (order == Order::Backward) std::reverse(indices.begin(), indices.end());
  if (order != Order::Shuffled) return;
  for (size_t i = indices.size(); i > 1; --i) std::swap(indices[i - 1], indices[draw(seed) % i]);
}

inline std::vector<unsigned> count_to(unsigned n) {
  std::vector<unsigned> indices(n);
  for (unsigned i = 0; i < n; ++i) indices[i] = i;
  return indices;
}

inline void run_block() {
  const unsigned threads = blockDim.x * blockDim.y;
  static uint32_t seed = 1;
  std::vector<unsigned> turn = count_to(threads);
  permute(turn, seed);
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.index = dim3(i % blockDim.x, i / blockDim.x);
    fiber.started = fiber.done = false, fiber.shuffles = 0;
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = 1 << 16;
    fiber.context.uc_link = nullptr;
    makecontext(
        &fiber.context,
        [] {
          body();
          current->done = true;
          ++progress;
          yield();
        },
        0);
  }
  for (Barrier& barrier : barriers) barrier = {};
  for (Barrier& barrier : warp_barriers) barrier = {};
  uint32_t still = 0;
  uint64_t pass = 0;
  for (unsigned left = threads; left > 0; ++pass) {
    const uint64_t before = progress;
    // Shuffled: half of the warps stand still for a while, and the others run as far ahead of them as barriers let
    // them.
    if (order == Order::Shuffled && pass % 32 == 0) still = draw(seed);
    left = 0;
    for (unsigned i : turn) {
      if (!fibers[i].done && !(still >> i / 32 % 16 & 1)) resume(fibers[i]);
      left += !fibers[i].done;
    }
    if (progress > before) continue;
    if (left > 0 && !still) return raise(cudaErrorLaunchFailure);  // some wait for who never comes
    still = 0;
  }
}

}  // namespace emulation

using uint2 = emulation::Two<uint32_t>;
using float2 = emulation::Two<float>;
using uint4 = emulation::Four<uint32_t>;

template <class T>
T __ldg(const T* address) {
  return *address;
}

inline void __barrier_sync_count(unsigned id, unsigned threads) {
  if (threads % 32 || id > 15) return emulation::raise(cudaErrorLaunchFailure);
  emulation::wait(emulation::barriers[id], threads);
}
inline void __syncthreads() { __barrier_sync_count(0, blockDim.x * blockDim.y); }

inline float __shfl_xor_sync(unsigned mask, float value, int offset) {
  using namespace emulation;
  if (mask != 0xffffffffu) raise(cudaErrorLaunchFailure);
  const unsigned me = linear_thread();
  // Two buffers: a lane can run at most one shuffle ahead of its warp.
  uint32_t* buffer = lanes[current->shuffles++ % 2];
  memcpy(&buffer[me], &value, 4);
  wait(warp_barriers[me / 32], 32);
  memcpy(&value, &buffer[me ^ offset], 4);
  return value;
}

inline float rsqrtf(float a) { return 1.f / std::sqrt(a); }
inline float __fdividef(float a, float b) { return a / b; }

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               const Arguments&... arguments) {
  using namespace emulation;
  gridDim = config->gridDim, blockDim = config->blockDim;
  for (unsigned n : {gridDim.x, gridDim.y, blockDim.x, blockDim.y}) launches += std::to_string(n) + ",";
  launches.back() = ';';
  const unsigned threads = blockDim.x * blockDim.y;
  if (!gridDim.x || !gridDim.y || gridDim.x > 2147483647u || gridDim.y > 65535u || !threads || threads > kMaxThreads)
    raise(cudaErrorInvalidConfiguration);
  body = [&] { kernel(arguments...); };
  static uint32_t seed = 2;
  for (unsigned y = 0; y < gridDim.y; ++y) {
    std::vector<unsigned> columns = count_to(gridDim.x);
    permute(columns, seed);
    for (unsigned x : columns) {
      if (error) return error;
      blockIdx = dim3(x, order == Order::Backward ? gridDim.y - 1 - y : y);
      run_block();
    }
  }
  return error;
}

inline cudaError_t cudaGetLastError() { return std::exchange(emulation::error, cudaSuccess); }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the emulation"; }
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 132;
  return cudaSuccess;
}
