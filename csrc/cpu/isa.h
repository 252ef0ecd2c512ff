// Which of the compiled instruction sets runs: the best that this processor has, or the one that
// the environment variable CSCL_FAST_ISA names.
#pragma once

#include <string>
#include <vector>

// CSCL_FOR_EACH_ISA(X) expands to X(name) for each instruction set that was compiled, poorest
// first; CMakeLists.txt defines CSCL_HAVE_<NAME>.
#ifdef CSCL_HAVE_BASELINE
#define CSCL_FOR_BASELINE(X) X(baseline)
#else
#define CSCL_FOR_BASELINE(X)
#endif
#ifdef CSCL_HAVE_AVX2
#define CSCL_FOR_AVX2(X) X(avx2)
#else
#define CSCL_FOR_AVX2(X)
#endif
#ifdef CSCL_HAVE_AVX512
#define CSCL_FOR_AVX512(X) X(avx512)
#else
#define CSCL_FOR_AVX512(X)
#endif
#ifdef CSCL_HAVE_GENERIC
#define CSCL_FOR_GENERIC(X) X(generic)
#else
#define CSCL_FOR_GENERIC(X)
#endif
#ifdef CSCL_HAVE_NATIVE
#define CSCL_FOR_NATIVE(X) X(native)
#else
#define CSCL_FOR_NATIVE(X)
#endif
#define CSCL_FOR_EACH_ISA(X) \
  CSCL_FOR_BASELINE(X) CSCL_FOR_AVX2(X) CSCL_FOR_AVX512(X) CSCL_FOR_GENERIC(X) CSCL_FOR_NATIVE(X)

namespace cscl::cpu {

#define CSCL_ISA_NAME(name) name,
enum class Isa { CSCL_FOR_EACH_ISA(CSCL_ISA_NAME) };
#undef CSCL_ISA_NAME

std::vector<std::string> compiled_isas();   // poorest first
std::vector<std::string> supported_isas();  // those of them that this processor can run
std::string isa_name(Isa isa);

// Decided on the first call, from CSCL_FAST_ISA or the processor.
// Throws std::invalid_argument when CSCL_FAST_ISA names none of supported_isas().
Isa active_isa();

}  // namespace cscl::cpu
