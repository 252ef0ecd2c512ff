# The CUDA kernels as C++ for the simulation in this folder, as part of the kernel library: what
# CSCL_FAST_CUDA_ON_CPU=1 adds.
set_source_files_properties(${CSCL_CUDA_SOURCES} PROPERTIES LANGUAGE CXX)
add_library(cscl_cuda_on_cpu OBJECT ${CSCL_CUDA_SOURCES} tests/cuda_on_cpu/runtime.cpp)
target_include_directories(cscl_cuda_on_cpu BEFORE PRIVATE tests/cuda_on_cpu/include csrc)
target_compile_options(cscl_cuda_on_cpu PRIVATE -O1 -ffp-contract=fast -Wno-unknown-pragmas
                       -Wno-maybe-uninitialized -Wno-uninitialized)
target_sources(cscl_kernels PRIVATE $<TARGET_OBJECTS:cscl_cuda_on_cpu>)
target_include_directories(cscl_kernels PUBLIC tests/cuda_on_cpu/include)
target_link_libraries(cscl_kernels PUBLIC ${CMAKE_DL_LIBS})
target_compile_definitions(cscl_kernels PUBLIC CSCL_HAVE_CUDA CSCL_HAVE_CUDA_ON_CPU)
set(CSCL_NO_STRIP NO_EXTRAS)  # the symbols name the kernels in messages
