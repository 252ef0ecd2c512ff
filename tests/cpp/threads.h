// The threads of the test program.
#pragma once

// How many threads the kernels have asked for in all, the calling ones included. A test that means
// to run in parallel looks whether this has grown.
long threads_started();
