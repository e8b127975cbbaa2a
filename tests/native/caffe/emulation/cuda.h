// The driver's interface, of which Caffe uses nothing (tests/native/emulation).
#pragma once
#include <cuda_runtime.h>
