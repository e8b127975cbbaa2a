# The library of the CUDA kernels, sigmoid_ce::cuda: with AUTO where a compiler is found. EMULATED, for tests,
# compiles the same sources for the CPU (tests/native/emulation).
set(cuda_sources
  cuda/api.cpp
  cuda/plan.cpp
  cuda/kernels_bfloat16.cu
  cuda/kernels_float16.cu
  cuda/kernels_float32.cu
  cuda/kernels_float64.cu
  cuda/kernels_valid.cu
  cuda/launch.cu)

if(SIGMOID_CE_CUDA STREQUAL "EMULATED")
  add_library(sigmoid_ce_cuda STATIC ${cuda_sources} tests/native/emulation/emulation.cpp)
  set(kernels ${cuda_sources})
  list(FILTER kernels INCLUDE REGEX "\\.cu$")
  set_source_files_properties(${kernels} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "-xc++;-Wno-unknown-pragmas")
  target_include_directories(sigmoid_ce_cuda PUBLIC tests/native/emulation)
elseif(NOT SIGMOID_CE_CUDA STREQUAL "OFF")
  # A compiler that came after the first run of CMake is found too.
  if(NOT CMAKE_CUDA_COMPILER)
    unset(CMAKE_CUDA_COMPILER CACHE)
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    # What has machine code; the last one also goes in as PTX, which drivers compile for what comes later.
    if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
      set(CMAKE_CUDA_ARCHITECTURES OFF)
      set(architectures_default ON)
    endif()
    if(NOT DEFINED CMAKE_CUDA_STANDARD)
      set(CMAKE_CUDA_STANDARD 14)
    endif()
    enable_language(CUDA)
    # PyPI's packages have this library, which CMake asks for and we do not link, by its versioned name alone.
    get_filename_component(toolkit "${CMAKE_CUDA_COMPILER}" REALPATH)
    get_filename_component(toolkit "${toolkit}" DIRECTORY)
    file(GLOB cudart "${toolkit}/../lib/libcudart.so.*")
    if(cudart AND NOT EXISTS "${toolkit}/../lib/libcudart.so")
      list(GET cudart 0 cudart)
      set(CUDA_CUDART "${cudart}" CACHE FILEPATH "The CUDA runtime as a shared library")
    endif()
    find_package(CUDAToolkit REQUIRED)
    if(architectures_default)
      set(CMAKE_CUDA_ARCHITECTURES 75-real 80-real)
      foreach(since IN ITEMS 11.1:86 11.8:89 11.8:90 12.8:100 12.8:120)
        string(REPLACE ":" ";" since "${since}")
        list(GET since 0 toolkit)
        list(GET since 1 architecture)
        if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL toolkit)
          list(APPEND CMAKE_CUDA_ARCHITECTURES ${architecture}-real)
        endif()
      endforeach()
      list(POP_BACK CMAKE_CUDA_ARCHITECTURES newest)
      string(REPLACE "-real" "" newest "${newest}")
      list(APPEND CMAKE_CUDA_ARCHITECTURES ${newest})
    endif()
    add_library(sigmoid_ce_cuda STATIC ${cuda_sources})
    target_link_libraries(sigmoid_ce_cuda PUBLIC CUDA::cudart_static)
    set_target_properties(sigmoid_ce_cuda PROPERTIES CUDA_STANDARD_REQUIRED ON CUDA_VISIBILITY_PRESET hidden)
    message(STATUS "CUDA kernels for ${CMAKE_CUDA_ARCHITECTURES}, by nvcc ${CMAKE_CUDA_COMPILER_VERSION}")
  elseif(SIGMOID_CE_CUDA STREQUAL "ON")
    message(FATAL_ERROR "SIGMOID_CE_CUDA=ON: no CUDA compiler found; put nvcc on the PATH, or name it in CUDACXX")
  else()
    message(STATUS "no CUDA compiler found: only the CPU library is built")
  endif()
endif()

if(TARGET sigmoid_ce_cuda)
  add_library(sigmoid_ce::cuda ALIAS sigmoid_ce_cuda)
  target_link_libraries(sigmoid_ce_cuda PUBLIC sigmoid_ce)
  target_include_directories(sigmoid_ce_cuda PRIVATE cpp cuda)
  target_link_libraries(sigmoid_ce_cuda PRIVATE $<BUILD_INTERFACE:sigmoid_ce_flags>)
  set_target_properties(sigmoid_ce_cuda PROPERTIES EXPORT_NAME cuda POSITION_INDEPENDENT_CODE ON)
endif()
