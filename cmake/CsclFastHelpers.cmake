# What CMakeLists.txt calls; each function does one thing and returns it in the variable named.

# The version, read from the Python file that holds it.
function(cscl_read_version result file)
  file(STRINGS "${file}" line REGEX "^__version__ = ")
  string(REGEX REPLACE "^__version__ = \"(.*)\"$" "\\1" version "${line}")
  set(${result} "${version}" PARENT_SCOPE)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS "${file}")
endfunction()

# A switch: -Dname=value, else the environment variable of that name, else the default.
function(cscl_switch name default)
  if(NOT DEFINED ${name})
    if(NOT "$ENV{${name}}" STREQUAL "")
      set(${name} "$ENV{${name}}" PARENT_SCOPE)
    else()
      set(${name} "${default}" PARENT_SCOPE)
    endif()
  endif()
endfunction()

# The instruction sets to compile for, poorest first, and their flags in CSCL_FLAGS_<name>.
function(cscl_cpu_instruction_sets result)
  if(CSCL_FAST_NATIVE)
    set(isas native)
    set(CSCL_FLAGS_native -march=native PARENT_SCOPE)
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$" AND CMAKE_SIZEOF_VOID_P EQUAL 8)
    set(isas baseline avx2 avx512)
    set(CSCL_FLAGS_baseline -march=x86-64 PARENT_SCOPE)
    set(CSCL_FLAGS_avx2 -march=x86-64 -mavx2 -mfma -mf16c PARENT_SCOPE)
    set(CSCL_FLAGS_avx512 -march=x86-64 -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq
        -mavx512vl -mprefer-vector-width=512 PARENT_SCOPE)
  else()
    set(isas generic)
    set(CSCL_FLAGS_generic "" PARENT_SCOPE)
  endif()
  set(${result} ${isas} PARENT_SCOPE)
endfunction()

# Enables the CUDA language where CSCL_FAST_CUDA and the machine allow it. The result is empty then,
# else the reason for leaving CUDA out; with CSCL_FAST_CUDA=1 the reason is an error.
macro(cscl_find_cuda result)
  set(${result} "")
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES AND NOT "$ENV{CMAKE_CUDA_ARCHITECTURES}" STREQUAL "")
    set(CMAKE_CUDA_ARCHITECTURES "$ENV{CMAKE_CUDA_ARCHITECTURES}")
  endif()
  if(CSCL_FAST_CUDA STREQUAL "0")
    set(${result} "CSCL_FAST_CUDA=0")
  elseif(NOT CSCL_CUDA_SOURCES AND CSCL_FAST_CUDA STREQUAL "auto")
    set(${result} "this version has no CUDA kernels yet: csrc/cuda holds no .cu file")
  else()
    include(CheckLanguage)
    check_language(CUDA)
    if(NOT CMAKE_CUDA_COMPILER)
      string(CONCAT ${result} "no CUDA compiler: nvcc is neither on PATH nor named by CUDACXX "
             "(install the CUDA toolkit)")
    elseif(NOT CSCL_CUDA_SOURCES)
      set(${result} "this version has no CUDA kernels yet: csrc/cuda holds no .cu file")
    else()
      set(CSCL_CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
      enable_language(CUDA)
      find_package(CUDAToolkit REQUIRED)
      if(CSCL_CUDA_ARCHITECTURES STREQUAL "")
        # Machine code from Ampere to Blackwell, and portable code for what comes after.
        set(CSCL_CUDA_ARCHITECTURES 80-real 90-real 100-real 120)
        if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 12.8)
          set(CSCL_CUDA_ARCHITECTURES 80-real 90)
        endif()
        # In place of the one that CMake has taken, for when it configures this folder again.
        set(CMAKE_CUDA_ARCHITECTURES "${CSCL_CUDA_ARCHITECTURES}" CACHE STRING "which GPUs" FORCE)
      endif()
    endif()
    if(CSCL_FAST_CUDA STREQUAL "1" AND NOT ${result} STREQUAL "")
      message(FATAL_ERROR "CSCL_FAST_CUDA=1 asks for the CUDA kernels, but ${${result}}. "
                          "Set CSCL_FAST_CUDA=auto or 0 to build without them.")
    endif()
  endif()
endmacro()

# pybind11, from CMake's own search or from the Python package.
macro(cscl_find_pybind11)
  if(NOT pybind11_DIR)
    execute_process(COMMAND "${Python_EXECUTABLE}" -m pybind11 --cmakedir
                    OUTPUT_VARIABLE cscl_pybind11_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(cscl_pybind11_dir)
      set(pybind11_DIR "${cscl_pybind11_dir}")
    endif()
  endif()
  find_package(pybind11 2.13 CONFIG QUIET)
  if(NOT pybind11_FOUND)
    message(FATAL_ERROR "pybind11 (>= 2.13) was not found; run: ${Python_EXECUTABLE} -m pip install pybind11")
  endif()
endmacro()

# A digest of everything the library is compiled from: SHA-256 over the lines
# "<sha256 of the file>  <path>\n", sorted by path. cscl_fast/_library.py computes the same.
function(cscl_source_digest result)
  file(GLOB_RECURSE files CONFIGURE_DEPENDS RELATIVE "${CMAKE_CURRENT_SOURCE_DIR}"
       "${CMAKE_CURRENT_SOURCE_DIR}/csrc/*" "${CMAKE_CURRENT_SOURCE_DIR}/cmake/*.cmake")
  list(APPEND files CMakeLists.txt)
  list(FILTER files EXCLUDE REGEX "(^|/)\\.")
  list(SORT files COMPARE STRING)
  set(lines "")
  foreach(file IN LISTS files)
    file(SHA256 "${CMAKE_CURRENT_SOURCE_DIR}/${file}" digest)
    string(APPEND lines "${digest}  ${file}\n")
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS
                 "${CMAKE_CURRENT_SOURCE_DIR}/${file}")
  endforeach()
  string(SHA256 digest "${lines}")
  set(${result} "${digest}" PARENT_SCOPE)
endfunction()

# What was built, and why a part was left out.
function(cscl_summary result)
  list(JOIN CSCL_ISAS ", " isas)
  if(CSCL_FAST_NATIVE)
    set(isas "native (-march=native: this build runs on processors like this one only)")
  endif()
  if(CSCL_CUDA_REASON STREQUAL "")
    list(JOIN CSCL_CUDA_ARCHITECTURES ", " architectures)
    set(cuda "built for ${architectures} (${CMAKE_CUDA_COMPILER_ID} ${CMAKE_CUDA_COMPILER_VERSION})")
  else()
    set(cuda "left out: ${CSCL_CUDA_REASON}")
  endif()
  set(text "cscl_fast ${CSCL_FAST_VERSION}\n")
  string(APPEND text "  compiler  ${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}, "
                     "${CMAKE_BUILD_TYPE}\n")
  string(APPEND text "  Python    ${Python_VERSION}, pybind11 ${pybind11_VERSION}\n")
  string(APPEND text "  cpu       built for ${isas}\n")
  string(APPEND text "  cuda      ${cuda}\n")
  set(${result} "${text}" PARENT_SCOPE)
  set(CSCL_CUDA_STATUS "${cuda}" PARENT_SCOPE)
endfunction()
