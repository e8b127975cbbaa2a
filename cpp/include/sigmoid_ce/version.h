// The version: the only place that states it. CMake and the Python package read it from here.
#ifndef SIGMOID_CE_VERSION_H_
#define SIGMOID_CE_VERSION_H_

#define SIGMOID_CE_VERSION "0.1.0"

#endif  // SIGMOID_CE_VERSION_H_
