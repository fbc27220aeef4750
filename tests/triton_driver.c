// A CUDA driver that runs nothing, and keeps what a launch was handed. Its device, of compute
// capability 9.0, has room for every kernel.
#include <string.h>

typedef unsigned long long u64;

int wanted = 0;  // parameters to keep
int launches = 0;
u64 handed[1024];
unsigned grid[3];

int cuGetErrorString(int code, const char** text) {
  *text = "an error of tests/triton_driver.c";
  return 0;
}

int cuPointerGetAttribute(void* found, int attribute, u64 pointer) {
  *(u64*)found = pointer;
  return 0;
}

int cuCtxGetCurrent(void** context) {
  *context = (void*)1;
  return 0;
}

int cuModuleLoadData(void** module, const void* image) {
  *module = (void*)1;
  return 0;
}

int cuModuleGetFunction(void** function, void* module, const char* name) {
  *function = (void*)1;
  return 0;
}

int cuFuncGetAttribute(int* value, int attribute, void* function) {
  *value = 1024;  // threads of a block at most
  return 0;
}

int cuDeviceGetAttribute(int* value, int attribute, int device) {
  *value = 227 << 10;  // bytes of shared memory
  return 0;
}

int cuLaunchKernelEx(const unsigned* config, void* function, void** parameters, void** extra) {
  memcpy(grid, config, sizeof(grid));
  for (int i = 0; i < wanted; ++i) memcpy(&handed[i], parameters[i], sizeof(u64));
  ++launches;
  return 0;
}
