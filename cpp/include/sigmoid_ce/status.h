// What every function of the C++ API returns: a code, the argument at fault and one sentence.
#ifndef SIGMOID_CE_STATUS_H_
#define SIGMOID_CE_STATUS_H_

namespace sigmoid_ce {

enum class Code {
  kOk = 0,
  kInvalidArgument,  // an argument has a wrong value; `argument` names it
  kUnsupported,      // the machine lacks what was asked for (an instruction set, say)
  kOutOfMemory,  // the staging buffers, or memory of a device, could not be had; nothing was computed
  kNoDevice,     // no GPU, no driver for it, or one that is too old
  kDeviceError,  // CUDA reported an error, perhaps of work that was started before
};

// No allocation and no exception: both strings have static storage.
struct Status {
  Code code;
  const char* argument;  // name of the argument at fault, "" when there is none
  const char* message;   // what was expected, "" when ok
  int cuda_error;        // the cudaError_t behind the code, 0 when there is none

  Status() : code(Code::kOk), argument(""), message(""), cuda_error(0) {}
  Status(Code c, const char* arg, const char* text, int error = 0)
      : code(c), argument(arg), message(text), cuda_error(error) {}
  bool ok() const { return code == Code::kOk; }
};

}  // namespace sigmoid_ce

#endif  // SIGMOID_CE_STATUS_H_
