// The C++ host that the Python one is held against: the same ring and the same kernel, and what one would write without
// us. Compiled by cpp_host.py; every function gives the nanoseconds of each round trip.
#include <dlfcn.h>
#include <emmintrin.h>

#include <chrono>
#include <cstdint>

using u32 = uint32_t;
using u64 = uint64_t;

static inline double now() {
  return std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Words of caller.py: addresses of control block, slots, records, busy bytes; mask, shift, published, fences, generation.
struct Ring { u64 control, slots, records, busy, mask, shift, published, fences, generation, held; };
enum { TAIL = 0, LEFT = 16 };  // u64 words of the control block
enum { DONE = 3 };             // status of a record

static inline volatile u64* control_of(Ring* ring) { return (volatile u64*)ring->control; }

static inline void publish(Ring* ring, const u32* slot) {
  const u64 s = ring->published, at = s & ring->mask;
  volatile u32* to = (volatile u32*)ring->slots + 16 * at;
  to[0] = 0;
  for (int i = 1; i < 16; ++i)
    if (i != 9) to[i] = slot[i];
  to[9] = slot[9] | (u32)((s >> ring->shift) & 0xFFFF) << 16;
  to[0] = 1;
  ring->published = s + 1;
  control_of(ring)[TAIL] = s + 1;
}
static inline volatile u64* record_of(Ring* ring, u64 sequence) {
  return (volatile u64*)ring->records + 8 * (sequence & ring->mask);
}

// Up to a microsecond of nothing, so that trips do not fall into step with the kernel's looks.
static inline void pause_somewhat(u32* seed) {
  *seed = *seed * 1664525u + 1013904223u;
  const double until = now() + 1000.0 * (*seed >> 8) / 16777216.0;
  while (now() < until) _mm_pause();
}

extern "C" {

// Publish one slot and see its result, n times. `look` starts a stay when the last one is over; such trips are left out.
// Returns how many are in `taken`, or ~0 when a result was wrong.
u64 drive(Ring* ring, const u32* slot, u64 n, volatile float* result, float want, double* taken, void (*look)()) {
  u64 kept = 0;
  u32 seed = 1;
  for (u64 i = 0; i < n; ++i) {
    pause_somewhat(&seed);
    if (result) *result = -1.0f;
    const double began = now();
    publish(ring, slot);
    const u64 s = ring->published - 1;
    volatile u64* record = record_of(ring, s);
    bool lapsed = false;
    for (u64 spins = 1; *record != s + 1; ++spins) {
      _mm_pause();
      if ((spins & 15) == 0 && control_of(ring)[LEFT] == ring->generation) { lapsed = true; look(); }
    }
    if (result && *result != want) return ~0ull;
    if (!lapsed) taken[kept++] = now() - began;
  }
  return kept;
}

// A word to the device and one back.
u64 ping(volatile u64* word, volatile u64* reply, u64 n, double* taken) {
  u32 seed = 1;
  for (u64 i = 1; i <= n; ++i) {
    pause_somewhat(&seed);
    const double began = now();
    *word = i;
    while (*reply != i) {
      _mm_pause();
      if (now() - began > 1e9) return i - 1;
    }
    taken[i - 1] = now() - began;
  }
  return n;
}

typedef int (*LaunchKernel)(void*, u32, u32, u32, u32, u32, u32, u32, void*, void**, void**);
typedef int (*Synchronize)(void*);
typedef int (*LaunchGraph)(void*, void*);
static void* driver(const char* name) { return dlsym(dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL), name); }

u64 launches(void* kernel, void* stream, void** arguments, u64 n, double* taken) {
  auto launch = (LaunchKernel)driver("cuLaunchKernel");
  auto wait = (Synchronize)driver("cuStreamSynchronize");
  for (u64 i = 0; i < n; ++i) {
    const double began = now();
    if (launch(kernel, 1, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr) || wait(stream)) return i;
    taken[i] = now() - began;
  }
  return n;
}

u64 graphs(void* executable, void* stream, u64 n, double* taken) {
  auto launch = (LaunchGraph)driver("cuGraphLaunch");
  auto wait = (Synchronize)driver("cuStreamSynchronize");
  for (u64 i = 0; i < n; ++i) {
    const double began = now();
    if (launch(executable, stream) || wait(stream)) return i;
    taken[i] = now() - began;
  }
  return n;
}

// --- Poisson arrivals: item i is due at due[i] ns after the start; delay[i] becomes the time from then to its result ------

// Into the ring, one slot each, as soon as it is due.
u64 arrive_ring(Ring* ring, const u32* slot, u64 n, const double* due, double* delay, void (*look)()) {
  const u64 base = ring->published;
  u64 out = 0, in = 0;
  const double began = now();
  while (in < n) {
    const double t = now() - began;
    for (u32 burst = 0; out < n && due[out] <= t && out - in <= ring->mask && burst < 64; ++burst, ++out) publish(ring, slot);
    for (; in < out && *record_of(ring, base + in) == base + in + 1; ++in) {
      delay[in] = now() - began - due[in];
      if ((u32)record_of(ring, base + in)[1] != DONE) return in;
    }
    if (in < out && control_of(ring)[LEFT] == ring->generation) look();
    if (t > 2e10) break;
  }
  return in;
}

// A launch for each. The kernel's last argument is where and what it reports: reports[i % 4096] = i + 1.
struct Arguments { u64 x, y, n, report, value; };
u64 arrive_launch(void* kernel, void* stream, Arguments a, volatile u64* reports, u64 mapped, u64 n, const double* due, double* delay) {
  auto launch = (LaunchKernel)driver("cuLaunchKernel");
  u64 out = 0, in = 0;
  const double began = now();
  while (in < n) {
    if (out < n && due[out] <= now() - began && out - in < 4096) {
      a.report = mapped + 8 * (out & 4095);
      a.value = out + 1;
      void* arguments[] = {&a.x, &a.y, &a.n, &a.report, &a.value};
      if (launch(kernel, 1, 1, 1, 32, 1, 1, 0, stream, arguments, nullptr)) return in;
      ++out;
    }
    for (; in < out && reports[in & 4095] == in + 1; ++in) delay[in] = now() - began - due[in];
    if (now() - began > 2e10) break;
  }
  return in;
}

// A graph of one kernel for each, its parameters set anew.
struct NodeParams { void* func; u32 grid[3], block[3], shared; void** kernelParams; void** extra; void* kern; void* ctx; };
typedef int (*SetParams)(void*, void*, const NodeParams*);
u64 arrive_graph(void* executable, void* node, void* kernel, void* stream, Arguments a, volatile u64* reports, u64 mapped, u64 n, const double* due, double* delay) {
  auto launch = (LaunchGraph)driver("cuGraphLaunch");
  auto set = (SetParams)driver("cuGraphExecKernelNodeSetParams_v2");
  u64 out = 0, in = 0;
  const double began = now();
  while (in < n) {
    if (out < n && due[out] <= now() - began && out - in < 4096) {
      a.report = mapped + 8 * (out & 4095);
      a.value = out + 1;
      void* arguments[] = {&a.x, &a.y, &a.n, &a.report, &a.value};
      NodeParams params = {kernel, {1, 1, 1}, {32, 1, 1}, 0, arguments, nullptr, nullptr, nullptr};
      if (set(executable, node, &params) || launch(executable, stream)) return in;
      ++out;
    }
    for (; in < out && reports[in & 4095] == in + 1; ++in) delay[in] = now() - began - due[in];
    if (now() - began > 2e10) break;
  }
  return in;
}

// One launch for all that are due, a block each; then the next.
u64 arrive_batches(void* kernel, void* stream, Arguments a, volatile u64* reports, u64 mapped, u64 n, const double* due, double* delay) {
  auto launch = (LaunchKernel)driver("cuLaunchKernel");
  u64 in = 0;
  const double began = now();
  while (in < n) {
    u64 out = in;
    const double t = now() - began;
    while (out < n && due[out] <= t && out - in < 4096) ++out;
    if (t > 2e10) break;
    if (out == in) continue;
    a.report = mapped;
    a.value = in + 1;
    void* arguments[] = {&a.x, &a.y, &a.n, &a.report, &a.value};
    if (launch(kernel, (u32)(out - in), 1, 1, 32, 1, 1, 0, stream, arguments, nullptr)) return in;
    for (u64 i = in; i < out; ++i) {
      while (reports[i - in] != i + 1) _mm_pause();
      delay[i] = now() - began - due[i];
    }
    in = out;
  }
  return in;
}
}
