// What the bindings ask of the CUDA runtime beyond the kernels: the current device, memory in the order of a stream,
// copies of small things, and the order between streams. No Python in here.
#ifndef SIGMOID_CE_BINDINGS_DEVICE_RUNTIME_H_
#define SIGMOID_CE_BINDINGS_DEVICE_RUNTIME_H_

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

#include "sigmoid_ce/cuda.h"
#include "sigmoid_ce/status.h"

namespace sigmoid_ce {
namespace bindings {

using cuda::status_of;

// The stream that DLPack and __cuda_array_interface__ call 1: cudaStreamLegacy.
inline cuda::Stream legacy_stream() {
  return reinterpret_cast<cuda::Stream>(static_cast<std::uintptr_t>(1));
}

// A device is the current one of this thread while an object of this class lives.
class CurrentDevice {
 public:
  explicit CurrentDevice(int device) {
    cudaError_t error = cudaGetDevice(&before_);
    if (error == cudaSuccess && before_ != device) {
      error = cudaSetDevice(device);
      changed_ = error == cudaSuccess;
    }
    status_ = status_of(error);
  }
  CurrentDevice(const CurrentDevice&) = delete;
  CurrentDevice& operator=(const CurrentDevice&) = delete;
  ~CurrentDevice() {
    if (changed_) cudaSetDevice(before_);
  }
  const Status& status() const { return status_; }

 private:
  int before_ = 0;
  bool changed_ = false;
  Status status_;
};

// A moment in a stream.
class Event {
 public:
  Event() = default;
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  // Errors are of a runtime that has ended already, and have nobody to go to.
  ~Event() {
    if (event_ != nullptr) cudaEventDestroy(event_);
  }

  // The device must be the current one.
  Status record(cuda::Stream stream) {
    if (event_ == nullptr) {
      const Status status = status_of(cudaEventCreateWithFlags(&event_, cudaEventDisableTiming));
      if (!status.ok()) return status;
    }
    recorded_ = true;
    return status_of(cudaEventRecord(event_, stream));
  }
  bool recorded() const { return recorded_; }
  // What is put into the stream from now on runs after the moment.
  Status make_wait(cuda::Stream stream) const {
    return recorded_ ? status_of(cudaStreamWaitEvent(stream, event_, 0)) : Status();
  }
  // False also where the work ended with an error, which is another call's to report.
  bool pending() const {
    if (!recorded_) return false;
    const bool not_ready = cudaEventQuery(event_) == cudaErrorNotReady;
    if (not_ready) cudaGetLastError();
    return not_ready;
  }

 private:
  cudaEvent_t event_ = nullptr;
  bool recorded_ = false;
};

// Device memory that is had and given back in the order of a stream, where the device can do that.
class Allocation {
 public:
  explicit Allocation(int device) : device_(device) {}
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

  Status allocate(std::size_t size, cuda::Stream stream) {
    const CurrentDevice current(device_);
    if (!current.status().ok()) return current.status();
    int pools = 0;
    Status status =
        status_of(cudaDeviceGetAttribute(&pools, cudaDevAttrMemoryPoolsSupported, device_));
    if (!status.ok()) return status;
    stream_ = stream;
    ordered_ = pools != 0;
    if (size == 0) size = 1;
    return status_of(ordered_ ? cudaMallocAsync(&data_, size, stream) : cudaMalloc(&data_, size));
  }

  // Of any thread, with or without the GIL: consumers of a DLPack capsule end here.
  ~Allocation() {
    if (data_ == nullptr) return;
    const CurrentDevice current(device_);
    if (!current.status().ok()) return;
    if (!ordered_) {
      cudaFree(data_);
      return;
    }
    // The stream of the call may be gone by now where the memory was handed on; the event is not.
    cuda::Stream stream = stream_;
    if (ready_.recorded()) {
      stream = legacy_stream();
      ready_.make_wait(stream);
    }
    cudaFreeAsync(data_, stream);
    cudaGetLastError();
  }

  void* data() const { return data_; }
  int device() const { return device_; }

  // From here on the memory has its contents, and lives on its own.
  Status record(cuda::Stream stream) {
    const CurrentDevice current(device_);
    return current.status().ok() ? ready_.record(stream) : current.status();
  }
  Status make_wait(cuda::Stream stream) const {
    const CurrentDevice current(device_);
    return current.status().ok() ? ready_.make_wait(stream) : current.status();
  }

 private:
  int device_;
  void* data_ = nullptr;
  cuda::Stream stream_ = nullptr;
  bool ordered_ = false;
  Event ready_;
};

// What is put into `stream` from now on runs after all that is in `before`.
inline Status order_streams(int device, cuda::Stream stream, cuda::Stream before) {
  const CurrentDevice current(device);
  if (!current.status().ok()) return current.status();
  Event event;
  const Status status = event.record(before);
  return status.ok() ? event.make_wait(stream) : status;
}

// Waits for the stream.
inline Status copy_to_host(int device, cuda::Stream stream, void* to, const void* from,
                           std::size_t size) {
  const CurrentDevice current(device);
  if (!current.status().ok()) return current.status();
  const Status status = status_of(cudaMemcpyAsync(to, from, size, cudaMemcpyDeviceToHost, stream));
  return status.ok() ? status_of(cudaStreamSynchronize(stream)) : status;
}

// From pageable memory, which the runtime has read when it returns; so not for a graph, whose replay would read
// it again.
inline Status copy_to_device(int device, cuda::Stream stream, void* to, const void* from,
                             std::size_t size) {
  const CurrentDevice current(device);
  if (!current.status().ok()) return current.status();
  cudaStreamCaptureStatus capture = cudaStreamCaptureStatusNone;
  const Status status = status_of(cudaStreamIsCapturing(stream, &capture));
  if (!status.ok()) return status;
  if (capture != cudaStreamCaptureStatusNone) {
    return Status(Code::kUnsupported, "",
                  "values on the CPU cannot go into a graph; pass them in an array on the GPU");
  }
  return status_of(cudaMemcpyAsync(to, from, size, cudaMemcpyHostToDevice, stream));
}

}  // namespace bindings
}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_BINDINGS_DEVICE_RUNTIME_H_
