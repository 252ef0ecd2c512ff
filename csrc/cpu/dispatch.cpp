// One line per operator: the public function calls the walk compiled for the active instruction
// set. An operator is added by one CSCL_DISPATCH line here and one file in CSCL_CPU_WALKS.
#include "cpu/isa.h"
#include "cpu/kernels.h"

#define CSCL_DISPATCH(function, Call)                                             \
  namespace cscl::cpu {                                                           \
  CSCL_FOR_EACH_ISA(CSCL_DECLARE_##function)                                      \
  void function(const Call& call, int threads) {                                  \
    switch (active_isa()) { CSCL_FOR_EACH_ISA(CSCL_CASE_##function) }             \
  }                                                                               \
  }

#define CSCL_DECLARE_soft_pseudo_labels(isa) \
  namespace isa {                            \
  void soft_pseudo_labels(const SoftPseudoLabelCall& call, int threads); \
  }
#define CSCL_CASE_soft_pseudo_labels(isa) \
  case Isa::isa:                          \
    return isa::soft_pseudo_labels(call, threads);
CSCL_DISPATCH(soft_pseudo_labels, SoftPseudoLabelCall)
