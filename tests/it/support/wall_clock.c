/* Preloaded, it makes the wall clock of a process wrong by OFFSET_S seconds; the monotonic clock stays right.
   (libfaketime allocates while it starts, and an allocator may ask for the time.) */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  if (!failed && clock == CLOCK_REALTIME) now->tv_sec += OFFSET_S;
  return failed;
}
