/*
 * For tests, preloaded: QEMU derives keys quickly.
 *
 * For each key of a LUKS image QEMU measures for a second or more of its own CPU time (getrusage of the
 * thread) how often it can apply PBKDF2, to find how often that makes `iter-time` (crypto/pbkdf.c). Tests make
 * hundreds of such images. Here that clock runs a hundred times as fast: the code is the same, and so is what it
 * writes but for the count of iterations, which is that of a slower host.
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { FASTER = 100, MICROSECONDS = 1000000 };

static void hurry(struct timeval *time)
{
    long long passed = (time->tv_sec * (long long)MICROSECONDS + time->tv_usec) * FASTER;

    time->tv_sec = passed / MICROSECONDS;
    time->tv_usec = passed % MICROSECONDS;
}

int getrusage(__rusage_who_t who, struct rusage *usage)
{
    int status = (int)syscall(SYS_getrusage, who, usage);

    if (status == 0 && who == RUSAGE_THREAD) {
        hurry(&usage->ru_utime);
        hurry(&usage->ru_stime);
    }
    return status;
}
